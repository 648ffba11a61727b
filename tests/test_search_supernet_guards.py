"""What looks like a collapse is said, and nothing else."""

import pytest
import torch
from core_parts import tiny

from search.derive.decision import entropy_share, mean_entropy
from search.supernet.guards import collapse_warnings


def distributions(skip: float = 0.0, decided_block: int | None = None):
    """Uniform probabilities, but for the skips' and for one block that has decided."""
    ops, widths = [], []
    for number, block in enumerate(tiny().blocks):
        chosen = []
        for position in range(block.num_ops):
            logits = torch.zeros(len(block.candidates(position)))
            if position:
                logits[-1] = skip
            if number == decided_block:
                logits[0] = 20
            chosen.append(logits.softmax(0))
        ops.append(chosen)
        widths.append(torch.ones(len(block.widths)) / len(block.widths))
    return ops, widths


def test_entropy_is_a_share_of_the_uniform_distributions():
    assert entropy_share(torch.ones(7) / 7) == pytest.approx(1)
    assert entropy_share(torch.eye(7)[2]) == 0
    assert entropy_share(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(0.5)
    assert mean_entropy([torch.eye(2)[0], torch.ones(3) / 3, torch.ones(1)]) == pytest.approx(0.5)


@pytest.mark.parametrize("done", [0.0, 0.2, 0.9])
def test_nothing_is_said_of_an_undecided_search(done):
    assert collapse_warnings(tiny(), *distributions(skip=-1.0), done) == []


def test_skips_that_win_are_counted_whenever_it_happens():
    for done in (0.2, 0.9):
        (warning,) = collapse_warnings(tiny(), *distributions(skip=2.0), done)
        assert warning.startswith("skip is the most probable candidate of most optional")


def test_skips_that_win_by_a_hair_are_none_of_that():
    assert collapse_warnings(tiny(), *distributions(skip=0.01), 0.2) == []


def test_a_block_that_decides_early_is_named_and_late_decisions_are_none_of_that():
    found = distributions(skip=-1.0, decided_block=1)
    (warning,) = collapse_warnings(tiny(), *found, 0.2)
    assert warning.startswith("block 2 has decided on its operations")
    assert collapse_warnings(tiny(), *found, 0.6) == []
    found[1][3] = torch.eye(2)[1]
    assert "block 4 has decided on its widths" in collapse_warnings(tiny(), *found, 0.2)[1]
