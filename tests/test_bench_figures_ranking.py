from pathlib import Path

import pytest
from core_parts import random_architecture, tiny

from adapt.architecture import Choices
from adapt.artifacts import header, write_json
from adapt.errors import AdaptError
from bench.figures.ranking import (
    VALUES,
    Agreement,
    Network,
    agreement,
    draw,
    trained_networks,
)
from search.derive.scores import Scores


def ranked(aps: list[float], rises: list[float], seed: int = 0) -> list[Network]:
    return [
        Network(f"random {n}", seed, ap, rise, None)
        for n, (ap, rise) in enumerate(zip(aps, rises, strict=True))
    ]


def by_scores(networks: list[Network]) -> Agreement:
    return agreement(networks, VALUES["scores"])


def test_networks_of_the_least_rise_are_ranked_first() -> None:
    right = ranked([50, 51, 52, 53, 54, 55], [6, 5, 4, 3, 2, 1])
    assert by_scores(right).mean == pytest.approx(1)
    assert by_scores(right).p == pytest.approx(1 / 720, abs=0.002)
    wrong = ranked([50, 51, 52, 53, 54, 55], [1, 2, 3, 4, 5, 6])
    assert by_scores(wrong).mean == pytest.approx(-1)
    assert by_scores(wrong).p == 1


def test_correlation_is_spearmans() -> None:
    found = by_scores(ranked([50, 51, 52, 53], [4, 2, 3, 1]))
    assert found.mean == pytest.approx(1 - 6 * 2 / (4 * 15))  # one pair of neighbours swapped


def test_seeds_are_compared_within_themselves_only() -> None:
    easy = ranked([70, 71, 72, 73], [14, 13, 12, 11], seed=1)
    found = by_scores(ranked([50, 51, 52, 53], [4, 3, 2, 1]) + easy)
    assert found.by_seed == {0: pytest.approx(1), 1: pytest.approx(1)}
    assert found.networks == 8
    assert found.p == pytest.approx(1 / 24**2, abs=0.002)


def test_too_few_networks_say_nothing() -> None:
    with pytest.raises(AdaptError, match="no seed has 4 networks to rank"):
        by_scores(ranked([50, 51, 52], [3, 2, 1]))


def study_of(folder: Path, aps: dict[int, float]) -> Path:
    """The files that a study leaves: scores of seed 7 and one training per draw."""
    space = tiny()
    scores = Scores(
        ops=tuple(
            tuple(
                tuple(0.1 * index for index in range(len(block.candidates(position))))
                for position in range(block.num_ops)
            )
            for block in space.blocks
        ),
        widths=tuple(
            tuple(1.0 * index for index in range(len(block.widths))) for block in space.blocks
        ),
        loss=1.0,
    )
    scores.save(folder / "searches" / "scores-seed7-abc" / "scores.json", space=space.to_dict())
    for number, ap in aps.items():
        network = random_architecture(space, number)
        content = header(
            "study-trial",
            arm=f"random {number}",
            seed=7,
            architecture=network.to_dict(),
            metrics={"ap": ap / 100},
        )
        write_json(folder / "trials" / f"random-{number}-seed7.json", content)
    return folder


def test_a_studys_networks_have_the_sums_of_their_choices(tmp_path: Path) -> None:
    aps = {1: 50.0, 2: 51.0, 3: 52.0, 4: 53.0}
    study, short = study_of(tmp_path / "a", aps), study_of(tmp_path / "b", {1: 40.0, 2: 41.0})
    write_json(study / "trials" / "random-1-seed7.deployment.json", {"format": "other"})
    found = trained_networks(study, short)
    assert [(one.arm, one.seed, one.ap) for one in found] == [
        (f"random {n}", 7, pytest.approx(ap)) for n, ap in aps.items()
    ]
    assert [one.short_ap for one in found] == [pytest.approx(40), pytest.approx(41), None, None]
    scores, _ = Scores.load(study / "searches" / "scores-seed7-abc" / "scores.json")
    choices = [Choices.found(random_architecture(tiny(), n), tiny()) for n in aps]
    assert [one.rise for one in found] == [scores.rise(one) for one in choices if one]
    plot = tmp_path / "plot.png"
    draw(found, {"scores": by_scores(found)}, plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="has no finished trainings; pass the folder of adapt"):
        trained_networks(tmp_path)
    study = study_of(tmp_path / "a", {1: 50.0})
    (study / "searches" / "scores-seed7-abc" / "scores.json").unlink()
    with pytest.raises(AdaptError, match="has 0 files of scores of seed 7, not one"):
        trained_networks(study)
