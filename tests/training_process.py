"""Runs a search or a fine-tuning of the tiny space in a process of its own.

    python training_process.py search|finetune FOLDER [STEPS]

FOLDER holds ``data`` and ``recipe.json``; the result goes to ``out`` in it. A file ``float64``
there asks for double precision: BatchNorm over a handful of values makes 1e-2 of a rounding of
1e-7, so in single precision nobody could tell a wrong sum from another order of summation. With
STEPS a file ``started`` appears once so many steps were taken, so that a test knows when to kill.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from core_parts import random_architecture

from adapt.data.coco import load_split
from adapt.progress import Progress
from search.recipe.recipe import Recipe
from search.recipe.search_cost import madds_cost
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session
from search.train.world import World, joined_world


def train(kind: str, folder: Path, out: Path, progress: Progress, world: World) -> None:
    """Run what FOLDER describes, in one thread: sums must have one order."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if (folder / "float64").exists() else torch.float32)
    recipe = Recipe.from_dict(json.loads((folder / "recipe.json").read_text()))
    data = load_split(folder / "data", "train")
    if kind == "search":
        cost = madds_cost(recipe, 3)
        run_search(recipe, data, cost, out, Session(world, progress))
    else:
        architecture = random_architecture(recipe.space.load(), seed=1)
        path = out / "d.safetensors"
        run_finetune(recipe, architecture, data, path, Session(world, progress))


def main(kind: str, folder: Path, steps: int = 0) -> None:
    taken = []

    def progress(done: int, total: int, note: str = "", /) -> None:
        taken.append(done)
        if len(taken) == steps:
            (folder / "started").write_text(str(done))

    with joined_world() as world:
        train(kind, folder, folder / "out", progress, world)


def train_apart(kind: str, folder: Path, steps: int, environment: dict[str, str]) -> None:
    """Do the same in a process that was forked, and with an environment of its own."""
    os.environ.update(environment)
    main(kind, folder, steps)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
