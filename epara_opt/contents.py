"""Contents: what one device group may hold, and which of all that could be are worth having.

A content is one to `max_tenants` services with their configurations, which fit in memory together and stay timely in
each other's company. Derived from profiles alone, per device type; no solver, no server, no demand but its slacks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from epara_opt.busy import BusyTime
from epara_opt.domain.category import Category, Scale, is_timely
from epara_opt.domain.parallel import ParallelConfig
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.domain.service import Service
from epara_opt.domain.topology import Topology
from epara_opt.domain.utilization import LEAST_TARGET, MOST_TARGET
from epara_opt.errors import InputError, Violation
from epara_opt.units import bytes_to_gib

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TRIED_PER_KEPT = 100  # combinations looked at for each content that may be kept; beyond it tenants are limited
LEAN_TIMES = 4  # times max_contents: contents looked at where memory counts too
CHUNK = 100_000  # combinations at a time: some 30 MB of arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningRules:
    """What the operator may tune. Part of the plan's digest."""

    max_utilization: float = 0.8  # of a group's time; the rest absorbs burstiness that averages do not show
    on_time_target: float | None = None  # share of requests that bursts may not make late: less is filled (busy.py)
    max_tenants: int = 3  # services that may time-share one group; lowered, with a note, when contents explode
    max_contents: int = 6000  # per device type; keeps the program solvable by general solvers; never drops single ones
    max_edges: int = 500_000  # demands x servers; beyond it each demand keeps the nearest servers alone, with a note
    horizon_s: float = 300.0  # a move must pay within it: what loads for load_s earns 1 - load_s / horizon_s
    max_moves: int | None = None  # groups that may load something once any group runs; None: as many as pay
    make_before_break: bool = False  # nothing that runs stops before what comes in its place is loaded beside it
    across_servers: bool = False  # chains of stages over neighbouring servers, for what no single server can host
    max_stages: int = 4  # of a chain, which takes its head and the nearest max_stages - 1 servers that could help
    max_chains: int = 200  # per service; the best are kept, with a note

    def __post_init__(self) -> None:
        for key, ok, law in (
            ("max_utilization", 0 < self.max_utilization <= 1, "expected in (0, 1]"),
            (
                "on_time_target",
                self.on_time_target is None or LEAST_TARGET <= self.on_time_target <= MOST_TARGET,
                f"expected in [{LEAST_TARGET:g}, {MOST_TARGET:g}]",
            ),
            ("max_tenants", self.max_tenants >= 1, "expected >= 1"),
            ("max_contents", self.max_contents >= 1, "expected >= 1"),
            ("max_edges", self.max_edges >= 1, "expected >= 1"),
            ("horizon_s", 0 < self.horizon_s < math.inf, "expected a finite number > 0"),
            ("max_moves", self.max_moves is None or self.max_moves >= 0, "expected >= 0"),
            (
                "make_before_break",
                not (self.make_before_break and self.across_servers),
                "expected false with across_servers: room beside what runs is not known for chains",
            ),
            ("max_stages", self.max_stages >= 2, "expected >= 2"),
            ("max_chains", self.max_chains >= 1, "expected >= 1"),
        ):
            if not ok:
                raise InputError(Violation(path=f"rules.{key}", law=law, value=str(getattr(self, key))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A service in one content."""

    service: str
    config: ParallelConfig
    response_ms: float  # in this content's company
    work_per_s: float  # at the group's full share, utilization applied
    utilization: float  # of the group's time that may be filled: see busy.py
    memory_bytes: int  # per device
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStage:
    """Layers [first_layer, end_layer) of a chain's model on tp devices of one server."""

    server: str
    device_type: str
    tp: int
    first_layer: int
    end_layer: int
    memory_bytes: int  # per device


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What one device group of `tp * pp` devices of one type may hold. Tenants in service order.

    With stages it is a chain over several servers (see epara_opt/chains.py): one tenant; device_type and tp are those
    of the first stage, at the head; pp counts stages.
    """

    device_type: str
    tp: int
    pp: int
    tenants: tuple[Tenant, ...]
    stages: tuple[ChainStage, ...] = ()
    reserved: tuple[tuple[tuple[str, str], float], ...] = ()  # bytes/s on directed links between its own stages

    @property
    def num_devices(self) -> int:
        return sum(s.tp for s in self.stages) if self.stages else self.tp * self.pp

    @property
    def memory_bytes(self) -> int:
        """Per device."""
        return sum(t.memory_bytes for t in self.tenants)

    def pools_at(self, server: str) -> dict[tuple[str, str], int]:
        """(server, device type) to the devices it takes there, when placed at `server`, its head."""
        taken: dict[tuple[str, str], int] = {}
        for stage in self.stages:
            taken[stage.server, stage.device_type] = taken.get((stage.server, stage.device_type), 0) + stage.tp
        return taken or {(server, self.device_type): self.num_devices}

    @property
    def services(self) -> frozenset[str]:
        return frozenset(t.service for t in self.tenants)


def fills_batch(service: Service, config: ParallelConfig, offered: float) -> bool:
    """Whether the work in reach can fill a batch.

    Requests pile up behind a busy replica until they do. A stream gives one group of `frames` consecutive frames to a
    batch, so a batch of b groups needs b streams; with fewer, multi-frame batches are how a device is kept busy.
    """
    return not service.is_stream or config.batch <= math.ceil(offered)


def shape_allowed(category: Category, shape: tuple[int, int]) -> bool:
    return category.scale is Scale.MULTI_DEVICE or shape == (1, 1)


def least_responses(
    service: Service, category: Category, topology: Topology, catalogue: ProfileCatalogue, device_type: str
) -> list[tuple[int, float]]:
    """Per shape on this device type: how many devices, and the least response in ms of what fits in memory."""
    memory = topology.device_types[device_type].memory_bytes
    found: list[tuple[int, float]] = []
    for shape, profile in catalogue.shapes(service.model.profile_name, device_type).items():
        performances = (evaluate(service, profile, c) for c in configurations(service, profile))
        responses = [
            p.response_ms
            for p in performances
            if p.memory_bytes <= memory and is_timely(service, p.response_ms, p.tpot_ms)
        ]
        if responses and shape_allowed(category, shape):
            found.append((math.prod(shape), min(responses)))
    return found


def misfits_of(
    service: Service, category: Category, topology: Topology, catalogue: ProfileCatalogue, types: Sequence[str]
) -> list[str]:
    """Why a service runs on none of the device types; empty as soon as it runs on one."""
    reasons: list[str] = []
    for device_type in types:
        memory = topology.device_types[device_type].memory_bytes
        shapes = {
            s: p
            for s, p in catalogue.shapes(service.model.profile_name, device_type).items()
            if shape_allowed(category, s)
        }
        options = [evaluate(service, p, c) for p in shapes.values() for c in configurations(service, p)]
        if not options:
            reasons.append(f"no_profile: {service.model.profile_name} was never measured on {device_type}")
        elif all(o.memory_bytes > memory for o in options):
            least = min(o.memory_bytes for o in options)
            reasons.append(
                f"no_memory: needs {bytes_to_gib(least):.2f} GiB per {device_type}, "
                f"which has {bytes_to_gib(memory):.2f}"
            )
        elif not any(o.memory_bytes <= memory and is_timely(service, o.response_ms, o.tpot_ms) for o in options):
            best = min(o.response_ms for o in options if o.memory_bytes <= memory)
            reasons.append(
                f"no_route_in_time: {device_type} answers in {best:.0f} ms at best, "
                f"deadline {service.deadline_ms:.0f} ms"
            )
        else:
            return []
    return reasons


def contents_of(
    topology: Topology,
    catalogue: ProfileCatalogue,
    categories: Mapping[str, Category],
    device_type: str,
    services: Sequence[str],
    slacks: Mapping[str, Sequence[float]],
    rules: PlanningRules,
    busy: BusyTime,
) -> tuple[tuple[Content, ...], list[str]]:
    """Every content of this device type that is not dominated, and a note if tenants had to be limited.

    One content dominates another of the same shape and services if no tenant has less rate, fewer edges in reach
    (slack >= response), or needs more streams to fill its batch: it can replace the other in any plan.
    Under `make_before_break` it must not need more memory either; where those are too many, a note says so.
    """
    memory = topology.device_types[device_type].memory_bytes
    options: dict[tuple[int, int], dict[str, list[Performance]]] = {}
    for name in services:
        service = topology.services[name]
        top_slack = slacks[name][-1] if slacks.get(name) else -math.inf
        for shape, profile in catalogue.shapes(service.model.profile_name, device_type).items():
            if not shape_allowed(categories[name], shape):
                continue
            for config in configurations(service, profile):
                p = evaluate(service, profile, config)
                if (
                    p.memory_bytes <= memory
                    and p.response_ms <= top_slack
                    and is_timely(service, p.response_ms, p.tpot_ms)
                ):
                    options.setdefault(shape, {}).setdefault(name, []).append(p)
    tables = [(shape, _Options.of(topology, by_name, slacks)) for shape, by_name in sorted(options.items())]

    def front(num_tenants: int, at_most: float, *, lean: bool) -> list[tuple[tuple[int, int], tuple[Performance, ...]]]:
        """(shape, performances) of what is not dominated; ends once more than `at_most`."""
        found: list[tuple[tuple[int, int], tuple[Performance, ...]]] = []
        for shape, table in tables:
            room = at_most - len(found)
            found += [(shape, c) for c in table.undominated(num_tenants, memory, busy, at_most=room, lean=lean)]
            if len(found) > at_most:
                break
        return found

    kept: list[Content] = []
    notes: list[str] = []
    num_usual = 0  # without what make_before_break adds: that must not cost any of the others their place
    for num_tenants in range(1, rules.max_tenants + 1):
        room = math.inf if num_tenants == 1 else rules.max_contents - num_usual  # single ones always stay
        tried = sum(table.num_combinations(num_tenants) for _, table in tables)
        can_try = num_tenants == 1 or (room >= 0 and tried <= TRIED_PER_KEPT * rules.max_contents)
        found = front(num_tenants, room, lean=False) if can_try else []
        if not can_try or len(found) > room:
            notes.append(
                f"{device_type}: groups hold at most {num_tenants - 1} service(s) in this plan: more would "
                f"exceed max_contents = {rules.max_contents}; the bound holds under that rule"
            )
            break
        num_usual += len(found)
        if rules.make_before_break:
            leaner = front(num_tenants, LEAN_TIMES * rules.max_contents, lean=True)
            if len(leaner) <= LEAN_TIMES * rules.max_contents:
                found = leaner
            else:
                notes.append(
                    f"{device_type}: of groups of {num_tenants} service(s) those that need less memory at the price of "
                    f"speed are left out: more than {LEAN_TIMES} x max_contents; with make_before_break the plan is "
                    "best among the others"
                )
        kept += [in_company(combo, device_type=device_type, shape=shape, busy=busy) for shape, combo in found]
    return tuple(kept), notes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What each service could do alone on a group of one shape, in arrays. S services by name, O options by service."""

    performances: tuple[Performance, ...]  # (O,)
    count: IntArray  # (S,) options of each service
    start: IntArray  # (S,) its first option
    service: IntArray  # (O,)
    memory: IntArray  # (O,) bytes per device
    quantum_ms: FloatArray  # (O,)
    response_ms: FloatArray  # (O,) alone
    num_waits: FloatArray  # (O,) pieces that may wait for others
    work_per_s: FloatArray  # (O,)
    tpot_ms: FloatArray  # (O,) 0 unless generation
    hunger: FloatArray  # (O,) -batch for a stream, 0 for others: see fills_batch
    deadline_ms: FloatArray  # (S,)
    tpot_limit_ms: FloatArray  # (S,) inf where there is none
    slacks: tuple[FloatArray, ...]  # (S,) of arrays: slacks of the service's edges, rising

    @staticmethod
    def of(
        topology: Topology, by_name: Mapping[str, Sequence[Performance]], slacks: Mapping[str, Sequence[float]]
    ) -> _Options:
        names = sorted(by_name)
        services = [topology.services[n] for n in names]
        flat = tuple(p for n in names for p in by_name[n])
        count = np.array([len(by_name[n]) for n in names], dtype=np.int64)
        is_stream = [topology.services[p.service].is_stream for p in flat]
        return _Options(
            performances=flat,
            count=count,
            start=np.cumsum(count) - count,
            service=np.repeat(np.arange(len(names)), count),
            memory=np.array([p.memory_bytes for p in flat], dtype=np.int64),
            quantum_ms=np.array([p.quantum_ms for p in flat]),
            response_ms=np.array([p.response_ms for p in flat]),
            num_waits=np.array([1.0 + p.num_pieces for p in flat]),
            work_per_s=np.array([p.work_per_s for p in flat]),
            tpot_ms=np.array([p.tpot_ms for p in flat]),
            hunger=np.array([-float(p.config.batch) if s else 0.0 for p, s in zip(flat, is_stream, strict=True)]),
            deadline_ms=np.array([s.deadline_ms for s in services]),
            tpot_limit_ms=np.array([math.inf if s.tpot_ms is None else s.tpot_ms for s in services]),
            slacks=tuple(np.array(slacks[n]) for n in names),
        )

    def num_combinations(self, num_tenants: int) -> int:
        """Of one option each of `num_tenants` services: the elementary symmetric polynomial of the counts."""
        ways = [1] + [0] * num_tenants
        for count in self.count.tolist():
            for k in range(num_tenants, 0, -1):
                ways[k] += ways[k - 1] * count
        return ways[num_tenants]

    def undominated(
        self, num_tenants: int, memory: int, busy: BusyTime, *, at_most: float, lean: bool
    ) -> list[tuple[Performance, ...]]:
        """The combinations worth keeping, by names and then in the options' order; ends once more than `at_most`.

        Works through the sets of services in chunks, so that memory stays bounded whatever `max_contents` is.
        """
        found: list[tuple[Performance, ...]] = []
        sets = np.array(list(itertools.combinations(range(len(self.count)), num_tenants)), dtype=np.int64)
        sets = sets.reshape(-1, num_tenants)  # (G, T)
        num_each = self.count[sets].prod(axis=1)
        chunk = np.cumsum(num_each) // CHUNK
        for part in np.split(np.arange(len(sets)), np.flatnonzero(np.diff(chunk)) + 1):
            combo, group = self._combinations(sets[part], num_each[part])
            combo, group, mark = self._feasible(combo, group, memory, busy)
            if lean:
                mark = np.hstack((mark, -self.memory[combo].astype(np.float64)))
            chosen = combo[_front(group, mark)]
            found += [tuple(self.performances[i] for i in row) for row in chosen.tolist()]
            if len(found) > at_most:
                break
        return found

    def _combinations(self, sets: IntArray, num_each: IntArray) -> tuple[IntArray, IntArray]:
        """Options (M, T) of every combination of these sets of services, the last tenant's varying fastest, and
        which set each is of (M,)."""
        group = np.repeat(np.arange(len(sets)), num_each)
        rank = np.arange(len(group)) - np.repeat(np.cumsum(num_each) - num_each, num_each)
        combo = np.empty((len(group), sets.shape[1]), dtype=np.int64)
        for t in range(sets.shape[1] - 1, -1, -1):
            of = sets[group, t]
            rank, nth = np.divmod(rank, self.count[of])
            combo[:, t] = self.start[of] + nth
        return combo, group

    def _feasible(
        self, combo: IntArray, group: IntArray, memory: int, busy: BusyTime
    ) -> tuple[IntArray, IntArray, FloatArray]:
        """Those that fit in memory, keep pace and reach somebody, and their marks (M, 3 T): see `contents_of`."""
        fits = self.memory[combo].sum(axis=1) <= memory
        combo, group = combo[fits], group[fits]
        total_quantum_ms = np.zeros(len(combo))
        for t in range(combo.shape[1]):  # in this order, as `in_company` adds them
            total_quantum_ms = total_quantum_ms + self.quantum_ms[combo[:, t]]
        others_ms = total_quantum_ms[:, None] - self.quantum_ms[combo]
        response_ms = self.response_ms[combo] + self.num_waits[combo] * others_ms
        tpot_ms = np.where(self.tpot_ms[combo] > 0, self.tpot_ms[combo] + others_ms, 0.0)
        service = self.service[combo]
        paced = (response_ms <= self.deadline_ms[service]) & (tpot_ms <= self.tpot_limit_ms[service])
        good = paced.all(axis=1)
        combo, group, response_ms, service = combo[good], group[good], response_ms[good], service[good]
        others_ms = others_ms[good]
        reach = np.zeros(combo.shape)
        for s in np.unique(service).tolist():
            mine = service == s
            reach[mine] = len(self.slacks[s]) - np.searchsorted(self.slacks[s], response_ms[mine], side="left")
        useful = (reach > 0).all(axis=1)
        combo, group, reach, others_ms = combo[useful], group[useful], reach[useful], others_ms[useful]
        work = self.work_per_s[combo]
        if busy.on_time_target is not None:  # else alike for all, and who dominates whom stays as it is
            flat = [self.performances[i] for i in combo.ravel().tolist()]
            work = work * busy.parts(flat, others_ms.ravel()).reshape(work.shape)
        return combo, group, np.hstack((work, reach, self.hunger[combo]))


def _front(group: IntArray, mark: FloatArray) -> IntArray:
    """Rows, in rising order, whose mark (M, K) no other of its group is at least in all; of equals the first.

    In falling lexicographic order a group's first row is on its front, for nothing behind it can be at least it in
    all. So all groups at once: keep every group's first, drop what it dominates, and again, until none is left.
    """
    order = np.lexsort((*(-mark.T[::-1]), group))  # stable: equals stay in their order
    kept: list[IntArray] = []
    while len(order):
        sorted_group = group[order]
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = sorted_group[1:] != sorted_group[:-1]
        first = order[is_first]
        kept.append(first)
        against = mark[first][np.cumsum(is_first) - 1]
        order = order[(mark[order] > against).any(axis=1)]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def in_company(
    performances: Sequence[Performance], *, device_type: str, shape: tuple[int, int], busy: BusyTime
) -> Content:
    """The content in which these share a group: each waits for the others' pieces."""
    total_quantum_ms = sum(p.quantum_ms for p in performances)
    parts = {p.service: busy.part(p, total_quantum_ms - p.quantum_ms) for p in performances}
    tenants = tuple(
        Tenant(
            service=p.service,
            config=p.config,
            response_ms=p.response_in_company_ms(total_quantum_ms - p.quantum_ms),
            work_per_s=p.work_per_s * parts[p.service],
            utilization=parts[p.service],
            memory_bytes=p.memory_bytes,
            load_s=p.load_s,
        )
        for p in sorted(performances, key=lambda p: p.service)
    )
    return Content(device_type=device_type, tp=shape[0], pp=shape[1], tenants=tenants)
