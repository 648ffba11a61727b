"""How does a split become training batches?"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.ops import clip_boxes_to_image

from adapt.data.annotated_image import read_image
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize, fit
from adapt.errors import AdaptError

Target = dict[str, Tensor]
Sample = tuple[Tensor, Target]
Batch = tuple[list[Tensor], list[Target]]
Index = tuple[int, bool]  # position of the image in the split, and whether it is mirrored


class DetectionDataset(Dataset[Sample]):
    """Images of a split, fitted into the detector's input, with their boxes.

    An index is a position, or a position and whether to mirror the image. A sample depends on its
    index only: :func:`epoch_batches` draws the random numbers. Images without boxes stay, as
    negatives.

    Args:
        split: Images and boxes.
        size: The detector's input.
        flip: Whether :func:`training_batches` mirrors half of the images.
        cache_mb: Megabytes of fitted images to keep in memory, in every process that loads.
    """

    def __init__(
        self, split: CocoSplit, size: InputSize, *, flip: bool = False, cache_mb: float = 0
    ) -> None:
        self.split = split
        self.size = size
        self.flip = flip
        self._free_bytes = int(cache_mb * 2**20)
        self._cache: dict[int, tuple[Tensor, tuple[float, float]]] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int | Index) -> Sample:
        """Return an image and its target.

        Returns:
            ``uint8[3, H, W]``, and ``boxes`` (``float32[N, 4]``, xyxy in input pixels, no crowds),
            ``labels`` (``int64[N]``), ``image_id`` (``int64[]``) and ``factors`` (``float32[2]``,
            x and y from image to input).

        Raises:
            AdaptError: If the image cannot be read.
        """
        position, flipped = index if isinstance(index, tuple) else (index, False)
        image = self.split.images[position]
        pixels, factors = self._fitted(position)
        width, height = round(image.width * factors[0]), round(image.height * factors[1])
        boxes, labels = self._boxes(position, factors, width, height)
        if flipped:
            pixels, boxes = mirror(pixels, boxes, width, height)
        return pixels, {
            "boxes": boxes,
            "labels": labels,
            "image_id": torch.tensor(image.id),
            "factors": torch.tensor(factors),
        }

    def _fitted(self, position: int) -> tuple[Tensor, tuple[float, float]]:
        if position in self._cache:
            return self._cache[position]
        pixels, factors = fit(read_image(self.split.images[position]), self.size)
        if pixels.nbytes <= self._free_bytes:
            self._free_bytes -= pixels.nbytes
            self._cache[position] = pixels, factors
        return pixels, factors

    def _boxes(
        self, position: int, factors: tuple[float, float], width: int, height: int
    ) -> tuple[Tensor, Tensor]:
        annotated = self.split.boxes[position]
        scaled = torch.from_numpy(annotated.xyxy * (*factors, *factors)).float()
        boxes = clip_boxes_to_image(scaled, (height, width))
        # RetinaNet refuses boxes of no size, which float32 can make of very thin ones.
        used = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & torch.from_numpy(~annotated.crowd)
        return boxes[used], torch.from_numpy(annotated.labels)[used]


def mirror(pixels: Tensor, boxes: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Mirror the upper left ``width`` x ``height`` pixels, the image without its padding."""
    mirrored = pixels.clone()
    mirrored[:, :height, :width] = pixels[:, :height, :width].flip(-1)
    left, top, right, bottom = boxes.unbind(dim=1)
    return mirrored, torch.stack((width - right, top, width - left, bottom), dim=1)


def collate(samples: Sequence[Sample]) -> Batch:
    """Return images as ``float32[3, H, W]`` in [0, 1], and their targets, as torchvision takes."""
    return [pixels / 255 for pixels, _ in samples], [target for _, target in samples]


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of full batches, or 1 if there are fewer images than one batch."""
    return max(1, num_images // batch_size)


def epoch_batches(
    num_images: int, batch_size: int, *, seed: int, epoch: int, flip: bool
) -> list[list[Index]]:
    """Shuffle one epoch into full batches; the images left over wait for another epoch.

    Args:
        num_images: Images of the split.
        batch_size: Images per batch; a smaller split makes one batch of all its images.
        seed: Seed of the run.
        epoch: Number of the epoch.
        flip: Whether every image is mirrored with probability 1/2.
    """
    chance = np.random.default_rng((seed, epoch))
    order = chance.permutation(num_images).tolist()
    flips = (chance.random(num_images) < 0.5).tolist()
    indices = [(position, flip and flips[position]) for position in order]
    steps = steps_per_epoch(num_images, batch_size)
    return [indices[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


def endless_batches(
    num_images: int, batch_size: int, *, seed: int, flip: bool, start_step: int = 0
) -> Iterator[list[Index]]:
    """Yield the batches of one epoch after the other, from step ``start_step`` of the run on."""
    first, done = divmod(start_step, steps_per_epoch(num_images, batch_size))
    for epoch in count(first):
        batches = epoch_batches(num_images, batch_size, seed=seed, epoch=epoch, flip=flip)
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
    indices = endless_batches(
        len(dataset), batch_size, seed=seed, flip=dataset.flip, start_step=start_step
    )
    number, count = loading.shard
    shares = (
        batch[number * len(batch) // count : (number + 1) * len(batch) // count]
        for batch in indices
    )
    return _load(dataset, shares, loading)


def _load(
    dataset: DetectionDataset, batches: Iterable[list[Index]], loading: Loading
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
