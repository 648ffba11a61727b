import hashlib
import sys
import types
from collections import Counter

import pytest
from profile_parts import SIZE
from simulated_cuda import NAME
from simulated_gpu import simulated_gpu

import bench.latency.nvml
from bench.latency.backend import OrtBackend, TensorRTBackend, conditions
from bench.latency.nvml import nvml as library
from bench.latency.provenance import (
    DeviceState,
    cpu_machine,
    cpu_state,
    device_description,
    gpu_description,
    gpu_machine,
    gpu_state,
)
from bench.latency.timing import PROTOCOL


class NVMLError(Exception):
    pass


def refuse(*_):
    raise NVMLError


def fake_nvml(**changes):
    """NVIDIA's library on an A100 that meets its power limit."""
    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: f"gpu{index}",
        "nvmlDeviceGetName": lambda gpu: "NVIDIA A100-SXM4-80GB",
        "nvmlDeviceGetUUID": lambda gpu: "GPU-1234",
        "nvmlSystemGetDriverVersion": lambda: "570.86",
        "nvmlSystemGetCudaDriverVersion": lambda: 12080,
        "nvmlDeviceGetClockInfo": lambda gpu, kind: 1410,
        "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: 1410,
        "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 400_000,
        "nvmlDeviceGetTemperature": lambda gpu, kind: 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: 0b0101,  # idle, power cap
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlClocksThrottleReasonSwPowerCap": 0b0100,
        "nvmlClocksThrottleReasonHwSlowdown": 0b1000,
        "nvmlClocksThrottleReasonSwThermalSlowdown": 0b100000,
    }
    return types.SimpleNamespace(**{**functions, **changes})


@pytest.fixture(autouse=True)
def _library_is_asked_anew():
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture
def nvml(monkeypatch):
    def install(**changes):
        library.cache_clear()
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**changes))
        monkeypatch.setattr(bench.latency.nvml.torch.cuda, "is_available", lambda: False)

    return install


def test_the_real_library_has_every_name_that_is_used():
    import pynvml

    assert [name for name in vars(fake_nvml()) if not hasattr(pynvml, name)] == []


def test_a_gpu_is_described_without_its_uuid(nvml):
    nvml()
    found = gpu_description()
    assert found == {
        "name": "NVIDIA A100-SXM4-80GB",
        "uuid_hash": hashlib.sha256(b"GPU-1234").hexdigest()[:16],
        "driver": "570.86",
        "cuda": "12.8",
        "sm_clock_mhz": 1410,
        "max_sm_clock_mhz": 1410,
        "power_limit_w": 400,
    }
    assert device_description()["gpu"] == found


def test_driver_and_power_limit_are_conditions(nvml):
    nvml()
    machine = gpu_machine("NVIDIA A100-SXM4-80GB")
    assert (machine.driver, machine.cuda, machine.power_limit_w) == ("570.86", "12.8", 400)


def test_throttling_has_its_reason_and_idle_is_none(nvml):
    nvml()
    state = gpu_state()
    assert (state.clock_mhz, state.temperature_c, state.throttled) == (1410, 61, "power cap")
    nvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 0b0001)
    assert gpu_state().throttled == ""


def test_what_a_gpu_does_not_tell_is_left_out(nvml):
    nvml(nvmlDeviceGetEnforcedPowerLimit=refuse, nvmlDeviceGetTemperature=refuse)
    assert "power_limit_w" not in gpu_description()
    assert gpu_state().temperature_c is None


def test_without_a_driver_there_is_no_gpu(nvml):
    nvml(nvmlInit=refuse)
    assert gpu_description() == {}
    assert gpu_state() == DeviceState(throttled="unknown")


FUNCTIONS = [name for name in vars(fake_nvml()) if name.startswith("nvml") and name[4].isupper()]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "Reason" not in name])
def test_whatever_a_gpu_does_not_tell_nothing_fails(nvml, name):
    nvml(**{name: refuse})
    assert gpu_machine("a GPU").device == "a GPU"
    gpu_state()


def test_a_gpu_that_does_not_tell_its_throttling_is_not_called_unthrottled(nvml):
    nvml(nvmlDeviceGetCurrentClocksThrottleReasons=refuse)
    state = gpu_state()
    assert (state.clock_mhz, state.throttled) == (1410, "unknown")
    assert not state.slowed


@pytest.mark.parametrize(
    ("bits", "slowed", "capped"),
    [(0b0101, False, True), (0b1000, True, False), (0b100100, True, True), (0b0001, False, False)],
)
def test_heat_and_faults_slow_a_gpu_and_a_power_cap_is_how_it_is_run(nvml, bits, slowed, capped):
    nvml(nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: bits)
    state = gpu_state()
    assert (state.slowed, state.capped) == (slowed, capped)


def test_the_library_is_initialised_once(nvml):
    calls = Counter()
    nvml(nvmlInit=lambda: calls.update(["init"]))
    for _ in range(100):
        gpu_state()
    gpu_description()
    assert calls["init"] == 1


def test_processor_and_governor_are_no_conditions_of_a_gpu(nvml):
    nvml()
    machine = gpu_machine("a GPU")
    assert (machine.cores, machine.governor) == (0, "")


BACKEND = TensorRTBackend("tensorrt", "fp16")


def test_a_slice_has_the_sensors_of_its_board_and_its_profile_is_a_condition():
    with simulated_gpu(mig=True):
        found, state = gpu_description(), gpu_state()
        assert (found["name"], found["power_limit_w"]) == (f"{NAME} MIG 3g.20gb", 400)
        assert state == DeviceState(1410, 40, "")
        assert gpu_machine(NAME).device == f"{NAME} MIG 3g.20gb"
        sliced = conditions(BACKEND, SIZE)
    library.cache_clear()
    with simulated_gpu():
        whole = conditions(BACKEND, SIZE)
    assert (sliced.device, whole.device) == (f"{NAME} MIG 3g.20gb", NAME)


def test_tables_of_tensorrt_are_told_from_those_between_lighter_convolutions():
    with simulated_gpu():
        assert conditions(BACKEND, SIZE).protocol == PROTOCOL + 1
    assert conditions(OrtBackend("ort-cpu"), SIZE).protocol == PROTOCOL


def test_a_gpu_without_the_library_is_measured_with_unknown_sensors():
    with simulated_gpu(nvml=False):
        assert conditions(BACKEND, SIZE).driver == ""
        assert BACKEND.state() == DeviceState(throttled="unknown")


def test_a_gpu_that_is_counted_and_does_not_start_is_left_out(monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    with simulated_gpu():
        monkeypatch.setattr("torch.cuda.get_device_properties", lost)
        assert "name" not in gpu_description()
        assert gpu_state().clock_mhz is None
        assert device_description()["device"]
        monkeypatch.undo()


def test_this_processor_is_described():
    description = device_description()
    machine = cpu_machine()
    assert description["device"] == machine.device
    assert 1 <= machine.cores <= description["cores"]
    assert None not in description.values()
    assert cpu_state().throttled == ""
