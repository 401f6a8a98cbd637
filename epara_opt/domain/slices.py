"""Slices of a model: k consecutive layers on tp devices of one type, between what was measured.

A profile file may give rows of slices (column `layers`). For a number of layers between two measured ones every curve
is interpolated linearly, where both were measured; outside the hull the answer is an error, never a guess. Layers of a
model are taken to be alike, so a slice does not depend on where in the model it begins.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from epara_opt.domain.profile import Curve, Profile, ProfileCatalogue
from epara_opt.errors import InputError, Violation


def slice_shapes(catalogue: ProfileCatalogue, model: str, device_type: str) -> tuple[int, ...]:
    """Tensor-parallel degrees in which slices of a model were measured on a device type."""
    return tuple(sorted(tp for m, g, tp in catalogue.slices if (m, g) == (model, device_type)))


def slice_of(catalogue: ProfileCatalogue, model: str, device_type: str, tp: int, layers: int) -> Profile:
    """The profile of so many layers. Raises InputError naming the missing point outside the measured hull."""
    measured = catalogue.slices.get((model, device_type, tp), {})
    at = sorted(measured)
    if not at or not at[0] <= layers <= at[-1]:
        hull = f"{at[0]} .. {at[-1]}" if at else "nothing"
        path, law = f"profiles.{model} on {device_type} tp{tp}", f"expected a slice inside the measured {hull} layers"
        raise InputError(Violation(path=path, law=law, value=str(layers)))
    i = bisect_left(at, layers)
    return measured[layers] if at[i] == layers else _between(measured, at[i - 1], at[i], layers)


def _between(measured: Mapping[int, Profile], low: int, high: int, layers: int) -> Profile:
    a, b = measured[low], measured[high]
    part = (layers - low) / (high - low)
    return Profile(
        model=a.model,
        device_type=a.device_type,
        tp=a.tp,
        pp=1,
        latency_ms=_blend(a.latency_ms, b.latency_ms, part),
        interval_ms=_blend(a.interval_ms, b.interval_ms, part),
        prefill_ms=_blend(a.prefill_ms, b.prefill_ms, part),
        decode_step_ms=_blend(a.decode_step_ms, b.decode_step_ms, part),
        memory_bytes=_blend(a.memory_bytes, b.memory_bytes, part),
        load_s=a.load_s + (b.load_s - a.load_s) * part,
    )


def _blend(a: Curve, b: Curve, part: float) -> Curve:
    """(1 - part) a + part b, where both were measured."""
    x = tuple(sorted(p for p in {*a.x, *b.x} if a.covers(p) and b.covers(p)))
    return Curve(a.name, x, tuple(a.at(p) + (b.at(p) - a.at(p)) * part for p in x))
