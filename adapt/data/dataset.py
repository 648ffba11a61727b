"""How does a split become training batches?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from adapt.data.annotated_image import read_image
from adapt.data.augmentation import (
    CROWD,
    NONE,
    Augmentation,
    Draw,
    Labelled,
    drawn,
    mosaic,
    moved,
    recoloured,
    seeded,
)
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize, fit
from adapt.data.sampling import repeated
from adapt.errors import AdaptError

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
Batch = tuple[list[Tensor], list[Target]]
Index = tuple[int, bool] | Draw
Fitted = tuple[Tensor, tuple[float, float]]


class DetectionDataset(Dataset[Sample]):
    """Images of a split, fitted into the detector's input, with their boxes.

    An index is a position, or a :class:`~adapt.data.augmentation.Draw`: how an image is shown. A
    sample depends on its index only: :func:`epoch_batches` draws the random numbers. Images without
    boxes stay, as negatives.

    Args:
        split: Images and boxes.
        size: The detector's input.
        flip: Whether :func:`training_batches` mirrors half of the images.
        augmentation: How it changes them otherwise.
        crowds: Whether targets hold boxes around groups too, so that nothing is learned there.
        repeats: As of :func:`epoch_batches`, for :func:`training_batches`.
        cache_mb: Megabytes of images to keep in memory, in every process that loads: fitted ones,
            or whole ones if they are fitted in another way each time.
    """

    def __init__(
        self,
        split: CocoSplit,
        size: InputSize,
        *,
        flip: bool = False,
        augmentation: Augmentation = NONE,
        crowds: bool = False,
        repeats: Sequence[float] = (),
        cache_mb: float = 0,
    ) -> None:
        self.split = split
        self.size = size
        self.flip = flip
        self.augmentation = augmentation
        self.crowds = crowds
        self.repeats = repeats
        self._free_bytes = int(cache_mb * 2**20)
        self._cache: dict[int, Fitted] = {}
        self._whole: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int | Index) -> Sample:
        """Return an image and its target.

        Returns:
            ``uint8[3, H, W]``, and ``boxes`` (``float32[N, 4]``, xyxy in input pixels, no crowds),
            ``labels`` (``int64[N]``), ``image_id`` (``int64[]``), ``factors`` (``float32[2]``, x
            and y from image to input, of an image that is shown as it is), and ``crowds``
            (``float32[M, 4]``) if asked for.

        Raises:
            AdaptError: If the image cannot be read.
        """
        draw = Draw(*index) if isinstance(index, tuple) else Draw(index)
        if draw.others:
            shown, factors = self._mosaic(draw)
        else:
            shown, factors = self._shown(draw)
        single = shown.labels != CROWD
        crowds = {"crowds": shown.boxes[~single]} if self.crowds else {}
        return shown.pixels, crowds | {
            "boxes": shown.boxes[single],
            "labels": shown.labels[single],
            "image_id": torch.tensor(self.split.images[draw.position].id),
            "factors": torch.tensor(factors),
        }

    def _mosaic(self, draw: Draw) -> tuple[Labelled, tuple[float, float]]:
        assert draw.seed is not None
        places = [draw.position, *draw.others]
        draws = [Draw(place, draw.mirrored, draw.seed + n) for n, place in enumerate(places)]
        parts = [self._shown(one) for one in draws]
        shown = seeded(draw.seed, lambda: mosaic([part for part, _ in parts], self.size))
        return shown, parts[0][1]

    def _shown(self, draw: Draw) -> tuple[Labelled, tuple[float, float]]:
        if draw.seed is not None:
            return seeded(draw.seed, lambda: self._changed(draw))
        image = self.split.images[draw.position]
        pixels, factors = self._fitted(draw.position)
        extent = round(image.width * factors[0]), round(image.height * factors[1])
        boxes, labels = self._boxes(draw.position)
        shown = _scaled(Labelled(pixels, boxes, labels), factors, extent)
        return (mirror(shown, *extent) if draw.mirrored else shown), factors

    def _changed(self, draw: Draw) -> tuple[Labelled, tuple[float, float]]:
        """Return an image as it is augmented, with torch's random numbers."""
        boxes, labels = self._boxes(draw.position)
        whole = Labelled(self._read(draw.position), boxes.float(), labels)
        image = moved(whole, self.augmentation)
        height, width = image.pixels.shape[-2:]
        pixels, factors = fit(to_pil_image(image.pixels), self.augmentation.shown_size(self.size))
        extent = round(width * factors[0]), round(height * factors[1])
        shown = _scaled(image._replace(pixels=pixels), factors, extent)
        shown = mirror(shown, *extent) if draw.mirrored else shown
        inside = shown.pixels[:, : extent[1], : extent[0]]  # padding keeps its colour
        inside.copy_(recoloured(inside.clone(), self.augmentation.photometric))
        return shown, factors

    def _fitted(self, position: int) -> Fitted:
        if position in self._cache:
            return self._cache[position]
        pixels, factors = fit(read_image(self.split.images[position]), self.size)
        if self._keeps(pixels):
            self._cache[position] = pixels, factors
        return pixels, factors

    def _read(self, position: int) -> Tensor:
        """Return a whole image, as ``uint8[3, H, W]``."""
        if position in self._whole:
            return self._whole[position]
        pixels: Tensor = pil_to_tensor(read_image(self.split.images[position]))
        if self._keeps(pixels):
            self._whole[position] = pixels
        return pixels

    def _keeps(self, pixels: Tensor) -> bool:
        """Return whether there is memory for an image, which it takes then."""
        kept = pixels.nbytes <= self._free_bytes
        self._free_bytes -= pixels.nbytes if kept else 0
        return kept

    def _boxes(self, position: int) -> tuple[Tensor, Tensor]:
        """Return boxes in pixels of the image, and their labels; of crowds only if asked for."""
        annotated = self.split.boxes[position]
        crowd = torch.from_numpy(annotated.crowd)
        labels = torch.from_numpy(annotated.labels).masked_fill(crowd, CROWD)
        used = ~crowd | self.crowds
        return torch.from_numpy(annotated.xyxy)[used], labels[used]


