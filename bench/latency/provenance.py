"""What about this machine can change a latency? (processor, GPU, driver, clocks, throttling)"""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.machine import processor_name

_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"


@dataclass(frozen=True)
class DeviceState:
    """Readings of a device at one moment; None where the machine has no such sensor.

    Attributes:
        clock_mhz: Clock of the GPU's multiprocessors, or of the first core.
        temperature_c: Temperature in degrees Celsius.
        throttled: Why the GPU is slowed down, empty if it is not.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: str = ""


UNKNOWN_STATE = DeviceState()


@dataclass(frozen=True)
class Machine:
    """What must be the same for two latencies to be comparable.

    Attributes:
        device: Model name of the processor or GPU.
        cores: Processor cores this process may use.
        governor: Frequency governor of the processor; empty where there is none.
        driver: Version of the GPU's driver; empty for a processor.
        cuda: CUDA version that the driver supports; empty for a processor.
        power_limit_w: Power limit of the GPU in watts; 0 for a processor.
    """

    device: str
    cores: int
    governor: str = ""
    driver: str = ""
    cuda: str = ""
    power_limit_w: int = 0


def cpu_machine() -> Machine:
    """Return what a latency on this processor depends on."""
    return Machine(processor_name(), usable_cores(), _first_line(f"{_CPUFREQ}/scaling_governor"))


def gpu_machine(name: str) -> Machine:
    """Return what a latency on the current GPU depends on; ``name`` is its model name."""
    gpu = gpu_description()
    return Machine(
        device=name,
        cores=usable_cores(),
        governor=_first_line(f"{_CPUFREQ}/scaling_governor"),
        driver=gpu.get("driver", ""),
        cuda=gpu.get("cuda", ""),
        power_limit_w=gpu.get("power_limit_w", 0),
    )


def device_description() -> dict[str, Any]:
    """Return all that is known of this machine, including what changes, such as its load."""
    description = {
        "device": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "governor": _first_line(f"{_CPUFREQ}/scaling_governor"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "gpu": gpu_description(),
    }
    return {name: value for name, value in description.items() if value not in (None, "", {})}


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu_description() -> dict[str, Any]:
    """Return name, driver, clocks and limits of the current GPU; empty if there is none."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        gpu = _handle(nvml)
        version = nvml.nvmlSystemGetCudaDriverVersion()
        uuid = str(nvml.nvmlDeviceGetUUID(gpu))
        description = {
            "name": nvml.nvmlDeviceGetName(gpu),
            # Reports are published: a hash tells GPUs apart and identifies none.
            "uuid_hash": hashlib.sha256(uuid.encode()).hexdigest()[:16],
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "cuda": f"{version // 1000}.{version % 1000 // 10}",
        }
        for name, function, *arguments in (
            ("sm_clock_mhz", nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            ("max_sm_clock_mhz", nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
            ("power_limit_w", lambda g: nvml.nvmlDeviceGetEnforcedPowerLimit(g) // 1000),
        ):
            value = _read(nvml, function, gpu, *arguments)
            if value is not None:
                description[name] = value
        return description


def cpu_state() -> DeviceState:
    """Return clock and temperature of the processor, where the machine has sensors for them."""
    clock = _first_line(f"{_CPUFREQ}/scaling_cur_freq")
    temperature = _first_line("/sys/class/thermal/thermal_zone0/temp")
    return DeviceState(
        clock_mhz=int(clock) / 1e3 if clock.isdecimal() else None,
        temperature_c=int(temperature) / 1e3 if temperature.isdecimal() else None,
    )


def gpu_state() -> DeviceState:
    """Return clock, temperature and throttling of the current GPU."""
    with _nvml() as nvml:
        if nvml is None:
            return UNKNOWN_STATE
        gpu = _handle(nvml)
        reasons = _read(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu) or 0
        # Of all the reasons that NVML knows; idle clocks and locked clocks are no throttling.
        slowed = {
            "power cap": nvml.nvmlClocksThrottleReasonSwPowerCap,
            "hardware slowdown": nvml.nvmlClocksThrottleReasonHwSlowdown,
            "software thermal slowdown": nvml.nvmlClocksThrottleReasonSwThermalSlowdown,
        }
        return DeviceState(
            clock_mhz=_read(nvml, nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            temperature_c=_read(
                nvml, nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU
            ),
            throttled=", ".join(name for name, bit in slowed.items() if reasons & bit),
        )


@contextmanager
def _nvml() -> Iterator[Any]:
    """Yield NVIDIA's management library, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _handle(nvml: Any) -> Any:
    """Return NVML's handle of the GPU that PyTorch computes on."""
    # By UUID, since NVML numbers GPUs without regard to CUDA_VISIBLE_DEVICES.
    if torch.cuda.is_available():
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(0)


def _read(nvml: Any, function: Any, *arguments: Any) -> Any:
    """Return what NVML reads, or None if this GPU or driver does not support it."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
