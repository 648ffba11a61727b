import hashlib
import sys
import types

import pytest

import bench.latency.provenance
from bench.latency.provenance import (
    cpu_machine,
    cpu_state,
    device_description,
    gpu_description,
    gpu_machine,
    gpu_state,
)


class NVMLError(Exception):
    pass


def refuse(*_):
    raise NVMLError


def fake_nvml(**changes):
    """NVIDIA's library on an A100 that meets its power limit."""
    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
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


@pytest.fixture
def nvml(monkeypatch):
    def install(**changes):
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**changes))
        monkeypatch.setattr(bench.latency.provenance.torch.cuda, "is_available", lambda: False)

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
    assert gpu_state() == bench.latency.provenance.UNKNOWN_STATE


def test_this_processor_is_described():
    description = device_description()
    machine = cpu_machine()
    assert description["device"] == machine.device
    assert 1 <= machine.cores <= description["cores"]
    assert None not in description.values()
    assert cpu_state().throttled == ""
