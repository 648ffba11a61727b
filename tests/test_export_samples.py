import numpy as np
import pytest
from PIL import Image

from adapt.data.coco import load_split
from adapt.data.images import MEAN, InputSize
from adapt.data.synthetic import generate
from adapt.errors import AdaptError
from export.graph.canvas import planned
from export.samples import Samples, spread, training_images

SHORTEST = InputSize(64, 96, "shortest-edge")


def photos(folder, *sizes):
    for number, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height), (number, 0, 0)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def numbers(images):
    """Which photos, by the red of their first pixel."""
    return images.pixels[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("number", "batch", "dynamic", "sizes"),
    [(7, 3, False, [3, 3]), (7, 3, True, [3, 3, 1]), (2, 3, True, [2])],
)
def test_batches_are_whole_unless_they_may_be_smaller(number, batch, dynamic, sizes, tmp_path):
    samples = Samples(photos(tmp_path, *[(96, 64)] * number), batch, dynamic)
    (images,) = samples.fitted(list(planned(InputSize(64, 96), tmp_path / "d.onnx").values()))
    assert len(images.names) == len(images.pixels)
    assert [len(pixels) for pixels in samples.batches(images, "uint8")] == sizes


@pytest.mark.parametrize(
    ("batch", "of_landscape", "of_portrait"),
    [(1, [0, 2, 3], [1]), (2, [0, 2], [0, 1, 2, 3])],  # one portrait does not fill a batch of two
)
def test_each_file_gets_images_of_its_orientation(batch, of_landscape, of_portrait, tmp_path):
    paths = photos(tmp_path, (96, 64), (64, 96), (80, 60), (70, 70))
    canvases = list(planned(SHORTEST, tmp_path / "d.onnx").values())
    landscape, portrait = Samples(paths, batch).fitted(canvases)
    assert landscape.pixels.shape[2:] == (64, 96)
    assert portrait.pixels.shape[2:] == (96, 64)
    assert (numbers(landscape), numbers(portrait)) == (of_landscape, of_portrait)
    assert portrait.names == [str(paths[n]) for n in of_portrait]


def test_beside_an_image_lies_what_training_padded_with(tmp_path):
    paths = photos(tmp_path, (40, 40))
    landscape, portrait = Samples(paths).fitted(list(planned(SHORTEST, tmp_path / "d").values()))
    assert (landscape.pixels[0, :, 0, 64:] == np.array(MEAN)[:, None]).all()
    assert (portrait.pixels[0, :, 64:, 0] == np.array(MEAN)[:, None]).all()


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(AdaptError, match="2 images do not fill a batch of 3; pass more"):
        Samples(["a.png", "b.png"], batch=3)


def test_data_sets_calibrate_with_their_train_split_only(tmp_path):
    data = generate(tmp_path / "data", seed=5, train=3, val=2, size=(128, 128))
    assert len(list((data / "images").iterdir())) == 5
    expected = [image.path for image in load_split(data, "train").images]
    assert training_images([data]) == expected
    assert len(training_images([data, data / "images"])) == 3 + 5


@pytest.mark.parametrize(
    ("number", "limit", "chosen"), [(5, 3, [0, 2, 4]), (2, 8, [0, 1]), (3, 1, [0]), (0, 4, [])]
)
def test_images_are_chosen_evenly(number, limit, chosen):
    assert spread(list(range(number)), limit) == chosen
