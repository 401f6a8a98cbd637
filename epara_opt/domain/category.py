"""EPARA's categories: sensitivity is declared, single- or multi-device is derived and explained.

A service is single-device if some device type of the edge holds it on one device within its deadline (and, for
a stream, at its frame rate); otherwise it is multi-device. Which operators each category may use is our reading
of the paper (its full text was not at hand):

    BS batching, MT multi-task    every category
    MP tensor and pipeline        multi-device only
    MF multi-frame, DP streams    frequency-sensitive only
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from epara_opt.domain.performance import configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Sensitivity, Service
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.units import bytes_to_gib


class Scale(StrEnum):
    """EPARA's service level."""

    SINGLE_DEVICE = "single-device"
    MULTI_DEVICE = "multi-device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    sensitivity: Sensitivity
    scale: Scale
    reason: str  # why this scale, with the numbers compared

    def __str__(self) -> str:
        return f"{self.sensitivity.value}, {self.scale.value}"

    @property
    def operators(self) -> tuple[str, ...]:
        """The parallel operators the program may choose from, in the paper's abbreviations."""
        mp = ("MP",) if self.scale is Scale.MULTI_DEVICE else ()
        stream = ("MF", "DP") if self.sensitivity is Sensitivity.FREQUENCY else ()
        return ("BS", "MT", *mp, *stream)


def categorize(service: Service, topology: Topology, catalogue: ProfileCatalogue) -> Category:
    """Derive the category. A declared scale that contradicts the derived one is an InputError."""
    present = sorted({pool.type for s in topology.servers.values() for pool in s.devices})
    misses: list[str] = []
    hit = ""
    for device_type in present:
        shapes = catalogue.shapes(service.model.profile_name, device_type)
        if (1, 1) not in shapes:
            misses.append(f"{device_type}: no single-device profile")
            continue
        verdict, fits = _on_one_device(service, topology, catalogue, device_type)
        if fits:
            hit = verdict
            break
        misses.append(verdict)
    scale = Scale.SINGLE_DEVICE if hit else Scale.MULTI_DEVICE
    reason = hit or "; ".join(misses)
    if service.declared_multi_device is not None and service.declared_multi_device != (scale is Scale.MULTI_DEVICE):
        declared = Scale.MULTI_DEVICE if service.declared_multi_device else Scale.SINGLE_DEVICE
        raise InputError(
            Violation(
                path=f"services.{service.name}.scale",
                value=declared.value,
                law=f"expected {scale.value} ({reason}), or nothing",
            )
        )
    return Category(sensitivity=service.sensitivity, scale=scale, reason=reason)


def _on_one_device(
    service: Service, topology: Topology, catalogue: ProfileCatalogue, device_type: str
) -> tuple[str, bool]:
    profile = catalogue.shapes(service.model.profile_name, device_type)[1, 1]
    memory = topology.device_types[device_type].memory_bytes
    options = [evaluate(service, profile, c) for c in configurations(service, profile)]
    fitting = [p for p in options if p.memory_bytes <= memory]
    if not fitting:
        least = min(p.memory_bytes for p in options)
        return f"{device_type}: needs {bytes_to_gib(least):.2f} GiB of {bytes_to_gib(memory):.2f}", False
    timely = [p for p in fitting if is_timely(service, p.response_ms, p.tpot_ms)]
    if not timely:
        best = min(fitting, key=lambda p: p.response_ms)
        return f"{device_type}: answers in {best.response_ms:.0f} ms of {service.deadline_ms:.0f}", False
    best = max(timely, key=lambda p: p.work_per_s)
    if service.is_stream and best.work_per_s < 1.0:
        return f"{device_type}: reaches {best.work_per_s * service.events_per_work:.1f} of {service.fps:g} fps", False
    held = f"{bytes_to_gib(best.memory_bytes):.2f} of {bytes_to_gib(memory):.2f} GiB"
    answers = f"answers in {best.response_ms:.0f} of {service.deadline_ms:.0f} ms"
    return f"one {device_type} holds it ({held}), {answers}, serves {best.work_per_s:.1f} {service.work_unit}", True


def is_timely(service: Service, response_ms: float, tpot_ms: float) -> bool:
    """Within the deadline with no network at all; generation by token also needs its pace."""
    return response_ms <= service.deadline_ms and (service.tpot_ms is None or tpot_ms <= service.tpot_ms)
