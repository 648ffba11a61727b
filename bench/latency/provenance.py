"""What about this machine can change a latency? (processor, GPU, driver, clocks, throttling)"""

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.machine import processor_name, usable_cores
from bench.latency.nvml import nvml

POWER_CAP = "power cap"
# For heat or a fault: what was measured then is measured again. A power cap is how a GPU is run.
SLOWDOWNS = ("hardware slowdown", "software thermal slowdown")
UNKNOWN = "unknown"  # this GPU or driver does not say whether it is throttled
_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"


@dataclass(frozen=True)
class DeviceState:
    """Readings of a device at one moment; None where the machine has no such sensor.

    Attributes:
        clock_mhz: Clock of the GPU's multiprocessors, or of the first core.
        temperature_c: Temperature in degrees Celsius.
        throttled: Why the GPU is slowed down, empty if it is not, ``unknown`` if it does not say.
    """

    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: str = ""

    @property
    def slowed(self) -> bool:
        """Whether the GPU is slower than it is while all is well."""
        return any(reason in self.throttled for reason in SLOWDOWNS)

    @property
    def capped(self) -> bool:
        """Whether the GPU lowers its clock to keep its power limit."""
        return POWER_CAP in self.throttled


UNKNOWN_STATE = DeviceState()


@dataclass(frozen=True)
class Machine:
    """What must be the same for two latencies to be comparable.

    Attributes:
        device: Model name of the processor or GPU.
        cores: Processor cores this process may use; 0 for a GPU, on which they have no influence.
        governor: Frequency governor of the processor; empty where there is none, and for a GPU.
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
    _, _, part = gpu.get("name", "").partition(" MIG ")  # a slice's profile, such as 3g.20gb
    return Machine(
        device=f"{name} MIG {part}" if part and part not in name else name,
        cores=0,
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


def gpu_description() -> dict[str, Any]:
    """Return name, driver, clocks and limits of the current GPU, as far as it tells them."""
    gpu, library = nvml(), nvml().library
    if library is None:
        return {}
    version = gpu.read("nvmlSystemGetCudaDriverVersion")
    uuid = gpu.read("nvmlDeviceGetUUID", gpu.gpu)
    power_mw = gpu.read("nvmlDeviceGetEnforcedPowerLimit", gpu.board)
    description = {
        "name": gpu.read("nvmlDeviceGetName", gpu.gpu),
        # Reports are published: a hash tells GPUs apart and identifies none.
        "uuid_hash": uuid and hashlib.sha256(str(uuid).encode()).hexdigest()[:16],
        "driver": gpu.read("nvmlSystemGetDriverVersion"),
        "cuda": version and f"{version // 1000}.{version % 1000 // 10}",
        "sm_clock_mhz": gpu.read("nvmlDeviceGetClockInfo", gpu.board, library.NVML_CLOCK_SM),
        "max_sm_clock_mhz": gpu.read("nvmlDeviceGetMaxClockInfo", gpu.board, library.NVML_CLOCK_SM),
        "power_limit_w": power_mw and power_mw // 1000,
    }
    return {name: value for name, value in description.items() if value is not None}


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
    gpu, library = nvml(), nvml().library
    if library is None:
        return DeviceState(throttled=UNKNOWN)
    reasons = gpu.read("nvmlDeviceGetCurrentClocksThrottleReasons", gpu.board)
    return DeviceState(
        clock_mhz=gpu.read("nvmlDeviceGetClockInfo", gpu.board, library.NVML_CLOCK_SM),
        temperature_c=gpu.read("nvmlDeviceGetTemperature", gpu.board, library.NVML_TEMPERATURE_GPU),
        throttled=UNKNOWN if reasons is None else _slowed_by(library, reasons),
    )


def _slowed_by(library: Any, reasons: int) -> str:
    # Of all the reasons that NVML knows; idle clocks and locked clocks are no throttling.
    bits = (
        library.nvmlClocksThrottleReasonSwPowerCap,
        library.nvmlClocksThrottleReasonHwSlowdown,
        library.nvmlClocksThrottleReasonSwThermalSlowdown,
    )
    named = zip((POWER_CAP, *SLOWDOWNS), bits, strict=True)
    return ", ".join(name for name, bit in named if reasons & bit)


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
