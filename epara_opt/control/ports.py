"""What the control cycle needs from the world: a planner, a fleet of executors, a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # executors import this file, and need nothing of planning
    from epara_opt.plan import Plan
    from epara_opt.problem import PlacementProblem


class Planner(Protocol):
    """Anything that turns a problem into a plan. The plan is always complete; actions are added later."""

    @property
    def name(self) -> str: ...

    def plan(
        self, problem: PlacementProblem, *, generation: int, time_limit_s: float, in_force: Plan | None = None
    ) -> Plan: ...


class Clock(Protocol):
    """Seconds. `monotonic` for durations, `wall` (Unix time) for records, `wait` to let time pass."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...

    def wait(self, seconds: float) -> bool:
        """Wait; True if a stop was asked for meanwhile."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """Which planner speaks, and about which plan. Executors refuse anything older than what they have seen."""

    epoch: int  # grows with every planner start
    generation: int  # grows with every plan


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSpec:
    """One service on one device group, as the executor must run it."""

    replica: str
    service: str
    source: str
    task: str
    batch: int
    frames: int
    sensitivity: str  # "latency" | "frequency"
    deadline_ms: float
    fps: float  # 0 unless frequency
    response_ms: float  # predicted, for admission until observations replace it
    work_per_s: float  # capacity in requests (or frames) per second at full share, max_utilization removed
    prompt_tokens: int
    output_tokens: int
    tpot_ms: float = 0.0  # > 0: deadline_ms is the first token's, and every further token has this pace


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """Layers [first_layer, end_layer) of a chain on devices of one server, one rank on each."""

    server: str
    address: str  # of its executor, HOST:PORT; its ranks listen at this host too
    device_kind: str  # "gpu" | "cpu" | "npu"
    devices: tuple[int, ...]
    first_layer: int
    end_layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """One device group at one server, or one server's part of a chain over several.

    Every executor of a chain is told all its stages under the same group id, with itself as `server`; device_type,
    device_kind, devices and tp are those of the first stage there, pp counts all stages.
    """

    group: str
    server: str
    device_type: str
    device_kind: str  # "gpu" | "cpu" | "npu"
    devices: tuple[int, ...]
    tp: int
    pp: int
    tenants: tuple[TenantSpec, ...]
    parts: int = 1  # a device is one of so many equal parts of an accelerator; device i lies on accelerator i // parts
    stages: tuple[StageSpec, ...] = ()  # of a chain, in order; empty: all of it is at `server`

    @property
    def is_led_here(self) -> bool:
        """Requests enter here, and replicas can be spoken to: not so at the further servers of a chain."""
        return not self.stages or self.stages[0].server == self.server

    @property
    def layout(self) -> tuple[StageSpec, ...]:
        """Its stages without addresses: what cannot change while it runs."""
        return tuple(replace(s, address="") for s in self.stages)

    @property
    def stages_here(self) -> tuple[int, ...]:
        """Of a chain, numbers of the stages at `server`."""
        return tuple(i for i, s in enumerate(self.stages) if s.server == self.server)


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderSpec:
    """An executor that may have a model's files."""

    server: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSpec:
    """A model that a server will need on its disk, and who to ask for it, in this order."""

    source: str
    holders: tuple[HolderSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """Where an executor sends work of one service that enters at it. Rates in requests (or frames) per second."""

    service: str
    replica: str
    server: str
    address: str  # of that server's executor
    rate_per_s: float
    network_ms: float
    frames: int = 1  # consecutive frames of a stream that its replica takes in one batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """Another executor that hosts a service, whether or not this one's routes use it: a place to offload to."""

    service: str
    server: str
    address: str
    network_ms: float
    capacity_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSpec:
    """Everything one executor needs to serve a plan; replaces what it had, atomically."""

    server: str
    groups: tuple[GroupSpec, ...]  # all that must be live here, prepared before
    routes: tuple[RouteSpec, ...]
    peers: tuple[PeerSpec, ...]
    plan_json: str = ""  # kept on disk by the executor, so that a planner without its store can continue


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Observations counted in fixed buckets since the executor's process started."""

    bounds: tuple[float, ...]  # (B,) upper, inclusive, ascending
    counts: tuple[int, ...]  # (B + 1,) the last is of what lies above them all
    sum: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError(f"counts: expected {len(self.bounds) + 1}, one more than bounds, got {len(self.counts)}")

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """About where this share of the observations lies below: linear inside a bucket, the last bound beyond it.

        None of no observations. Off by at most the width of a bucket. share in [0, 1].
        """
        left = share * self.count
        if not self.count:
            return None
        lower = 0.0
        for bound, n in zip(self.bounds, self.counts, strict=False):
            if n and left <= n:
                return lower + (bound - lower) * left / n
            left -= n
            lower = bound
        return lower


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTime:
    """How long the device took for batches of one size, as the worker measured it."""

    rows: int
    num_batches: int  # since the process started
    median_ms: float  # of the latest ones


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaHistograms:
    """Durations in seconds. Those of tokens are of generations that stream, and empty for all else."""

    queue_s: Histogram  # from the replica's queue to the worker
    service_s: Histogram  # at the worker
    e2e_s: Histogram  # from the executor's door to the answer
    first_token_s: Histogram  # from the replica's queue to the first token
    per_token_s: Histogram  # mean over a generation's tokens after the first
    batch_rows: Histogram  # rows of a batch; generations that ran side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceObservation:
    """What one device has used, where it could be measured."""

    kind: str
    index: int
    name: str
    energy_j: float  # since its driver was loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceObservation:
    """Counters of one service at one executor since its process started; they only grow."""

    service: str
    arrived: int  # entered the edge here (not forwarded from a peer); frames for streams
    on_time: int  # of those, answered within the deadline, wherever they were served
    late: int
    shed: int  # refused with RESOURCE_EXHAUSTED
    failed: int
    forwarded: int  # of those, served by a peer
    served: int  # answered by replicas here, whoever asked
    streams: int = 0  # gauge: distinct streams seen in the last seconds
    latency_p50_ms: float = 0.0  # over the last observation window, entry to answer
    latency_p99_ms: float = 0.0
    arrived_per_s: float = 0.0  # over the last seconds
    e2e_s: Histogram | None = None  # where asked for: of what entered here, until its answer, wherever it was served


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaObservation:
    replica: str
    group: str
    service: str
    # loading | ready | live | draining | failed; of a chain also leaving (an executor of it is), and of stages that are
    # led elsewhere waiting (for their head)
    state: str
    queued: int
    served: int
    busy_s: float  # device time spent, since the process started
    mean_batch: float
    batch_ms: float  # observed mean latency of a batch; 0 until seen
    detail: str = ""
    waiting: int = 0  # of `queued`: not yet at the worker
    arrived: int = 0  # requests given to this replica
    arrived_per_s: float = 0.0  # over the last seconds
    busy_share: float = 0.0  # of the device group's time, over the last seconds
    memory_bytes: int = 0  # per device, as its worker measured; 0: not loaded
    restarts: int = 0  # of its group's worker
    batch_times: tuple[BatchTime, ...] = ()  # by rows; none for generations
    histograms: ReplicaHistograms | None = None  # where asked for
    stages: tuple[int, ...] = ()  # of a chain over several servers, those that run here; 0 is its head
    num_stages: int = 0  # of that chain; 0: it is none


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchObservation:
    """A model on its way to one executor's disk, or one that could not be had."""

    source: str
    state: str  # waiting | hashing (at the peer) | fetching | checking | failed
    origin: str = ""  # server, or "hub"
    done_bytes: int = 0
    total_bytes: int = 0  # 0: not known yet
    detail: str = ""  # why it failed

    def __str__(self) -> str:
        if self.state == "failed":
            return f"{self.source}: {self.detail}"
        amount = f" {self.done_bytes:,} of {self.total_bytes:,} bytes" if self.total_bytes else ""
        return f"{self.source}: {self.state}{amount}{f' from {self.origin}' if self.origin else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorState:
    """What one executor reports."""

    server: str
    incarnation: str  # changes when its process restarts, so that counters can be differenced safely
    epoch: int  # highest fence seen
    generation: int  # of the committed plan; 0: none
    at: float  # Unix time
    services: tuple[ServiceObservation, ...]
    replicas: tuple[ReplicaObservation, ...]
    plan_json: str = ""  # only where asked for
    devices: tuple[DeviceObservation, ...] = ()  # those whose use could be measured
    draining: bool = False
    fetches: tuple[FetchObservation, ...] = ()
    model_bytes_received: int = 0  # of models, from peers and hub, since the process started
    model_bytes_sent: int = 0  # to peers


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """What could be learned of the whole edge at one time."""

    executors: Mapping[str, ExecutorState] = field(default_factory=dict[str, ExecutorState])
    down: Mapping[str, str] = field(default_factory=dict[str, str])  # server to why


class Fleet(Protocol):
    """Executors as the planner sees them. Each call returns or raises within its deadline.

    Raises ExecutorUnreachable (temporary), StaleFence (permanent), ExecutorRefused (says why).
    Fetch, prepare, commit and retire are idempotent: repeating one with the same arguments changes nothing.
    """

    def observe(
        self, servers: Mapping[str, str], *, with_plan: bool = False, with_histograms: bool = False
    ) -> FleetState:
        """Ask every executor (server name to address) for its state; those that fail are `down`, with the reason."""
        ...

    def fetch(
        self, address: str, models: tuple[FetchSpec, ...], fence: Fence, *, server: str, deadline_s: float
    ) -> None:
        """Have models brought to the server's disk, beside whatever runs. Returns when all are there.

        server: for errors. Raises ModelsOnTheWay (temporary) at the deadline: what is coming keeps coming.
        """
        ...

    def prepare(self, address: str, groups: tuple[GroupSpec, ...], fence: Fence, *, deadline_s: float) -> None:
        """Load and warm up groups beside what runs. Returns when all are ready."""
        ...

    def commit(self, address: str, spec: CommitSpec, fence: Fence, *, deadline_s: float) -> None:
        """Switch routes and live groups atomically at one executor."""
        ...

    def retire(self, address: str, groups: tuple[str, ...], fence: Fence, *, deadline_s: float) -> None:
        """Drain groups that no committed plan uses, then unload them."""
        ...
