"""How do several processes train one detector? (shares of a batch, averaged gradients)

Gradients are averaged explicitly after the backward pass, not by DistributedDataParallel. Its hooks
expect every parameter to get a gradient once per step. Here sampled paths leave most parameters out
of a step, weights and architecture are frozen in turn, and a step may go through the network
several times. The price: the transfer of some 35 MB does not overlap with the backward pass.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adapt.errors import AdaptError

T = TypeVar("T")
BUCKET_BYTES = 25 * 2**20  # of gradients that one exchange averages
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes of a run; one process alone is a world of size 1.

    Attributes:
        rank: Number of this process.
        size: Processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls) -> "World":
        """Return the world of this process alone, on the GPU if there is one."""
        return cls(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Return the images per step of each process.

        Raises:
            AdaptError: If they cannot be shared out equally.
        """
        if batch_size % self.size:
            raise AdaptError(
                f"a batch of {batch_size} images cannot be shared out equally among {self.size} "
                "processes; choose another batch_size or number of processes"
            )
        return batch_size // self.size

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes; not finite if one is not."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.size

    def gather(self, values: Sequence[T]) -> list[T]:
        """Return the lists of all processes, joined."""
        if self.size == 1:
            return list(values)
        lists: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, list(values))
        return [value for of_process in lists for value in of_process]

    def agree(self, value: object, what: str) -> None:
        """Check that a value is the same in all processes.

        Raises:
            AdaptError: In all of them, if it is not.
        """
        if self.size == 1:
            return
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        if any(other != value for other in values):
            raise AdaptError(
                f"the processes do not agree on {what}: {values}; --out and the data must lie "
                "where all of them see the same files"
            )

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their means over all processes.

        The same parameters must have gradients everywhere: all processes sample the same paths.
        """
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat.div_(self.size), [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def same_start(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first one."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(grad.nbytes for grad in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


# What torchrun sets, with the values of a process that is alone, and what srun sets instead.
ALONE = ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that ``torchrun`` or ``srun`` started; alone without them.

    Under ``srun`` the variables ``MASTER_ADDR`` and ``MASTER_PORT`` must name the first node.

    Raises:
        AdaptError: If the processes cannot find each other.
    """
    rank, size, local_rank = (_variable(name, default) for name, default in ALONE)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise AdaptError(
                f"{size} processes were started, but {name} is not set; start them with torchrun, "
                "or export the address of the first node and a free port"
            )
    backend = "nccl" if device.type == "cuda" else "gloo"
    # NCCL guesses a rank's GPU from its number, with a warning, unless it is told.
    gpu = device if device.type == "cuda" else None
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT, device_id=gpu)
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def alone_or_refused(command: str) -> None:
    """Refuse a command that several processes would run over each other.

    Raises:
        AdaptError: If ``torchrun`` or ``srun`` started more than one.
    """
    size = _variable("WORLD_SIZE", "1")
    if size > 1:
        raise AdaptError(
            f"{size} processes started `{command}`, which is one process's work; run its stages "
            "one by one, `adapt search` and `adapt finetune` with several processes"
        )


def _variable(name: str, default: str) -> int:
    """Return a variable of ``torchrun``, or its counterpart of ``srun``."""
    # srun starts one process per task; inside an sbatch script alone there is no step.
    slurm = os.environ.get(_SLURM[name], default) if "SLURM_STEP_ID" in os.environ else default
    return int(os.environ.get(name, slurm))
