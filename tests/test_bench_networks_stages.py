import pytest
from export_parts import exported, images, int8

from bench.networks.stages import STAGES, stage_times, summed


def event(name, microseconds):
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}


def test_times_of_nodes_are_summed_by_stage_whatever_the_runtime_calls_them():
    stages = {"conv": "backbone", "up": "pyramid", "x/Relu": "heads", "TopK": "decoding and NMS"}
    calls = [
        *(event("conv_nchwc", 3000), event("up_token_7", 2000), event("x/Relu", 1000)),
        *(event("ReorderOutput", 500), event("TopK/SomeFusion", 4000)),
    ]
    other = [{"cat": "Session", "name": "model_run", "dur": 99_000}]
    expected = dict(zip(STAGES, (3.0, 2.0, 1.5, 4.0), strict=True))
    assert summed(other + 4 * calls, stages) == pytest.approx(expected)


def test_too_many_unknown_names_tell_nothing():
    assert summed([event("conv", 800), event("what", 200)], {"conv": "backbone"}) is None
    assert summed([], {}) is None


@pytest.mark.parametrize("tail", ["tensor-nms", "onnx-nms"])
def test_a_detector_of_ours_spends_time_in_every_stage(tail, exports):
    found = stage_times(exported(exports, tail), 1, images(1))
    assert found is not None
    assert tuple(found) == STAGES
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert found["backbone"] > found["pyramid"]


def test_an_int8_file_tells_its_stages_or_nothing(exports):
    found = stage_times(int8(exports), 1, images(1))
    assert found is None or found["backbone"] > 0
