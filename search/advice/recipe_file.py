"""How is a recipe written so that a person can read why every setting is what it is?"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from adapt.machine import has_vnni, usable_cores
from adapt.runtime import Precision, Runtime
from search.advice.advise import Advice, grouped

GPU = ("ort-cuda", "tensorrt", "tensorrt-rtx")
SPACES = {  # preset, grid of widths that runtimes like, why
    "cpu": (
        "mobilenet_v2_slim",
        8,
        "MobileNetV2 and smaller: at half and three quarters of the source's latency, networks "
        "chosen from it beat scaled ones (docs/studies.md)",
    ),
    "gpu": ("mobilenet_v2", 16, "the pretrained backbone that is adapted"),
}
Settings = Mapping[str, Advice]


def device_kind(runtime: Runtime) -> str:
    """Return ``gpu`` or ``cpu``, what a runtime computes on."""
    return "gpu" if runtime in GPU else "cpu"


def fixed_settings(
    name: str, root: Path, recipe: Path, splits: Mapping[str, str], runtime: Runtime, target: str
) -> dict[str, Advice]:
    """Return the settings that do not depend on what the images show.

    Args:
        name: Name of the recipe.
        root: Folder of the data set.
        recipe: The recipe file, from which the folder is looked for.
        splits: Name of the split of every field of ``[data]``.
        runtime: Runtime of the deployed detector.
        target: Latency to meet; empty for that of the source.
    """
    on_gpu = device_kind(runtime) == "gpu"
    preset, grid, why = SPACES[device_kind(runtime)]
    workers = min(8, usable_cores()) if on_gpu else 0
    settings = {
        "data.root": Advice(
            os.path.relpath(root.resolve(), recipe.resolve().parent), "seen from this file"
        ),
        **{f"data.{field}": Advice(split, "") for field, split in splits.items()},
        "data.workers": Advice(workers, "processes that load images; 0 loads in the training"),
        "data.cache_mb": Advice(512, "memory for decoded images"),
        "space.preset": Advice(preset, why),
        "space.width_grid": Advice(grid, "candidate widths are multiples of this"),
        "search.choice": Advice("joint", "input and heads together with the backbone"),
        "search.cost": Advice("latency", "measured where it is run"),
    }
    if target:
        settings["search.target"] = Advice(target, "leave out for the latency of the source")
    return settings | {
        "finetune.mapping": Advice("principal", "the first channels are those that matter"),
        "finetune.optimizer": Advice("adamw", "learns from few steps without tuning"),
        "finetune.weight_decay": Advice(1e-4, "of AdamW"),
        "finetune.schedule": Advice("one-cycle", "reaches its best at the last step"),
        "finetune.warmup_steps": Advice(30, "steps until the highest learning rate"),
        "finetune.clip_norm": Advice(10.0, "largest norm of a gradient"),
        "device.runtime": Advice(runtime, "where the detector will run"),
        "device.precision": Advice(*_precision(runtime)),
        "device.threads": Advice(1, "of a runtime on the CPU"),
    }


def _precision(runtime: Runtime) -> tuple[Precision, str]:
    """Return the precision to deploy in, and why."""
    if device_kind(runtime) == "gpu":
        return "fp16", "the usual one of this runtime; int8 is possible too"
    if runtime != "ort-cpu":
        return "fp32", "the only one of this runtime"
    if not has_vnni():
        return "fp32", "this processor has no VNNI, with which int8 takes 0.6 of the time"
    return "int8", "0.6 of fp32's time on this processor; what it costs in AP is limited"


def recipe_text(name: str, settings: Settings, notes: list[str]) -> str:
    """Return a recipe as TOML.

    Args:
        name: Its name, which its results have too.
        settings: Its settings, by section and field.
        notes: What to say at its top, one line each.
    """
    lines = [f"# {note}" for note in notes]
    lines += [f"name = {_toml(name)}", "seed = 0"]
    for section, fields in grouped(settings):
        lines += ["", f"[{section}]"]
        for field, advice in fields.items():
            if len(advice.reason) > 50:
                lines += [f"# {line}" for line in _wrapped(advice.reason)]
            short = f"  # {advice.reason}" if 0 < len(advice.reason) <= 50 else ""
            lines.append(f"{field} = {_toml(advice.value)}{short}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Return a value as TOML, which JSON is for text, numbers, truth values and lists."""
    return json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, width: int = 96) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
