"""Plain values to domain objects, and what the domain says about them back to file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from epara_opt.domain.category import Scale
from epara_opt.domain.service import Demand, Model, RequestShape, Sensitivity, Service, Task
from epara_opt.domain.topology import (
    DeviceKind,
    DevicePool,
    DeviceType,
    Link,
    Location,
    Server,
    ServerKind,
    Topology,
)
from epara_opt.errors import InputError, Violation
from epara_opt.problem import PlanningRules
from epara_opt.topology.reader import BROKEN, Reader
from epara_opt.units import gib_to_bytes, kb_to_bytes, mbps_to_bytes_per_s

T = TypeVar("T")


@dataclass(slots=True)
class Builder:
    """Builds what it can of a file that was read, so that one run tells every violation."""

    reader: Reader
    values: dict[str, Any]
    digest: str

    def topology(self) -> Topology | None:
        """The topology, or None with the reasons among the reader's violations."""
        device_types = {
            name: made
            for name, value in self._map("device_types").items()
            if (made := self._try(lambda v=value, n=name: _device_type(n, v))) is not None
        }
        servers = {v["name"]: _server(v) for v in self._list("servers") if v is not BROKEN}
        services: dict[str, Service] = {}
        for value in self._list("services"):
            if value is not BROKEN and (made := self._try(lambda v=value: service_of(v))) is not None:
                services[made.name] = made
        links: list[tuple[int, Link]] = []
        for i, value in enumerate(self._list("links")):
            if value is not BROKEN and (made := self._try(lambda v=value: _link(v))) is not None:
                links.append((i, made))
        demand: list[tuple[int, Demand]] = []
        for i, value in enumerate(self._list("demand")):
            if value is not BROKEN and (made := self._try(lambda v=value: _demand(v))) is not None:
                demand.append((i, made))
        if any(self.values.get(key, BROKEN) is BROKEN for key in ("device_types", "servers", "services")):
            return None  # every name would seem to dangle
        whole = not self.reader.violations
        try:
            topology = Topology(
                name=str(self.values.get("name", "")),
                device_types=device_types,
                servers=servers,
                links=tuple(made for _, made in links),
                services=services,
                demand=tuple(made for _, made in demand),
                digest=self.digest,
            )
        except InputError as e:
            spots = {"links": [i for i, _ in links], "demand": [i for i, _ in demand]}
            half_read = self._half_read(set(device_types) | set(servers) | set(services))
            for violation in e.violations:
                if violation.value in half_read or (not whole and violation.value in ("none", "zero devices")):
                    continue  # an echo of something already told
                self.reader.violations.append(self.at(_reindexed(violation, spots)))
            return None
        return topology if whole else None

    def rules(self) -> PlanningRules | None:
        value = self.values.get("rules", {})
        return None if value is BROKEN else self._try(lambda: PlanningRules(**value))

    def at(self, violation: Violation) -> Violation:
        """The violation with the file and line of the longest part of its path that was written somewhere."""
        if violation.file:
            return violation
        path = violation.path
        while path and path not in self.reader.places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        file, line = self.reader.places.get(path) or self.reader.places.get("", ("", 0))
        return replace(violation, file=file, line=line)

    def _try(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except InputError as e:
            self.reader.violations.extend(self.at(v) for v in e.violations)
            return None

    def _list(self, key: str) -> list[Any]:
        value = self.values.get(key, [])
        return [] if value is BROKEN else value

    def _map(self, key: str) -> dict[str, Any]:
        value = self.values.get(key, {})
        return {} if value is BROKEN else {k: v for k, v in value.items() if v is not BROKEN}

    def _half_read(self, whole: set[str]) -> set[str]:
        names = set[str]().union(*(self.reader.declared.get(k, set()) for k in ("device_types", "servers", "services")))
        return names - whole - {""}


def _reindexed(violation: Violation, spots: dict[str, list[int]]) -> Violation:
    """Indexes among what could be built back to indexes in the file."""
    found = re.match(r"(links|demand)\[(\d+)\](.*)", violation.path)
    if not found:
        return violation
    return replace(violation, path=f"{found[1]}[{spots[found[1]][int(found[2])]}]{found[3]}")


def _device_type(name: str, value: dict[str, Any]) -> DeviceType:
    memory_bytes, kind = gib_to_bytes(value["memory_gib"]), DeviceKind(value["kind"])
    return DeviceType(name=name, memory_bytes=memory_bytes, kind=kind, parts=value.get("parts", 1))


def _server(value: dict[str, Any]) -> Server:
    location = value.get("location")
    return Server(
        name=value["name"],
        kind=ServerKind(value["kind"]),
        devices=tuple(DevicePool(type=d["type"], count=d["count"]) for d in value.get("devices", [])),
        address=value.get("address"),
        location=Location(lat=location["lat"], lon=location["lon"]) if location else None,
    )


def _link(value: dict[str, Any]) -> Link:
    a, b = value["between"]
    return Link(
        between=(a, b), rtt_ms=value["rtt_ms"], bandwidth_bytes_per_s=mbps_to_bytes_per_s(value["bandwidth_mbps"])
    )


def service_of(value: dict[str, Any]) -> Service:
    """A service from the plain values of its record."""
    request, scale = value.get("request", {}), value.get("scale")
    activation_kb = value["model"].get("activation_kb")
    return Service(
        name=value["name"],
        model=Model(
            source=value["model"]["source"],
            task=Task(value["model"]["task"]),
            profile=value["model"].get("profile", ""),
            layers=value["model"].get("layers"),
            activation_bytes=None if activation_kb is None else kb_to_bytes(activation_kb),
        ),
        sensitivity=Sensitivity(value["sensitivity"]),
        request=RequestShape(
            input_bytes=kb_to_bytes(request.get("input_kb", 0.0)),
            output_bytes=kb_to_bytes(request.get("output_kb", 0.0)),
            prompt_tokens=request.get("prompt_tokens", 0),
            output_tokens=request.get("output_tokens", 0),
        ),
        weight=value.get("weight", 1.0),
        slo_ms=value.get("slo_ms"),
        ttft_ms=value.get("ttft_ms"),
        tpot_ms=value.get("tpot_ms"),
        fps=value.get("fps"),
        frame_deadline_ms=value.get("frame_deadline_ms"),
        declared_multi_device=None if scale is None else Scale(scale) is Scale.MULTI_DEVICE,
    )


def _demand(value: dict[str, Any]) -> Demand:
    return Demand(
        service=value["service"],
        origin=value["origin"],
        offered=value["streams"] if "streams" in value else value["rate_per_s"],
        is_streams="streams" in value,
        burstiness_cv=value.get("burstiness_cv", 1.0),
    )
