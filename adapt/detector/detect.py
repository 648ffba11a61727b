"""What does a detector in PyTorch find in the images of a split?"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet

from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch, DetectionDataset, Index, collate
from adapt.data.evaluate import Detections, detections_to_original


def batches_of(
    images: DetectionDataset, positions: Sequence[int], size: int, workers: int = 0
) -> Iterable[Batch]:
    """Return images, as they are and in this order, in batches; the last one may be smaller.

    Args:
        images: Images, fitted into the detector's input.
        positions: Which of them.
        size: Images per batch.
        workers: Processes that load images; 0 loads in this one.
    """
    order: list[list[Index]] = [
        [(position, False) for position in positions[start : start + size]]
        for start in range(0, len(positions), size)
    ]
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),  # or the loader draws from the run's random numbers
    )


@torch.no_grad()
def detect(
    model: RetinaNet, batches: Iterable[Batch], split: CocoSplit, device: torch.device
) -> list[Detections]:
    """Return a detector's detections, in pixels of the original images.

    Args:
        model: The detector, in evaluation mode.
        batches: Images of the split, fitted into the detector's input.
        split: The split.
        device: Where the model is.
    """
    sizes = {image.id: (image.width, image.height) for image in split.images}
    detections = []
    for images, targets in batches:
        outputs: list[dict[str, Tensor]] = model([image.to(device) for image in images])
        for target, output in zip(targets, outputs, strict=True):
            number = int(target["image_id"])
            boxes, scores, labels = (output[name].cpu() for name in ("boxes", "scores", "labels"))
            boxes, inside = detections_to_original(boxes, target["factors"], *sizes[number])
            detections.append(Detections(number, boxes[inside], scores[inside], labels[inside]))
    return detections
