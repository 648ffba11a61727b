from dataclasses import replace

import numpy as np
import pytest
from core_parts import once
from export_parts import INFO, dynamic, exported, saved, small_detector

from adapt.cost.units import detector_units, madds
from adapt.data.coco import load_split
from adapt.data.images import Fitting
from adapt.data.synthetic import generate
from adapt.errors import AdaptError
from bench.latency.timing import Protocol
from bench.networks.evaluation import evaluate_artifact, evaluate_runner
from bench.networks.measure import Timing, compare
from export.graph.detector import export_detector
from export.graph.options import GraphOptions
from export.run.inference import ImageDetections, Runner
from export.run.runner import open_runner

QUICK = Protocol(rounds=2, round_ms=1, retries=0)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = generate(tmp_path_factory.mktemp("data") / "set", train=1, val=4)
    split = load_split(root, "val")
    # The small detector of the export tests has classes of its own; only their names differ.
    return type(split)(**{**vars(split), "class_names": INFO.classes})


class Oracle(Runner):
    """A runner that knows the boxes of a split and finds them all, moved by ``error`` pixels."""

    def __init__(self, split, error=0.0):
        self.info = INFO
        self.fitting = Fitting.trained(INFO.input)
        self.shapes = []
        self._error = error
        self._answers = iter(zip(split.images, split.boxes, strict=True))

    def infer(self, images):
        self.shapes.append((images.shape, images.dtype, float(images.min()), float(images.max())))
        image, boxes = next(self._answers)
        factor = min(INFO.input.height / image.height, INFO.input.width / image.width)
        corners = (boxes.xyxy * factor + self._error).astype(np.float32)
        return [ImageDetections(corners, np.ones(len(boxes), np.float32), boxes.labels)]

    def heads(self, images):
        raise NotImplementedError

    def bind(self, images):
        raise NotImplementedError

    def describe(self):
        raise NotImplementedError


def test_boxes_come_back_into_the_original_image(split):
    metrics, detections = evaluate_runner(Oracle(split), split)
    assert metrics.ap == pytest.approx(1.0)
    for found, boxes in zip(detections, split.boxes, strict=True):
        np.testing.assert_allclose(found.boxes, boxes.xyxy, atol=0.01)


def test_misplaced_boxes_score_nothing(split):
    metrics, _ = evaluate_runner(Oracle(split, error=80.0), split)
    assert metrics.ap == pytest.approx(0.0)


def test_a_runner_gets_one_letterboxed_image_of_bytes(split):
    oracle = Oracle(split)
    evaluate_runner(oracle, split)
    for shape, dtype, low, high in oracle.shapes:
        assert shape == (1, 3, INFO.input.height, INFO.input.width)
        assert dtype == np.uint8
        assert high - low > 100


def test_other_classes_are_refused_by_name(split):
    other = type(split)(**{**vars(split), "class_names": ("cat", "dog", "bird")})
    with pytest.raises(
        AdaptError, match=r"boxes of .*bird, the detector has .* circle, square, star"
    ):
        evaluate_runner(Oracle(split), other)


@pytest.fixture(scope="module")
def result(split, exports):
    """The same small detector on two runtimes."""
    artifacts = {"eager": ("torch", saved(exports)), "deployed": ("ort-cpu", exported(exports))}
    steps = []
    result = compare(
        artifacts, split, Timing(protocol=QUICK), progress=lambda *step: steps.append(step[:2])
    )
    assert steps == [(done, 12) for done in range(1, 13)]  # 2 x (4 images + 2 rounds)
    return result


def test_the_same_detector_has_the_same_ap_on_two_runtimes(result):
    eager, deployed = result.entries
    assert eager.metrics.ap == pytest.approx(deployed.metrics.ap, abs=1e-3)
    assert (eager.name, deployed.name) == ("eager", "deployed")
    assert deployed.runner["runtime"] == "ort-cpu"


def test_cost_and_size_describe_the_whole_detector(result):
    for entry in result.entries:
        units = detector_units(INFO.architecture, INFO.detector, INFO.input)
        assert entry.madds == sum(map(madds, units))
        assert entry.params == sum(p.numel() for p in INFO.build().parameters())
        assert entry.size_mb == entry.artifact.stat().st_size / 1e6
        assert entry.latency.min_ms > 0


def test_classes_are_matched_by_name_whatever_their_order(split):
    order = [2, 0, 1]
    labels = np.argsort(order)
    other = replace(
        split,
        class_names=tuple(INFO.classes[label] for label in order),
        boxes=tuple(replace(boxes, labels=labels[boxes.labels]) for boxes in split.boxes),
    )
    assert evaluate_runner(Oracle(split), other)[0].ap == pytest.approx(1.0)


def test_evaluation_counts_as_many_detections_as_the_detector_returns(split):
    oracle = Oracle(split)
    oracle.info = replace(INFO, detector=replace(INFO.detector, detections=300))
    assert evaluate_runner(oracle, split)[0].max_detections == 300


def test_nothing_to_compare_is_refused(split):
    with pytest.raises(AdaptError, match="at least one artifact"):
        compare({}, split)


@pytest.fixture(scope="module")
def pairs(exports):
    """The small detector as a graph of exactly two images."""

    def export(path):
        export_detector(small_detector(), INFO, path, GraphOptions(batch=2), provenance={})

    return once(exports / "pairs.onnx", export)


def test_a_fixed_batch_is_evaluated_to_the_last_image_and_timed_as_it_is(split, exports, pairs):
    odd = split.limit(3)  # its last image does not fill a batch
    artifacts = {"eager": ("torch", saved(exports)), "pairs": ("ort-cpu", pairs)}
    eager, fixed = compare(artifacts, odd, Timing(batch=3, protocol=QUICK)).entries
    assert fixed.metrics.ap == pytest.approx(eager.metrics.ap, abs=1e-3)
    assert (eager.batch, fixed.batch) == (3, 2)  # as told, where the file is free
    assert fixed.metrics == evaluate_artifact(pairs, odd)


def test_a_dynamic_batch_is_timed_at_what_was_asked_for_and_no_more(split, exports):
    artifacts = {"free": ("ort-cpu", dynamic(exports))}
    (entry,) = compare(artifacts, split, Timing(batch=4, protocol=QUICK)).entries
    assert entry.batch == 4
    with pytest.raises(AdaptError, match=r"takes images of shape 1-4x.*got 5x.*export"):
        compare(artifacts, split, Timing(batch=5, protocol=QUICK))


def test_evaluation_takes_all_cores_and_timing_the_threads_that_were_asked_for(
    split, exports, monkeypatch
):
    opened = []

    def spy(runtime, artifact, threads=1):
        opened.append(threads)
        return open_runner(runtime, artifact, threads)

    for module in ("evaluation", "measure"):
        monkeypatch.setattr(f"bench.networks.{module}.open_detector", spy)
    monkeypatch.setattr("bench.networks.measure.usable_cores", lambda: 3)
    compare({"graph": ("ort-cpu", exported(exports))}, split, Timing(1, protocol=QUICK))
    assert opened == [3, 1]
