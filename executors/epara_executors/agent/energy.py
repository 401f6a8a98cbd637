"""Energy that devices have used, where the vendor's library tells. Nothing is estimated: no reading, no number."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from epara_opt.control.ports import DeviceObservation

log = logging.getLogger(__name__)


class EnergyReader(Protocol):
    """Reads what every device that can tell has used so far. May take milliseconds: call it beside the event loop."""

    def read(self) -> Sequence[DeviceObservation]: ...


class NvmlReader:
    """NVIDIA devices by NVML, which counts millijoules since the driver was loaded (Volta and later)."""

    def __init__(self, nvml: Any) -> None:
        """nvml: the module `pynvml` of nvidia-ml-py, initialized."""
        self._nvml = nvml
        self._devices: list[tuple[int, str, Any]] = []
        for index in range(int(nvml.nvmlDeviceGetCount())):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = nvml.nvmlDeviceGetName(handle)
            self._devices.append((index, name.decode() if isinstance(name, bytes) else str(name), handle))

    def read(self) -> Sequence[DeviceObservation]:
        """One observation per device that can tell; a device that cannot is left out."""
        found: list[DeviceObservation] = []
        for index, name, handle in self._devices:
            try:
                energy_mj = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except self._nvml.NVMLError:
                continue
            found.append(DeviceObservation(kind="gpu", index=index, name=name, energy_j=energy_mj / 1000.0))
        return found


def find_energy_reader() -> EnergyReader | None:
    """NVML where nvidia-ml-py is installed and a driver answers; None otherwise."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        return NvmlReader(nvml)
    except nvml.NVMLError as e:
        log.info("no energy readings: %s", e)
        return None
