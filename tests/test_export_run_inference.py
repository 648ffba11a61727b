import numpy as np
import pytest
from export_parts import INFO, SIZE, exported, saved
from PIL import Image

from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.formats.place import Place
from adapt.data.images import Fitting, InputSize
from bench.networks.evaluation import evaluate_runner
from export.run.inference import ImageDetections, Runner
from export.run.predict import predict
from export.run.runner import open_runner

LETTERBOX = Fitting.trained(SIZE)


class Seen(Runner):
    """Finds one box in the corner of the input, scored by how bright it is, and remembers."""

    info = INFO

    def __init__(self, fitting=LETTERBOX, batch=1, dynamic=False):
        self.fitting, self.batch, self.dynamic = fitting, batch, dynamic
        self.inputs = []

    def infer(self, images):
        self.inputs.append(images)
        box, label = np.array([[0, 0, 8, 8]], np.float32), np.zeros(1, np.int64)
        scores = images[:, :, :8, :8].mean((1, 2, 3)) / 255
        return [ImageDetections(box, np.float32([score]), label) for score in scores]

    def heads(self, images):
        raise NotImplementedError

    bind = describe = heads


def grey(value, size=(160, 128)):
    return Image.new("RGB", size, (value,) * 3)


def scores_of(found):
    return [round(float(image.scores[0]) * 255) for image in found]


@pytest.mark.parametrize(
    ("batch", "dynamic", "batches"),
    [(1, False, [1] * 5), (2, False, [2] * 3), (4, True, [4, 1]), (8, False, [8])],
)
def test_batches_are_filled_and_every_image_gets_its_own_detections(batch, dynamic, batches):
    runner = Seen(batch=batch, dynamic=dynamic)
    found = runner.detect([grey(10 * n) for n in range(5)])
    assert scores_of(found) == [0, 10, 20, 30, 40]
    assert [len(images) for images in runner.inputs] == batches


def test_images_of_two_shapes_share_no_batch_and_keep_their_order():
    size = InputSize(128, 160, "shortest-edge")
    runner = Seen(Fitting(size, size.canvases()), batch=2)
    shapes = [(160, 128), (128, 160), (160, 128), (128, 160), (150, 150)]
    found = runner.detect([grey(10 * n, shape) for n, shape in enumerate(shapes)])
    assert scores_of(found) == [0, 10, 20, 30, 40]
    assert [images.shape[2:] for images in runner.inputs] == [(128, 160)] * 2 + [(160, 128)]


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    """Photos that fill less than half of the small detector's input."""
    folder, chance = tmp_path_factory.mktemp("portraits"), np.random.default_rng(0)
    for number in range(2):
        pixels = chance.integers(0, 256, (128, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("runtime", ["torch", "ort-cpu"])
def test_what_lies_in_the_padding_is_no_detection(runtime, portraits, exports, tmp_path):
    artifact = saved(exports) if runtime == "torch" else exported(exports)
    with open_runner(runtime, artifact) as runner:
        content = predict(runner, portraits, tmp_path, score_threshold=0.1)
        pixels, factors = runner.fitting(Image.open(portraits[0]))
        (everywhere,) = runner.infer(pixels.numpy()[None])
    sizes = [found["bbox"][2:] for found in content["annotations"]]
    assert np.min(sizes) > 0
    kept = sum(found["image_id"] == 1 for found in content["annotations"])
    in_padding = (everywhere.boxes[:, 0] >= 60 * factors[0]).sum()
    assert in_padding > 10
    assert kept == len(everywhere.scores) - in_padding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_predict_and_eval_see_the_same_pixels(orientation, tmp_path):
    """A square: neither width nor height tells that it is turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png", exif=exif)
    annotated = CocoImage(1, tmp_path / "x.png", 40, 40)
    box = ImageBoxes(np.array([[1, 1, 9, 9.0]]), np.array([0]), np.array([False]), np.array([64.0]))
    split = CocoSplit(Place(tmp_path, tmp_path), (annotated,), (box,), INFO.classes, (1, 2, 3))
    runner = Seen()
    evaluate_runner(runner, split)
    predict(runner, [annotated.path], tmp_path / "out")
    evaluated, predicted = runner.inputs
    assert np.array_equal(evaluated, predicted)
