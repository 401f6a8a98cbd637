from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fence(_message.Message):
    __slots__ = ("epoch", "generation")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    generation: int
    def __init__(self, epoch: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("server", "version", "incarnation", "fence", "devices", "tasks")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    server: str
    version: str
    incarnation: str
    fence: Fence
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, server: _Optional[str] = ..., version: _Optional[str] = ..., incarnation: _Optional[str] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("kind", "index", "name", "memory_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    index: int
    name: str
    memory_bytes: int
    def __init__(self, kind: _Optional[str] = ..., index: _Optional[int] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class TenantSpec(_message.Message):
    __slots__ = ("replica", "service", "source", "task", "batch", "frames", "sensitivity", "deadline_ms", "fps", "response_ms", "work_per_s", "prompt_tokens", "output_tokens", "tpot_ms")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    SENSITIVITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MS_FIELD_NUMBER: _ClassVar[int]
    WORK_PER_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    service: str
    source: str
    task: str
    batch: int
    frames: int
    sensitivity: str
    deadline_ms: float
    fps: float
    response_ms: float
    work_per_s: float
    prompt_tokens: int
    output_tokens: int
    tpot_ms: float
    def __init__(self, replica: _Optional[str] = ..., service: _Optional[str] = ..., source: _Optional[str] = ..., task: _Optional[str] = ..., batch: _Optional[int] = ..., frames: _Optional[int] = ..., sensitivity: _Optional[str] = ..., deadline_ms: _Optional[float] = ..., fps: _Optional[float] = ..., response_ms: _Optional[float] = ..., work_per_s: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., tpot_ms: _Optional[float] = ...) -> None: ...

class StageSpec(_message.Message):
    __slots__ = ("server", "address", "device_kind", "devices", "first_layer", "end_layer")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    server: str
    address: str
    device_kind: str
    devices: _containers.RepeatedScalarFieldContainer[int]
    first_layer: int
    end_layer: int
    def __init__(self, server: _Optional[str] = ..., address: _Optional[str] = ..., device_kind: _Optional[str] = ..., devices: _Optional[_Iterable[int]] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("group", "server", "device_type", "device_kind", "devices", "tp", "pp", "tenants", "parts", "stages")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    TP_FIELD_NUMBER: _ClassVar[int]
    PP_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    group: str
    server: str
    device_type: str
    device_kind: str
    devices: _containers.RepeatedScalarFieldContainer[int]
    tp: int
    pp: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantSpec]
    parts: int
    stages: _containers.RepeatedCompositeFieldContainer[StageSpec]
    def __init__(self, group: _Optional[str] = ..., server: _Optional[str] = ..., device_type: _Optional[str] = ..., device_kind: _Optional[str] = ..., devices: _Optional[_Iterable[int]] = ..., tp: _Optional[int] = ..., pp: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantSpec, _Mapping]]] = ..., parts: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageSpec, _Mapping]]] = ...) -> None: ...

class RouteSpec(_message.Message):
    __slots__ = ("service", "replica", "server", "address", "rate_per_s", "network_ms", "frames")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    service: str
    replica: str
    server: str
    address: str
    rate_per_s: float
    network_ms: float
    frames: int
    def __init__(self, service: _Optional[str] = ..., replica: _Optional[str] = ..., server: _Optional[str] = ..., address: _Optional[str] = ..., rate_per_s: _Optional[float] = ..., network_ms: _Optional[float] = ..., frames: _Optional[int] = ...) -> None: ...

