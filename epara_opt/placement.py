"""A placement: groups with contents, and flows over them. What solvers produce before it becomes a plan."""

from __future__ import annotations

from dataclasses import dataclass

from epara_opt.problem import Content, Edge, Resident


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGroup:
    """One device group of a server holding a content."""

    server: str
    content: Content
    resident: Resident | None = None  # the group in force whose devices and loaded tenants it keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Work of one service from one origin to one group, in the service's unit."""

    edge: Edge
    group: int  # index into Placement.groups
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    groups: tuple[PlacedGroup, ...]
    flows: tuple[Flow, ...]
