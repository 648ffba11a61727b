"""Which pairs of anchor and class become candidates, in PyTorch and in ONNX Runtime."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.graph.onnx_file import GraphSignature, write_onnx
from export.graph.ranking import NOT_A_CANDIDATE, best_pairs, best_pairs_above, lowest_logit
from export.run.onnx_session import ort_session

NAMES = ("values", "anchors", "labels")


class Ranked(nn.Module):
    def __init__(self, count: int, lowest: float) -> None:
        super().__init__()
        self.count, self.lowest = count, lowest

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = best_pairs_above(logits, self.count, self.lowest)
        return found


def random_logits(anchors: int, classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, anchors, classes, generator=generator)


@pytest.mark.parametrize(
    ("count", "lowest"),
    [
        pytest.param(50, 9.0, id="none"),
        pytest.param(50, 2.0, id="few"),
        pytest.param(50, 0.0, id="more than asked for"),
        pytest.param(50, -9.0, id="all"),
        pytest.param(5000, 0.0, id="all pairs asked for"),
    ],
)
def test_onnx_ranks_the_same_pairs(count: int, lowest: float, tmp_path: Path) -> None:
    logits = random_logits(300, 3)
    expected = best_pairs_above(logits, count, lowest)
    assert (expected[0] > lowest).sum() == min(count, int((logits > lowest).sum()))
    path = tmp_path / "ranked.onnx"
    signature = GraphSignature({"logits": torch.zeros_like(logits)}, NAMES)
    write_onnx(Ranked(count, lowest), signature, {}, path)
    session = ort_session("ort-cpu", path.read_bytes(), 1)
    ranked = [torch.from_numpy(one) for one in session.run(None, {"logits": logits.numpy()})]
    real = expected[0] > lowest
    for ours, theirs in zip(ranked, expected, strict=True):
        assert ours.shape == theirs.shape == (1, min(count, 900))
        assert torch.equal(ours[real], theirs[real])
    assert (ranked[0][~real] <= lowest).all()


def test_pairs_of_the_best_anchors_below_the_limit_are_left_out() -> None:
    logits = torch.tensor([[[3.0, -5.0], [-6.0, -7.0], [1.0, 2.0]]])
    values, anchors, labels = best_pairs_above(logits, 4, 0.0)
    assert values.tolist() == [[3.0, 2.0, 1.0, NOT_A_CANDIDATE]]
    assert anchors.tolist() == [[0, 2, 2, 0]]
    assert labels.tolist() == [[0, 1, 0, 0]]


def test_the_best_pairs_are_those_of_a_whole_sort() -> None:
    logits = random_logits(200, 4, seed=1)
    values, anchors, labels = best_pairs(logits, 70)
    expected, index = logits.flatten().sort(descending=True)
    assert torch.equal(values[0], expected[:70])
    assert torch.equal(anchors[0] * 4 + labels[0], index[:70])


@pytest.mark.parametrize("threshold", [1e-6, 0.05, 0.5, 0.999])
def test_the_lowest_logit_is_a_little_below_the_threshold(threshold: float) -> None:
    lowest = torch.tensor(lowest_logit(threshold))
    assert float(lowest.sigmoid()) < threshold
    assert float((lowest + 0.01).sigmoid()) > threshold


def test_thresholds_of_all_and_nothing() -> None:
    assert lowest_logit(0.0) == -torch.inf
    assert torch.tensor(lowest_logit(1.0)).sigmoid() == 1
