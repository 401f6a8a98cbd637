"""What devices this machine drives, found without torch."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from epara_opt.errors import InputError, Violation

KINDS = ("cpu", "gpu", "npu")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSlot:
    """One accelerator, or one CPU slot (a share of the machine, as the topology counts them)."""

    kind: str
    index: int
    name: str
    memory_bytes: int  # 0: not known


def parse_devices(text: str) -> tuple[DeviceSlot, ...]:
    """Slots as an operator declares them: "cpu:2" or "gpu:4,cpu:1"."""
    slots: list[DeviceSlot] = []
    for part in text.split(","):
        kind, _, count = part.strip().partition(":")
        if kind not in KINDS or not count.isdecimal() or int(count) < 1:
            law = "expected KIND:COUNT, comma separated, kinds cpu, gpu, npu, count >= 1"
            raise InputError(Violation(path="devices", law=law, value=part))
        slots += [DeviceSlot(kind=kind, index=i, name=kind, memory_bytes=0) for i in range(int(count))]
    return tuple(slots)


def find_devices() -> tuple[DeviceSlot, ...]:
    """NVIDIA devices by nvidia-smi where it is, and one CPU slot per core with an even share of memory."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = [DeviceSlot(kind="cpu", index=i, name="cpu", memory_bytes=memory // cores) for i in range(cores)]
    return (*_nvidia(), *cpus)


def _nvidia() -> Sequence[DeviceSlot]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        rows = [[c.strip() for c in row] for row in csv.reader(said.splitlines()) if row]
        return [
            DeviceSlot(kind="gpu", index=int(i), name=name, memory_bytes=int(float(mib) * 2**20))
            for i, name, mib in rows
        ]
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def limits(slots: Sequence[DeviceSlot]) -> dict[str, int]:
    """How many of each kind there are; kinds that are not there are limited to 0."""
    counts = Counter(s.kind for s in slots)
    return {kind: counts.get(kind, 0) for kind in KINDS}
