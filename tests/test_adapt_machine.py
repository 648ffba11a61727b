import os
from pathlib import Path

import pytest

from adapt.command_line import warn_if_busy
from adapt.machine import MEASURED, busy, has_vnni, int8_saturates, load_per_core, usable_cores
from adapt.runtime import Runtime
from search.advice.recipe_file import fixed_settings

RUNTIMES: tuple[Runtime, ...] = ("ort-cpu", "torch", "tensorrt", "ort-cuda")


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.5, False), (1.5, True)])
def test_times_that_others_make_too_long_are_told(
    share: float, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (share * usable_cores(), 9.0, 9.0))
    assert load_per_core() == pytest.approx(share)
    assert bool(busy()) == told
    assert (MEASURED in busy(MEASURED)) == told
    warn_if_busy()
    assert (
        "(1.5 programs computed per core in the last minute)" in capsys.readouterr().err
    ) == told


@pytest.mark.parametrize(
    ("machine", "flags", "vnni", "saturates"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", True, False),
        ("x86_64", "fpu avx2 avx_vnni", True, False),
        ("x86_64", "fpu avx2", False, True),
        ("aarch64", "asimd asimddp", False, False),
        ("x86_64", None, False, False),  # nobody tells
    ],
)
def test_what_a_processor_does_with_bytes_decides_the_precision_of_a_recipe(
    machine: str,
    flags: str | None,
    vnni: bool,
    saturates: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr("adapt.machine.CPU_INFO", file)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert (has_vnni(), int8_saturates()) == (vnni, saturates)
    splits = {"train": "train", "val": "val"}
    settings = {
        runtime: fixed_settings("a", tmp_path, tmp_path / "a.toml", splits, runtime, "")
        for runtime in RUNTIMES
    }
    found = {runtime: of["device.precision"].value for runtime, of in settings.items()}
    on_cpu = "int8" if vnni else "fp32"
    assert found == {"ort-cpu": on_cpu, "torch": "fp32", "tensorrt": "fp16", "ort-cuda": "fp16"}
