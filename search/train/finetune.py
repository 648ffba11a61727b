"""How is a derived detector fine-tuned, from mapped parameters to a detector file?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture
from adapt.artifacts import content_hash, file_hash, identity, make_place
from adapt.data.coco import CocoSplit, check_has_boxes
from adapt.data.dataset import Batch, training_batches
from adapt.detector.config import HeadKind
from adapt.detector.file import DetectorInfo, save_detector
from adapt.mapping.pretrained import MappingReport
from adapt.network.backbone import Backbone
from adapt.network.published import NETWORKS
from search.recipe.joint import setting_of
from search.recipe.recipe import Recipe
from search.recipe.schedule import Schedule
from search.train.batches import check_shares, divided, training_dataset, training_loading
from search.train.checkpoint import Checkpoint, Clock, RandomState
from search.train.kept import Kept
from search.train.log import (
    Entry,
    EpochMeans,
    LogFiles,
    draw_scalars,
    training_log,
)
from search.train.loop import checkpointed, training_guarded
from search.train.optimizer import advance, build_optimizer, build_scheduler
from search.train.placement import place
from search.train.plot import plot_training
from search.train.session import Session
from search.train.source import map_source, map_trained
from search.train.step import Stepper, detection_losses
from search.train.teacher import Teacher, TrainedFiles, check_teacher
from search.train.validation import validation_split

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSSES: dict[HeadKind, tuple[str, ...]] = {
    "retinanet": ("classification", "bbox_regression"),
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
    "ssdlite": ("classification", "bbox_regression"),
    "faster-rcnn": ("objectness", "proposal_regression", "classification", "bbox_regression"),
}
WITHOUT = TrainedFiles()
PLOT_MINUTES = 1.0  # a long training can be watched; a short one is drawn at its end


def resolve_architecture(name_or_path: str, recipe: Recipe) -> tuple[Architecture, Recipe]:
    """Return the source's architecture or a published one by name, or read one of the space.

    Returns:
        The architecture, and the recipe in the setting that it was chosen together with, if any.

    Raises:
        AdaptError: If the file is missing, malformed or of another search space.
    """
    if name_or_path in NETWORKS:
        return NETWORKS[name_or_path], recipe
    path = Path(name_or_path)
    architecture = Architecture.load(path)
    architecture.check_fits(recipe.space.load(), path)
    setting = setting_of(path, recipe.setting)
    return architecture, recipe.changed(setting.changes(), f"architecture {path}")


def initial_detector(
    recipe: Recipe,
    info: DetectorInfo,
    train: CocoSplit,
    start: Path | None = None,
    *,
    measure_lost: bool = True,
) -> tuple[RetinaNet, MappingReport | None]:
    """Build a detector whose backbone has the source's parameters mapped onto it.

    Args:
        recipe: How they are mapped.
        info: The detector.
        train: Training images.
        start: Trained detector whose parameters are mapped instead, pyramid and heads too.
        measure_lost: Whether the report is to say what the mapping lost.

    Returns:
        The detector, and what was copied; None if the recipe asks for scratch.
    """
    torch.manual_seed(recipe.seed)
    model = info.build()
    if start:
        return model, map_trained(recipe, start, model, info, train, measure_lost=measure_lost)
    if recipe.init == "scratch":
        return model, None
    body = model.backbone.body
    assert isinstance(body, Backbone)
    return model, map_source(recipe, body, train, measure_lost=measure_lost)


class Finetuning:
    """One fine-tuning: the detector with mapped parameters, its optimizer, and its steps.

    Args:
        recipe: How to train.
        info: The detector to build.
        train: Training images.
        session: The processes that train together, and a limit of their steps.
        val: Images to validate on, if the recipe asks for it.
        trained: Trained detectors to start from and to imitate.

    Attributes:
        model: The detector.
        kept: What of it will be written.
        teacher: What is imitated, if anything is.
        summands: What the loss is the sum of.
        losses: Means of the epoch so far; of ``loss`` over all processes, else of this one.
        report: What was copied from the source; None if the recipe asks for scratch.
        schedule: How many steps there are.

    Raises:
        AdaptError: If weights or boxes are missing, or a batch cannot be shared out.
    """

    def __init__(
        self,
        recipe: Recipe,
        info: DetectorInfo,
        train: CocoSplit,
        session: Session,
        val: CocoSplit | None = None,
        trained: TrainedFiles = WITHOUT,
    ) -> None:
        check_has_boxes(train)
        optimisation = recipe.finetune
        self.recipe, self.world = recipe, session.world
        self.schedule = Schedule.of_finetuning(optimisation, len(train), session.limit_steps)
        model, self.report = initial_detector(
            recipe, info, train, trained.start, measure_lost=session.measure_lost
        )
        self.model = place(model, recipe.compute, self.world).train()
        self.images = training_dataset(recipe, train)
        check_shares(optimisation, len(train), self.world)
        weights = list(self.model.parameters())
        optimizer = build_optimizer(weights, optimisation)
        steps_per_epoch = self.schedule.steps_per_epoch
        self.lr_schedule = build_scheduler(optimizer, optimisation, steps_per_epoch)
        clip_norm, amp = optimisation.clip_norm, recipe.compute.amp
        self.stepper = Stepper(optimizer, weights, clip_norm, amp, self.world)
        self.teacher = None
        if trained.teacher:
            self.teacher = Teacher(trained.teacher, info, recipe.compute, self.world)
        losses = LOSSES[info.detector.head]
        self.summands = (*losses, "teacher") if self.teacher else losses
        self.losses = EpochMeans("loss", *self.summands)
        self.kept = Kept(recipe, info, self.images, val, self.world)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        return {
            "detector": self.model,
            "optimizer": self.stepper.optimizer,
            "scheduler": self.lr_schedule,
            "scaler": self.stepper.scaler,
            "losses": self.losses,
            "random": RandomState(),
            **self.kept.parts,
        }

    def steps(self, start: int) -> Iterator[float]:
        """Take the steps from ``start`` on; yield the loss of each."""
        batches = training_batches(
            self.images,
            batch_size=self.recipe.finetune.batch_size,
            seed=self.recipe.seed,
            start_step=start,
            loading=training_loading(self.recipe, self.world),
        )
        for batch in islice(batches, self.schedule.total_steps - start):
            losses = (
                (share, partial(self._loss, share, part))
                for share, part in divided(batch, self.recipe.finetune.accumulate)
            )
            loss = self.stepper.step(losses, batch)
            self.losses.add(loss=loss)
            advance(self.lr_schedule)
            self.kept.step(self.model)
            yield loss

    def _loss(self, share: float, part: Batch) -> Tensor:
        losses = self._losses(part)
        total = torch.stack([losses[name] for name in self.summands])
        self.losses.add(share, **dict(zip(self.summands, total.detach().tolist(), strict=True)))
        return total.sum()

    def _losses(self, part: Batch) -> dict[str, Tensor]:
        """Return what is summed, each times its weight."""
        if self.teacher is None:
            return detection_losses(self.model, part, self.world.device)
        with self.teacher.compared(self.model) as found:
            losses = detection_losses(self.model, part, self.world.device)
        (distance,) = found
        return {**losses, "teacher": self.recipe.finetune.teacher_weight * distance}

    def entry(self, step: int) -> Entry:
        """Return what is worth knowing after ``step`` steps, and start the next epoch's means.

        Where the recipe asks for it, the detector is evaluated. All processes call it together.
        """
        means = {name: self.world.mean(value or 0.0) for name, value in self.losses.means().items()}
        self.losses.clear()
        epoch = self.schedule.epoch(step)
        due = self.schedule.validates(step, self.recipe.finetune.val_epochs)
        return {
            "step": step,
            "epoch": epoch,
            **means,
            **({"val_ap": self.kept.validate(self.model, epoch)} if due else {}),
            "lr": self.lr_schedule.get_last_lr()[0],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def run_finetune(
    recipe: Recipe,
    architecture: Architecture,
    train: CocoSplit,
    path: Path,
    session: Session | None = None,
    trained: TrainedFiles = WITHOUT,
) -> Path:
    """Map the pretrained parameters, train, and write the detector to ``path``.

    Its losses are in ``.training.jsonl``, ``.training.png`` and TensorBoard's ``.tensorboard``.
    Checkpoints beside ``path`` are written after every epoch, and in between by the clock; the same
    call resumes from the last one, with another number of processes too.

    Args:
        recipe: How to train.
        architecture: The backbone.
        train: Training images.
        path: The detector file to write.
        session: How it is carried out; its provenance says where the architecture comes from.
        trained: Trained detectors to start from and to imitate.

    Raises:
        AdaptError: If weights are missing, the loss diverges, a trained detector does not fit, or
            ``path`` has another run's checkpoint.
    """
    make_place(path)  # before hours of work, not after
    session = session or Session()
    config = recipe.detector_config(len(train.class_names))
    ids = tuple(number for number in train.category_ids if number is not None)
    info = DetectorInfo(architecture, config, recipe.input, train.class_names, ids)
    val = validation_split(recipe, train)
    check_teacher(recipe, trained)
    training = Finetuning(recipe, info, train, session, val, trained)
    inputs = [split.sha256 for split in (train, val) if split]
    inputs += [file_hash(file) for file in trained.files]
    checkpoint = _checkpoint(training, info, inputs, path, session)
    done = checkpoint.resume(session.world)
    # Only now: of inputs that cannot be trained on there is one sentence, the error.
    session.tell(recipe.finetune.warm_up_doubt("finetune", len(train), session.limit_steps))
    session.tell(_told_classes(training.report, trained.start))
    with training_guarded(path.with_suffix(".diverged.json"), train, session.world):
        last = _train(training, done, checkpoint, session, path)
    model, choice = training.kept.finish(training.model, training.schedule.epoch(last))
    if session.world.is_main:
        save_detector(
            path,
            model,
            info,
            recipe=recipe.to_dict(),
            copied_share=training.report.share if training.report else 0.0,
            lost_variance=training.report.lost_variance if training.report else {},
            provenance=dict(session.provenance),
            **trained.hashes,
            **({"written": choice} if choice else {}),
        )
        checkpoint.path.unlink(missing_ok=True)
    return path


def _train(
    training: Finetuning, start: int, checkpoint: Checkpoint, session: Session, path: Path
) -> int:
    """Take the steps; after every epoch, write the means of its losses. Return the last step."""
    minutes, main = training.recipe.compute.checkpoint_minutes, session.world.is_main
    lines, plot, board = (
        path.with_suffix(suffix) for suffix in (".training.jsonl", ".training.png", ".tensorboard")
    )
    plot_due = Clock(PLOT_MINUTES)
    losses, schedule, step = training.steps(start), training.schedule, start
    if validation := training.kept.validation:
        session = replace(session, progress=validation.noted(session.progress))
    with training_log(LogFiles(lines, board), start, _draw, main=main) as log:
        for step in checkpointed(losses, start, schedule, checkpoint, session, minutes):
            if not schedule.ends_epoch(step):
                continue
            entry = training.entry(step)
            if log:
                log.append(entry)
                if plot_due.due():
                    plot_training(lines, plot)
            if validation and validation.is_over:
                session.tell(validation.why_over(entry["epoch"]))
                break
        if log and lines.is_file():
            plot_training(lines, plot)
    return step


def _told_classes(report: MappingReport | None, start: Path | None) -> str:
    """Say which classes the start does not know; empty if it knows all."""
    new = report.new_classes if report else ()
    if not new:
        return ""
    return f"{start} does not know {', '.join(new)}: what detects them starts anew"


def _draw(board: "SummaryWriter", entry: Entry) -> None:
    losses = dict.fromkeys(name for names in LOSSES.values() for name in names)
    names = ("loss", *losses, "teacher", "lr", "val_ap")
    draw_scalars(board, {name: entry.get(name) for name in names}, entry["step"])


def _checkpoint(
    training: Finetuning,
    info: DetectorInfo,
    inputs: Sequence[str],
    path: Path,
    session: Session,
) -> Checkpoint:
    recipe_hash = training.recipe.finetune_hash
    built = replace(info, category_ids=None).to_dict()  # they are in the annotations' hash
    built["detector"] = identity(info.detector)
    trained = [recipe_hash, session.limit_steps, built, *inputs]
    file = path.with_suffix(".checkpoint.pt")
    return Checkpoint(
        file, "finetuning", training.parts, content_hash(trained), {}, frozenset({"losses"})
    )
