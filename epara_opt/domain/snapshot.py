"""A topology as plain JSON and back, so that a plan or a stored cycle can be read without its YAML."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

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


def topology_to_dict(topology: Topology) -> dict[str, Any]:
    """Plain data; every unit is in its key, as in the dataclasses."""
    return {
        "name": topology.name,
        "digest": topology.digest,
        "device_types": [asdict(t) for t in topology.device_types.values()],
        "servers": [asdict(s) for s in topology.servers.values()],
        "links": [asdict(link) for link in topology.links],
        "services": [asdict(s) for s in topology.services.values()],
        "demand": [asdict(d) for d in topology.demand],
    }


def topology_from_dict(data: dict[str, Any]) -> Topology:
    """The inverse. Raises InputError when the data is not a snapshot."""
    try:
        return Topology(
            name=data["name"],
            digest=data["digest"],
            device_types={t["name"]: _device_type(t) for t in data["device_types"]},
            servers={s["name"]: _server(s) for s in data["servers"]},
            links=tuple(_link(link) for link in data["links"]),
            services={s["name"]: _service(s) for s in data["services"]},
            demand=tuple(Demand(**d) for d in data["demand"]),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(Violation(path="edge", law=f"expected a topology snapshot: {e}")) from None


def _device_type(data: dict[str, Any]) -> DeviceType:
    fields: dict[str, Any] = {**data, "kind": DeviceKind(data["kind"])}
    return DeviceType(**fields)


def _link(data: dict[str, Any]) -> Link:
    fields: dict[str, Any] = {**data, "between": tuple(data["between"])}
    return Link(**fields)


def _server(data: dict[str, Any]) -> Server:
    location = cast("dict[str, float] | None", data["location"])
    return Server(
        name=data["name"],
        kind=ServerKind(data["kind"]),
        devices=tuple(DevicePool(**p) for p in data["devices"]),
        address=data["address"],
        location=Location(**location) if location else None,
    )


def _service(data: dict[str, Any]) -> Service:
    model: dict[str, Any] = {**data["model"], "task": Task(data["model"]["task"])}
    fields: dict[str, Any] = {
        **data,
        "model": Model(**model),
        "sensitivity": Sensitivity(data["sensitivity"]),
        "request": RequestShape(**data["request"]),
    }
    return Service(**fields)
