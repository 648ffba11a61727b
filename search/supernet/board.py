"""How is a report of a search drawn in TensorBoard?"""

from typing import TYPE_CHECKING

from search.train.log import Entry, draw_scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CURVES = (
    "weight_loss",
    "arch_loss",
    "lr",
    "expected_cost",
    "argmax_cost",
    "target",
    "cost_weight",
    "op_entropy",
    "width_entropy",
)


def draw_search(board: "SummaryWriter", entry: Entry) -> None:
    """Draw an entry: curves, and the probability of every operation and width."""
    step = entry["step"]
    scalars = {name: entry[name] for name in CURVES}
    for block, groups in entry["probabilities"].items():
        for group, values in groups.items():
            scalars |= {f"{block} {group}/{label}": value for label, value in values.items()}
    for number, value in enumerate(entry["gate_scale"], start=1):
        scalars[f"gate scale/block {number}"] = value
    draw_scalars(board, scalars, step)
    board.add_text("arg max", _described(entry), step)


def _described(entry: Entry) -> str:
    blocks = [f"{block['width']}: {' '.join(block['ops'])}" for block in entry["argmax"]]
    return " | ".join(blocks)
