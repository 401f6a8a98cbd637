"""How much memory a tenant takes of a device: its weights, and the most it held beside them while warming up.

On CUDA the allocator keeps the peak. On Linux the kernel does (VmHWM, reset through clear_refs); the process's own
base of libraries is not counted, as the topology's device memory already has the runtime's reserve removed.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMeter:
    """Opened once weights are in place; `peak_bytes` is what came on top since then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        try:
            _CLEAR.write_text("5")
        except OSError:
            self._resettable = False
            self._before = psutil.Process().memory_info().rss
        else:
            self._resettable = True
            self._before = _status()["RssAnon"]

    def peak_bytes(self) -> int:
        """Bytes beyond the weights at the worst moment since this meter was opened."""
        if self._device.type == "cuda":
            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        if not self._resettable:
            return max(0, psutil.Process().memory_info().rss - self._before)
        now = _status()
        return max(0, now["VmHWM"] - now["RssFile"] - now["RssShmem"] - self._before)


def _status() -> dict[str, int]:
    """Sizes of /proc/self/status, in bytes."""
    found: dict[str, int] = {}
    for line in _STATUS.read_text().splitlines():
        key, _, rest = line.partition(":")
        if rest.endswith("kB"):
            found[key] = int(rest.split()[0]) * 1024
    return found
