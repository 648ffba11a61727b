"""How do the two files of a detector, for landscape and portrait images, run as one?"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapt.artifacts import check_header
from adapt.command_line import warn
from adapt.data.images import Fitting
from export.engine.execution import read_plan_info
from export.graph.canvas import Canvas, belong_together, companions
from export.graph.detector import checked_header, read_onnx_info
from export.run.inference import Array, ImageDetections, Runner


class PairRunner(Runner):
    """Sends every image to the file of its orientation.

    Args:
        landscape: An open runner of the one file.
        portrait: Of the other.
    """

    def __init__(self, landscape: Runner, portrait: Runner) -> None:
        self.parts = landscape, portrait
        self.info, self.precision, self.tail = landscape.info, landscape.precision, landscape.tail
        self.batch, self.dynamic = landscape.batch, landscape.dynamic
        canvases = landscape.fitting.canvases + portrait.fitting.canvases
        self.fitting = Fitting(landscape.fitting.resize, canvases)

    def _of(self, images: Array) -> Runner:
        """Return the part with this input shape; the first, which refuses them, if none has."""
        for part, canvas in zip(self.parts, self.fitting.canvases, strict=True):
            if images.shape[2:] == (canvas.height, canvas.width):
                return part
        return self.parts[0]

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in images of one of the two shapes; see :meth:`Runner.infer`."""
        return self._of(images).infer(images)

    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        return self._of(images).heads(images)

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        return self._of(images).bind(images)

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads."""
        return self.parts[0].describe()

    def __exit__(self, *error: object) -> None:
        for part in self.parts:
            part.__exit__(*error)


def deployed_header(artifact: Path) -> dict[str, Any]:
    """Return the header of an ONNX file, or of the one that an engine was built from.

    Raises:
        AdaptError: If the file is missing, or not written by ``adapt export``.
    """
    if artifact.suffix != ".plan":
        return read_onnx_info(artifact)[1]
    content = check_header(read_plan_info(artifact)["onnx"], "onnx-detector", artifact)
    checked_header(content, artifact)
    return content


def files_of(artifact: Path) -> tuple[Path, ...]:
    """Return the deployed files that see images of all orientations together, landscape first.

    Args:
        artifact: An ONNX file or an engine.

    Raises:
        AdaptError: If it is missing, or not written by ``adapt export``.
    """
    content = deployed_header(artifact)
    canvas = Canvas.of(content)
    for other in companions(artifact, canvas):
        if other.is_file() and belong_together(content, deployed_header(other)):
            return (artifact, other) if canvas.orientation == "landscape" else (other, artifact)
    return (artifact,)


def warn_if_smaller(artifact: Path) -> None:
    """Warn if a file that runs alone sees some images smaller than in training."""
    canvas = Canvas.of(deployed_header(artifact))
    if canvas.companion:
        other = companions(artifact, canvas)[0].name
        warn(f"{canvas.smaller()}: {other} of the same export does not lie beside {artifact.name}")
    elif canvas.orientation:
        option = f"--orientation {canvas.orientation}"
        warn(f"{canvas.smaller()}: {artifact.name} was exported with {option}")
