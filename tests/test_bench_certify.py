import random

import pytest
from test_bench_profiler import DETECTOR, QUICK, SIZE, SPACE

from adapt.cost_table import CostTable
from adapt.errors import AdaptError
from bench.certify import Certificate, certify, random_architecture
from bench.cost_report import summarise, table_rows, write_csv, write_heat_map
from bench.profiler import Shard, profile
from bench.timing import Protocol


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("certify") / "costs.sqlite"
    profile(SPACE, DETECTOR, SIZE, path, protocol=QUICK)
    with CostTable.open(path, writable=True) as table:
        yield table


def test_perfect_predictions_have_no_error():
    found = Certificate.of([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], drifted=0, seed=0)
    assert (found.mape, found.bias, found.worst, found.kendall_tau) == (0, 0, 0, 1)


def test_affine_error_is_taken_out_by_the_correction():
    found = Certificate.of([1.0, 2.0, 4.0], [2.5, 4.5, 8.5], drifted=0, seed=0)
    assert (found.scale, found.offset_ms) == (pytest.approx(2.0), pytest.approx(0.5))
    assert found.mape_corrected == pytest.approx(0.0, abs=1e-9)
    assert found.mape == pytest.approx((1.5 / 2.5 + 2.5 / 4.5 + 4.5 / 8.5) / 3)
    assert found.bias == pytest.approx(-found.mape)


def test_reversed_order_has_tau_minus_one():
    assert Certificate.of([3, 2, 1], [1, 2, 3], drifted=0, seed=0).kendall_tau == -1


def test_certificate_of_real_detectors_is_stored_in_the_table(table):
    found = certify(
        table, SPACE, DETECTOR, SIZE, detectors=3, protocol=Protocol(rounds=2, round_ms=2.0)
    )
    assert table.certificate == found.to_dict()
    assert found.detectors == 3
    assert summarise(table)["certificate"]["detectors"] == 3


def test_too_few_detectors_are_refused(table):
    with pytest.raises(AdaptError, match="at least 3 detectors, got 2"):
        certify(table, SPACE, DETECTOR, SIZE, detectors=2)


def test_random_architectures_fit_their_space_and_differ():
    chance = random.Random(1)
    networks = [random_architecture(SPACE, chance) for _ in range(20)]
    for network in networks:
        network.check_fits(SPACE)
    assert len({network.hash for network in networks}) > 10


def test_csv_and_heat_map_show_every_row(table, tmp_path):
    write_csv(table, tmp_path / "costs.csv")
    write_heat_map(table, tmp_path / "costs.png")
    assert len((tmp_path / "costs.csv").read_text().splitlines()) == len(table_rows(table)) + 1
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_malformed_shard_is_refused(text):
    with pytest.raises(AdaptError, match="--shard must be like 2/4"):
        Shard.parse(text)


def test_shards_partition_the_units():
    parts = [Shard(number, 4).of(range(10)) for number in (1, 2, 3, 4)]
    assert sorted(unit for part in parts for unit in part) == list(range(10))


def test_slurm_task_measures_its_part(monkeypatch):
    for name, value in (("ID", 7), ("MIN", 5), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert Shard.from_environment() == Shard(3, 4)
