"""How is a derived detector trained from mapped parameters?"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture, mobilenet_v2
from adapt.artifacts import content_hash, file_hash, make_folder
from adapt.data.coco import CocoSplit
from adapt.data.dataset import training_batches
from adapt.detector.file import DetectorInfo, save_detector
from adapt.mapping.pretrained import MappingReport, map_backbone
from adapt.network.backbone import Backbone
from adapt.network.weights import source_backbone
from adapt.progress import Progress, silent
from search.recipe.recipe import Recipe
from search.train.checkpoint import Clock, RandomState, resume, save_checkpoint
from search.train.heap import freed_memory_kept
from search.train.placement import place
from search.train.step import (
    Stepper,
    build_optimizer,
    build_scheduler,
    check_shares,
    detection_loss,
    divergence_saved,
    divided,
    training_dataset,
)
from search.train.world import World


def resolve_architecture(name_or_path: str, recipe: Recipe) -> Architecture:
    """Return the source's own architecture by name, or read one of the recipe's space.

    Raises:
        AdaptError: If the file is missing, malformed or of another search space.
    """
    if name_or_path == "mobilenet_v2":
        return mobilenet_v2()
    path = Path(name_or_path)
    architecture = Architecture.load(path)
    architecture.check_fits(recipe.space.load(), path)
    return architecture


def initial_detector(recipe: Recipe, info: DetectorInfo) -> tuple[RetinaNet, MappingReport | None]:
    """Build a detector whose backbone has the source's parameters mapped onto it.

    Returns:
        The detector, and what was copied; None if the recipe asks for scratch.
    """
    torch.manual_seed(recipe.seed)
    model = info.build()
    if recipe.init == "scratch":
        return model, None
    how = recipe.finetune
    weights = Path(recipe.weights) if recipe.weights else None
    body = model.backbone.body
    assert isinstance(body, Backbone)
    report = map_backbone(
        source_backbone(info.architecture.source, weights),
        body,
        mode=how.mapping,
        noise=how.mapping_noise,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    return model, report


def total_steps(recipe: Recipe, images: int, limit_steps: int | None = None) -> int:
    """Return the steps of a fine-tuning on ``images`` training images."""
    steps = recipe.finetune.epochs * recipe.finetune.steps_per_epoch(images)
    return steps if limit_steps is None else min(steps, limit_steps)


def run_finetune(
    recipe: Recipe,
    architecture: Architecture,
    train: CocoSplit,
    path: Path,
    *,
    progress: Progress = silent,
    limit_steps: int | None = None,
    provenance: dict[str, Any] | None = None,
    world: World | None = None,
) -> Path:
    """Map, train, and write the detector to ``path``.

    Checkpoints beside ``path`` are written after every epoch, and in between by the clock; the same
    call resumes from the last one, with another number of processes too.

    Args:
        recipe: Numbers of the training.
        architecture: The backbone.
        train: Training images.
        path: The detector file to write.
        progress: Told after every step.
        limit_steps: Stop after this many steps.
        provenance: Where the architecture comes from.
        world: The processes that train together; this one alone if None.

    Raises:
        AdaptError: If weights are missing, the loss diverges, or ``path`` has another run's
            checkpoint.
    """
    make_folder(path.parent)  # before hours of work, not after
    config = recipe.detector_config(len(train.class_names))
    info = DetectorInfo(architecture, config, recipe.input, train.class_names)
    model, report = initial_detector(recipe, info)
    world = world or World.alone()
    model = place(model, recipe.compute, world).train()
    saved = divergence_saved(path.with_suffix(".diverged.json"), train, world)
    with freed_memory_kept(world.device), saved:
        _train(recipe, model, info, train, path, progress, limit_steps, world)
    if not world.is_main:
        return path
    save_detector(
        path,
        model,
        info,
        recipe=recipe.to_dict(),
        copied_share=report.share if report else 0.0,
        provenance=provenance or {},
    )
    path.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
    return path


def _train(
    recipe: Recipe,
    model: RetinaNet,
    info: DetectorInfo,
    train: CocoSplit,
    path: Path,
    progress: Progress,
    limit_steps: int | None,
    world: World,
) -> None:
    how, compute = recipe.finetune, recipe.compute
    parameters = list(model.parameters())
    optimizer = build_optimizer(parameters, how)
    steps_per_epoch = how.steps_per_epoch(len(train))
    scheduler = build_scheduler(optimizer, how, steps_per_epoch)
    stepper = Stepper(optimizer, parameters, how.clip_norm, compute.amp, world)
    parts = {
        "detector": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": stepper.scaler,
        "random": RandomState(),
    }
    checkpoint = path.with_suffix(".checkpoint.pt")
    identity = content_hash(
        [recipe.finetune_hash, limit_steps, info.to_dict(), file_hash(train.annotations)]
    )
    start = resume(checkpoint, "finetuning", parts, identity)
    world.agree((start, identity), "the last checkpoint")
    total = total_steps(recipe, len(train), limit_steps)
    batches = training_batches(
        training_dataset(recipe, train),
        batch_size=how.batch_size,
        seed=recipe.seed,
        start_step=start,
        num_workers=recipe.data.workers,
        prefetch=compute.prefetch,
        shard=(world.rank, world.size),
    )
    check_shares(how, len(train), world)
    clock = Clock(compute.checkpoint_minutes)
    for step in range(start, total):
        batch = next(batches)
        losses = (
            (share, partial(detection_loss, model, part, world.device))
            for share, part in divided(batch, how.accumulate)
        )
        value = stepper.step(losses, batch)
        scheduler.step()
        progress(step + 1, total, f"loss {value:.3f}")
        due = (step + 1) % steps_per_epoch == 0 or clock.due()
        if world.is_main and due and step + 1 < total:
            save_checkpoint(checkpoint, "finetuning", parts, step=step + 1, identity=identity)
