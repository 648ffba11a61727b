import mmap
import sys

import pytest
from export_parts import exported, images, saved

from bench.networks.footprint import Footprint, PeakMemory, footprint, measured_here

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")


def touch_and_free(megabytes):
    """Use memory of the system's own, none that an earlier test has left to the allocator."""
    with mmap.mmap(-1, megabytes * 10**6) as block:
        for _ in range(megabytes):
            block.write(bytes(10**6))


@linux
def test_the_peak_counts_what_was_freed_and_not_what_was_before():
    touch_and_free(80)
    memory = PeakMemory()
    touch_and_free(40)
    assert memory.grown_mb == pytest.approx(40, abs=4)
    assert memory.peak_mb > memory.grown_mb


@linux
def test_a_file_is_loaded_and_run_in_processes_of_their_own(exports):
    path = exported(exports)
    here = PeakMemory()
    found = footprint("ort-cpu", path, 1, images(1))
    assert found is not None
    assert found.load_ms > 0
    assert found.host_mb > path.stat().st_size / 1e6  # at least the weights
    assert found.process_mb > found.host_mb
    assert found.device_mb is None
    assert here.grown_mb < found.process_mb


def test_a_file_that_fails_there_is_a_warning_not_the_end(exports, capsys):
    wrong = images(2)  # the file takes one
    assert footprint("ort-cpu", exported(exports), 1, wrong) is None
    said = capsys.readouterr().err
    assert "load time and memory of" in said
    assert "takes images of shape" in said


def test_several_processes_are_summarised_by_median_time_and_largest_memory():
    processes = [Footprint(load, load, 9.0, None) for load in (3.0, 1.0, 8.0)]
    assert Footprint.of(processes) == Footprint(3.0, 8.0, 9.0, None)


def test_eager_pytorch_has_a_footprint_too(exports):
    assert measured_here("torch", saved(exports), 1, images(1)).load_ms > 0
