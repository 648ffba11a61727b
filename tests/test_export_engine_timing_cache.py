from pathlib import Path

import pytest
from export_parts import exported, half
from simulated_gpu import simulated_gpu

from adapt.errors import AdaptError
from export.engine.build import build_engine, build_plan
from export.engine.configure import BuildOptions
from export.engine.timing_cache import TimingCache, timing_cache


@pytest.fixture(scope="module")
def graphs(exports: Path) -> tuple[bytes, bytes]:
    return exported(exports).read_bytes(), half(exports).read_bytes()


@pytest.fixture
def gpu():
    with simulated_gpu("11.4.0.106") as gpu:
        yield gpu


def entries(path: Path) -> bytes:
    return path.read_bytes().partition(b"\n")[2]


def test_a_process_starts_one_builder_and_reads_its_timings_once(gpu, graphs, tmp_path):
    options = BuildOptions("tensorrt", timing_cache=tmp_path / "new" / "timings")
    for graph in (*graphs, *graphs):
        build_plan(graph, "x", options)
    calls = gpu.cuda.calls
    assert calls.count("Builder.build_serialized_network") == 4
    assert calls.count("Builder.__init__") == 1
    assert calls.count("ITimingCache.combine") == 0
    timing_cache(gpu.trt, options.timing_cache).save()
    assert len(entries(options.timing_cache)) > 100
    assert [path.name for path in options.timing_cache.parent.iterdir()] == ["timings"]


def test_an_export_says_which_timings_it_leaves(gpu, exports, tmp_path):
    options = BuildOptions("tensorrt", timing_cache=tmp_path / "timings")
    report = build_engine(exported(exports), tmp_path / "a.plan", options)
    assert report.timing_cache_sha256
    other = build_engine(exported(exports), tmp_path / "b.plan", options)
    assert other.timing_cache_sha256 == report.timing_cache_sha256


def test_what_another_process_wrote_is_taken_over(gpu, graphs, tmp_path):
    path = tmp_path / "timings"
    ours, theirs = TimingCache(gpu.trt, path), TimingCache(gpu.trt, path)
    config = ours._config
    for cache, layer in ((ours, "a"), (theirs, "b")):
        cache.attach(config)
        config.get_timing_cache()._entries.add(layer)
        cache.save()
    assert entries(path) == b'["a", "b"]'
    theirs.save()  # nothing was built since
    assert gpu.cuda.calls.count("ITimingCache.serialize") == 2


def test_writes_take_a_small_share_of_the_time(gpu, tmp_path, monkeypatch):
    seconds = iter([0.0, 0.0, 1.0, 50.0, 101.0, 101.0, 102.0])
    monkeypatch.setattr("export.engine.timing_cache.time.monotonic", lambda: next(seconds))
    cache = TimingCache(gpu.trt, tmp_path / "timings")
    written = []
    for _ in range(3):  # the first write lasts a second
        cache.attach(cache._config)
        cache.built()
        written.append(cache._saved)
    assert written == [True, False, True]


@pytest.mark.parametrize("content", [b"damaged", b"CACHE 10.3.0.26\n[]"])
def test_timings_that_cannot_be_used_are_not_overwritten(gpu, graphs, tmp_path, content):
    path = tmp_path / "timings"
    path.write_bytes(content)
    with pytest.raises(AdaptError, match="timings is damaged, or of another TensorRT or GPU"):
        build_plan(graphs[0], "x", BuildOptions("tensorrt", timing_cache=path))
    assert path.read_bytes() == content


def test_a_folder_is_no_file_of_timings(gpu, graphs, tmp_path):
    with pytest.raises(AdaptError, match="is a folder; name a file"):
        build_plan(graphs[0], "x", BuildOptions("tensorrt", timing_cache=tmp_path))