def _scaled(image: Labelled, factors: tuple[float, float], extent: tuple[int, int]) -> Labelled:
    """Return a fitted image with its boxes scaled too, and cut at its ``extent`` (x, y)."""
    # In double precision, as the boxes of files are, and their factors.
    scaled = (image.boxes * torch.tensor([*factors, *factors], dtype=torch.float64)).float()
    boxes = clip_boxes_to_image(scaled, (extent[1], extent[0]))
    # RetinaNet refuses boxes of no size, which float32 can make of very thin ones.
    used = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Labelled(image.pixels, boxes[used], image.labels[used])


def mirror(image: Labelled, width: int, height: int) -> Labelled:
    """Mirror the upper left ``width`` x ``height`` pixels, the image without its padding."""
    mirrored = image.pixels.clone()
    mirrored[:, :height, :width] = image.pixels[:, :height, :width].flip(-1)
    left, top, right, bottom = image.boxes.unbind(dim=1)
    boxes = torch.stack((width - right, top, width - left, bottom), dim=1)
    return Labelled(mirrored, boxes, image.labels)


def collate(samples: Sequence[Sample]) -> Batch:
    """Return images and targets, each in a list, as torchvision's detectors take them.

    Images stay ``uint8[3, H, W]``: the detector's transform divides them by 255 where it runs, so
    that a quarter of the bytes goes through processes and to the device.
    """
    return [pixels for pixels, _ in samples], [target for _, target in samples]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches, or 1 if there are fewer images than one batch."""
    return max(1, num_images // batch_size)


def epoch_batches(
    num_images: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    flip: bool,
    augmentation: Augmentation = NONE,
    repeats: Sequence[float] = (),
) -> list[list[Draw]]:
    """Shuffle one epoch into full batches; the images left over wait for another epoch.

    Args:
        num_images: Images of the split.
        batch_size: Images per batch; a smaller split makes one batch of all its images.
        seed: Seed of the run.
        epoch: Number of the epoch.
        flip: Whether every image is mirrored with probability 1/2.
        augmentation: How images are changed otherwise.
        repeats: How often every image is shown, relative to others; all alike if empty.
    """
    chance = np.random.default_rng((seed, epoch))
    order = chance.permutation(num_images).tolist()
    if len(repeats):
        order = repeated(repeats, chance)
    flips = (chance.random(num_images) < 0.5).tolist()
    mirrored = [flip and flips[position] for position in order]
    draws = drawn(order, mirrored, augmentation, num_images, chance)
    steps = steps_per_epoch(num_images, batch_size)
    return [draws[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


def endless_batches(
    num_images: int,
    batch_size: int,
    *,
    seed: int,
    flip: bool,
    augmentation: Augmentation = NONE,
    repeats: Sequence[float] = (),
    start_step: int = 0,
) -> Iterator[list[Draw]]:
    """Yield the batches of one epoch after the other, from step ``start_step`` of the run on."""
    first, done = divmod(start_step, steps_per_epoch(num_images, batch_size))
    for epoch in count(first):
        batches = epoch_batches(
            num_images,
            batch_size,
            seed=seed,
            epoch=epoch,
            flip=flip,
            augmentation=augmentation,
            repeats=repeats,
        )
        yield from islice(batches, done if epoch == first else 0, None)


@dataclass(frozen=True)
class Loading:
    """Which processes load the images of the batches; what is in a batch does not depend on it.

    Attributes:
        num_workers: Processes that load images; 0 loads them in this one.
        prefetch: Batches that each of them keeps ready.
        shard: Number of this training process and how many there are; each gets its images of
            every batch.
    """

    num_workers: int = 0
    prefetch: int = 2
    shard: tuple[int, int] = (0, 1)


IN_THIS_PROCESS = Loading()


def training_batches(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    loading: Loading = IN_THIS_PROCESS,
) -> Iterator[Batch]:
    """Yield training batches without end; they depend on the seed and the step only.

    A run that stopped after ``n`` steps continues with ``start_step=n``, in the middle of an epoch
    too, and with any number of workers.

    Args:
        dataset: The images.
        batch_size: Images per batch, of all processes together.
        seed: Seed of the run.
        start_step: Batches to leave out.
        loading: Processes that load, and which images of every batch are this process's.
    """
    draws = endless_batches(
        len(dataset),
        batch_size,
        seed=seed,
        flip=dataset.flip,
        augmentation=dataset.augmentation,
        repeats=dataset.repeats,
        start_step=start_step,
    )
    number, count = loading.shard
    shares = (
        batch[number * len(batch) // count : (number + 1) * len(batch) // count] for batch in draws
    )
    return _load(dataset, shares, loading)


def _load(
    dataset: DetectionDataset, batches: Iterable[list[Draw]], loading: Loading
) -> Iterator[Batch]:
    if not loading.num_workers:
        yield from (collate([dataset[index] for index in batch]) for batch in batches)
        return
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=loading.num_workers,
        prefetch_factor=loading.prefetch,
        pin_memory=torch.cuda.is_available(),  # copies to the GPU do not wait then
        collate_fn=collate,
        # Without a generator the loader would draw from the run's random numbers.
        generator=torch.Generator(),
    )
    try:
        yield from loader
    except AdaptError as error:
        # A worker's error arrives with its traceback inside the message.
        message = str(error).strip().rpartition(f"{AdaptError.__name__}: ")[2]
        # It refers to the frame it was raised in, and that to it. The garbage collector would take
        # that circle, with the loader in it, apart in an order in which workers hang for 5 s.
        error.__traceback__ = None
        raise AdaptError(message) from None
