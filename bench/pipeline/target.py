"""How is a detector deployed on the device of a recipe, and what of it can this machine do?"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapt.artifacts import file_hash, header, write_json
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from adapt.progress import Progress
from bench.acceptance.ap_gate import GateOptions, deploy_within
from bench.costs.recipe_table import recipe_backend
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions, check_candidates
from export.engine.installed import check_builder, load_tensorrt
from export.graph.precision import int8_for
from export.samples import CALIBRATION_IMAGES
from search.recipe.recipe import DeviceRecipe, Recipe

TOP = ("ort-cpu", "fp32", 1)  # whose files lie in the run's folder itself


@dataclass(frozen=True)
class Target:
    """The device of a recipe.

    Attributes:
        recipe: The recipe.
    """

    recipe: Recipe

    @property
    def device(self) -> DeviceRecipe:
        """Runtime, precision and batch."""
        return self.recipe.device

    @property
    def folder(self) -> str:
        """Folder of what depends on the device, such as ``tensorrt-fp16-8``, in the run's."""
        device = self.device
        named = device.runtime, device.precision, device.batch
        return "" if named == TOP else "-".join(map(str, named))

    @property
    def on_engine(self) -> bool:
        """Whether a TensorRT engine is what is deployed."""
        return self.device.runtime.startswith("tensorrt")

    @property
    def flavour(self) -> str:
        """Name of TensorRT's Python package."""
        return self.device.runtime.replace("-", "_")

    @property
    def gated(self) -> bool:
        """Whether the deployed file may lose AP: all but fp32 of ONNX Runtime and PyTorch."""
        size = self.recipe.input
        return self.on_engine or self.device.precision != "fp32" or size != size.fixed()

    def check(self) -> None:
        """Check that detectors can be deployed from this machine.

        Raises:
            AdaptError: If PyTorch is asked for a precision that its files do not have, the engine's
                builder is missing or does not start, or it cannot rank so many candidates.
        """
        if self.device.runtime == "torch" and self.device.precision != "fp32":
            raise AdaptError(
                "a detector file of PyTorch holds fp32 weights, recipe "
                f"{self.recipe.name!r} asks for torch {self.device.precision}; choose fp32, or "
                "runtime ort-cuda or tensorrt"
            )
        if self.on_engine:
            check_candidates(self.device.runtime, self.recipe.detector.nms_candidates)
            check_builder(self.flavour)

    def why_not_here(self) -> str:
        """Return why this machine cannot run what is deployed; empty if it can."""
        try:
            recipe_backend(self.recipe).check()
        except AdaptError as error:
            return str(error).partition(";")[0]
        return ""

    def check_measurable(self) -> None:
        """Check that a cost table of the device can be measured here.

        Raises:
            AdaptError: If not; says how to bring a table.
        """
        why_not, name = self.why_not_here(), self.device.name
        if not why_not and name:
            here = recipe_backend(self.recipe).machine().device
            why_not = (
                "" if name == here else f"recipe {self.recipe.name!r} is for {name}, not {here}"
            )
        if why_not:
            raise AdaptError(
                f"{why_not}; run `adapt profile` and `adapt costs certify` where the device is, "
                "and pass the table with --costs"
            )

    def artifact(self, name: str, detector: Path, folder: Path) -> Path:
        """Return the file that is deployed: PyTorch runs the detector file itself."""
        if self.device.runtime == "torch":
            return detector
        return folder / f"{name}{'.plan' if self.on_engine else '.onnx'}"

    def identity(self, detector: Path, train: CocoSplit) -> list[Any]:
        """Return everything that the deployed file of a detector depends on."""
        calibrated = train.sha256 if self.device.precision == "int8" else ""
        library = load_tensorrt(self.flavour).__version__ if self.on_engine else ""
        device = asdict(self.device)
        kept = [device[n] for n in ("runtime", "precision", "batch", "max_ap_drop")]
        # Until 0.2.0 all int8 was for TensorRT.
        form = int8_for(self.device.runtime) if self.device.precision == "int8" else "tensorrt"
        changed = [] if form == "tensorrt" else [form]
        return [file_hash(detector), *kept, calibrated, library, *changed]

    def deploy(
        self,
        detector: Path,
        artifact: Path,
        train: CocoSplit,
        timing_cache: Path,
        progress: Progress,
    ) -> None:
        """Write the deployed file of a detector, and what is known of it.

        Args:
            detector: File that ``adapt finetune`` wrote.
            artifact: The file to write.
            train: Images that int8 is calibrated on.
            timing_cache: Of TensorRT; that of the cost table, so that tactics are those measured.
            progress: Told after every file, or every image if AP is compared.

        Raises:
            AdaptError: If the file loses more AP than ``device.max_ap_drop``; it is left in a
                folder ``refused``.
        """
        onnx = artifact.with_suffix(".onnx")
        deployment = self._deployment(train, timing_cache)
        if self.gated:
            gate = self._gate(artifact.parent / "refused")
            summary = deploy_within(gate, detector, onnx, deployment, progress=progress)
        else:
            summary = deploy(detector, onnx, deployment, progress=progress)
        write_json(deployment_path(artifact), header("deployment", **summary))

    def _deployment(self, train: CocoSplit, timing_cache: Path) -> Deployment:
        device = self.device
        images = train.limit(max(CALIBRATION_IMAGES, device.batch)).images
        cache = timing_cache if device.runtime == "tensorrt" else None
        return Deployment(
            precision=device.precision,
            batch=device.batch,
            calibration=[image.path for image in images] if device.precision == "int8" else (),
            engine=BuildOptions(self.flavour, timing_cache=cache) if self.on_engine else None,
            int8_for=int8_for(device.runtime) if device.precision == "int8" else None,
        )

    def _gate(self, refused: Path) -> GateOptions:
        data = self.recipe.data
        drop, option = self.device.max_ap_drop, "device.max_ap_drop ="
        root, repair = Path(data.root), data.repair
        return GateOptions(drop, root, data.val, repair, option, refused)


def deployment_path(artifact: Path) -> Path:
    """Return where what is known of a deployed file is stored."""
    return artifact.with_suffix(".deployment.json")