class PeerSpec(_message.Message):
    __slots__ = ("service", "server", "address", "network_ms", "capacity_per_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_PER_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    server: str
    address: str
    network_ms: float
    capacity_per_s: float
    def __init__(self, service: _Optional[str] = ..., server: _Optional[str] = ..., address: _Optional[str] = ..., network_ms: _Optional[float] = ..., capacity_per_s: _Optional[float] = ...) -> None: ...

class HolderSpec(_message.Message):
    __slots__ = ("server", "address")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    server: str
    address: str
    def __init__(self, server: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class FetchSpec(_message.Message):
    __slots__ = ("source", "holders")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    source: str
    holders: _containers.RepeatedCompositeFieldContainer[HolderSpec]
    def __init__(self, source: _Optional[str] = ..., holders: _Optional[_Iterable[_Union[HolderSpec, _Mapping]]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("fence", "models", "wait_ms")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    models: _containers.RepeatedCompositeFieldContainer[FetchSpec]
    wait_ms: int
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., models: _Optional[_Iterable[_Union[FetchSpec, _Mapping]]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class FetchState(_message.Message):
    __slots__ = ("source", "state", "origin", "done_bytes", "total_bytes", "detail")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    source: str
    state: str
    origin: str
    done_bytes: int
    total_bytes: int
    detail: str
    def __init__(self, source: _Optional[str] = ..., state: _Optional[str] = ..., origin: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("left",)
    LEFT_FIELD_NUMBER: _ClassVar[int]
    left: _containers.RepeatedCompositeFieldContainer[FetchState]
    def __init__(self, left: _Optional[_Iterable[_Union[FetchState, _Mapping]]] = ...) -> None: ...

class ManifestRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    def __init__(self, source: _Optional[str] = ...) -> None: ...

class ManifestResponse(_message.Message):
    __slots__ = ("ready", "files", "hashed_bytes", "total_bytes")
    READY_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    HASHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    hashed_bytes: int
    total_bytes: int
    def __init__(self, ready: bool = ..., files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., hashed_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class FileEntry(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("source", "revision", "name", "offset", "length")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    source: str
    revision: str
    name: str
    offset: int
    length: int
    def __init__(self, source: _Optional[str] = ..., revision: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class FilePiece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("fence", "groups")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("fence", "server", "groups", "routes", "peers", "plan_json")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    server: str
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    routes: _containers.RepeatedCompositeFieldContainer[RouteSpec]
    peers: _containers.RepeatedCompositeFieldContainer[PeerSpec]
    plan_json: str
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., server: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[RouteSpec, _Mapping]]] = ..., peers: _Optional[_Iterable[_Union[PeerSpec, _Mapping]]] = ..., plan_json: _Optional[str] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("fence", "groups")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    fence: Fence
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fence: _Optional[_Union[Fence, _Mapping]] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class RetireResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchStateRequest(_message.Message):
    __slots__ = ("interval_ms", "with_plan", "with_histograms")
    INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    WITH_PLAN_FIELD_NUMBER: _ClassVar[int]
    WITH_HISTOGRAMS_FIELD_NUMBER: _ClassVar[int]
    interval_ms: int
    with_plan: bool
    with_histograms: bool
    def __init__(self, interval_ms: _Optional[int] = ..., with_plan: bool = ..., with_histograms: bool = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class BatchTime(_message.Message):
    __slots__ = ("rows", "num_batches", "median_ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_MS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    num_batches: int
    median_ms: float
    def __init__(self, rows: _Optional[int] = ..., num_batches: _Optional[int] = ..., median_ms: _Optional[float] = ...) -> None: ...

class DeviceState(_message.Message):
    __slots__ = ("kind", "index", "name", "energy_j")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    kind: str
    index: int
    name: str
    energy_j: float
    def __init__(self, kind: _Optional[str] = ..., index: _Optional[int] = ..., name: _Optional[str] = ..., energy_j: _Optional[float] = ...) -> None: ...

class ServiceState(_message.Message):
    __slots__ = ("service", "arrived", "on_time", "late", "shed", "failed", "forwarded", "served", "streams", "latency_p50_ms", "latency_p99_ms", "arrived_per_s", "e2e_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    ON_TIME_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FORWARDED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_MS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_PER_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    arrived: int
    on_time: int
    late: int
    shed: int
    failed: int
    forwarded: int
    served: int
    streams: int
    latency_p50_ms: float
    latency_p99_ms: float
    arrived_per_s: float
    e2e_s: Histogram
    def __init__(self, service: _Optional[str] = ..., arrived: _Optional[int] = ..., on_time: _Optional[int] = ..., late: _Optional[int] = ..., shed: _Optional[int] = ..., failed: _Optional[int] = ..., forwarded: _Optional[int] = ..., served: _Optional[int] = ..., streams: _Optional[int] = ..., latency_p50_ms: _Optional[float] = ..., latency_p99_ms: _Optional[float] = ..., arrived_per_s: _Optional[float] = ..., e2e_s: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class ReplicaState(_message.Message):
    __slots__ = ("replica", "group", "service", "state", "queued", "served", "busy_s", "mean_batch", "batch_ms", "detail", "waiting", "arrived", "arrived_per_s", "busy_share", "memory_bytes", "restarts", "batch_times", "queue_s", "service_s", "e2e_s", "first_token_s", "per_token_s", "batch_rows", "stages", "num_stages")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_MS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_PER_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TIMES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    SERVICE_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    PER_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGES_FIELD_NUMBER: _ClassVar[int]
    replica: str
    group: str
    service: str
    state: str
    queued: int
    served: int
    busy_s: float
    mean_batch: float
    batch_ms: float
    detail: str
    waiting: int
    arrived: int
    arrived_per_s: float
    busy_share: float
    memory_bytes: int
    restarts: int
    batch_times: _containers.RepeatedCompositeFieldContainer[BatchTime]
    queue_s: Histogram
    service_s: Histogram
    e2e_s: Histogram
    first_token_s: Histogram
    per_token_s: Histogram
    batch_rows: Histogram
    stages: _containers.RepeatedScalarFieldContainer[int]
    num_stages: int
    def __init__(self, replica: _Optional[str] = ..., group: _Optional[str] = ..., service: _Optional[str] = ..., state: _Optional[str] = ..., queued: _Optional[int] = ..., served: _Optional[int] = ..., busy_s: _Optional[float] = ..., mean_batch: _Optional[float] = ..., batch_ms: _Optional[float] = ..., detail: _Optional[str] = ..., waiting: _Optional[int] = ..., arrived: _Optional[int] = ..., arrived_per_s: _Optional[float] = ..., busy_share: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., restarts: _Optional[int] = ..., batch_times: _Optional[_Iterable[_Union[BatchTime, _Mapping]]] = ..., queue_s: _Optional[_Union[Histogram, _Mapping]] = ..., service_s: _Optional[_Union[Histogram, _Mapping]] = ..., e2e_s: _Optional[_Union[Histogram, _Mapping]] = ..., first_token_s: _Optional[_Union[Histogram, _Mapping]] = ..., per_token_s: _Optional[_Union[Histogram, _Mapping]] = ..., batch_rows: _Optional[_Union[Histogram, _Mapping]] = ..., stages: _Optional[_Iterable[int]] = ..., num_stages: _Optional[int] = ...) -> None: ...

class StateResponse(_message.Message):
    __slots__ = ("server", "incarnation", "fence", "at", "services", "replicas", "plan_json", "devices", "draining", "fetches", "model_bytes_received", "model_bytes_sent")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PLAN_JSON_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    server: str
    incarnation: str
    fence: Fence
    at: float
    services: _containers.RepeatedCompositeFieldContainer[ServiceState]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaState]
    plan_json: str
    devices: _containers.RepeatedCompositeFieldContainer[DeviceState]
    draining: bool
    fetches: _containers.RepeatedCompositeFieldContainer[FetchState]
    model_bytes_received: int
    model_bytes_sent: int
    def __init__(self, server: _Optional[str] = ..., incarnation: _Optional[str] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., at: _Optional[float] = ..., services: _Optional[_Iterable[_Union[ServiceState, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaState, _Mapping]]] = ..., plan_json: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[DeviceState, _Mapping]]] = ..., draining: bool = ..., fetches: _Optional[_Iterable[_Union[FetchState, _Mapping]]] = ..., model_bytes_received: _Optional[int] = ..., model_bytes_sent: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("exit", "timeout_ms")
    EXIT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    exit: bool
    timeout_ms: int
    def __init__(self, exit: bool = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("left_in_flight",)
    LEFT_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    left_in_flight: int
    def __init__(self, left_in_flight: _Optional[int] = ...) -> None: ...

class SyncMessage(_message.Message):
    __slots__ = ("server", "generation", "at", "idle")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    server: str
    generation: int
    at: float
    idle: _containers.RepeatedCompositeFieldContainer[IdleGoodput]
    def __init__(self, server: _Optional[str] = ..., generation: _Optional[int] = ..., at: _Optional[float] = ..., idle: _Optional[_Iterable[_Union[IdleGoodput, _Mapping]]] = ...) -> None: ...

class IdleGoodput(_message.Message):
    __slots__ = ("service", "idle_per_s", "response_ms", "deadline_ms", "fps", "tpot_ms")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    IDLE_PER_S_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    FPS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    service: str
    idle_per_s: float
    response_ms: float
    deadline_ms: float
    fps: float
    tpot_ms: float
    def __init__(self, service: _Optional[str] = ..., idle_per_s: _Optional[float] = ..., response_ms: _Optional[float] = ..., deadline_ms: _Optional[float] = ..., fps: _Optional[float] = ..., tpot_ms: _Optional[float] = ...) -> None: ...

class HeadBeat(_message.Message):
    __slots__ = ("group", "stages", "rendezvous", "ready", "memory_bytes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    group: str
    stages: _containers.RepeatedCompositeFieldContainer[StageSpec]
    rendezvous: str
    ready: bool
    memory_bytes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageSpec, _Mapping]]] = ..., rendezvous: _Optional[str] = ..., ready: bool = ..., memory_bytes: _Optional[_Iterable[int]] = ...) -> None: ...

class StageBeat(_message.Message):
    __slots__ = ("pids", "ended", "status", "detail", "leaving")
    PIDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    pids: _containers.RepeatedScalarFieldContainer[int]
    ended: bool
    status: int
    detail: str
    leaving: bool
    def __init__(self, pids: _Optional[_Iterable[int]] = ..., ended: bool = ..., status: _Optional[int] = ..., detail: _Optional[str] = ..., leaving: bool = ...) -> None: ...
