"""Between epara.proto's messages and the dataclasses of epara_opt.control.ports. Field names agree by intent."""

from __future__ import annotations

from epara_opt.control import ports

from . import epara_pb2 as pb


def fence_to_pb(fence: ports.Fence) -> pb.Fence:
    return pb.Fence(epoch=fence.epoch, generation=fence.generation)


def fence_from_pb(message: pb.Fence) -> ports.Fence:
    return ports.Fence(epoch=message.epoch, generation=message.generation)


def tenant_to_pb(t: ports.TenantSpec) -> pb.TenantSpec:
    return pb.TenantSpec(
        replica=t.replica,
        service=t.service,
        source=t.source,
        task=t.task,
        batch=t.batch,
        frames=t.frames,
        sensitivity=t.sensitivity,
        deadline_ms=t.deadline_ms,
        fps=t.fps,
        response_ms=t.response_ms,
        work_per_s=t.work_per_s,
        prompt_tokens=t.prompt_tokens,
        output_tokens=t.output_tokens,
        tpot_ms=t.tpot_ms,
    )


def tenant_from_pb(m: pb.TenantSpec) -> ports.TenantSpec:
    return ports.TenantSpec(
        replica=m.replica,
        service=m.service,
        source=m.source,
        task=m.task,
        batch=m.batch,
        frames=m.frames,
        sensitivity=m.sensitivity,
        deadline_ms=m.deadline_ms,
        fps=m.fps,
        response_ms=m.response_ms,
        work_per_s=m.work_per_s,
        prompt_tokens=m.prompt_tokens,
        output_tokens=m.output_tokens,
        tpot_ms=m.tpot_ms,
    )


def stage_to_pb(s: ports.StageSpec) -> pb.StageSpec:
    return pb.StageSpec(
        server=s.server,
        address=s.address,
        device_kind=s.device_kind,
        devices=s.devices,
        first_layer=s.first_layer,
        end_layer=s.end_layer,
    )


def stage_from_pb(m: pb.StageSpec) -> ports.StageSpec:
    return ports.StageSpec(
        server=m.server,
        address=m.address,
        device_kind=m.device_kind,
        devices=tuple(m.devices),
        first_layer=m.first_layer,
        end_layer=m.end_layer,
    )


def group_to_pb(g: ports.GroupSpec) -> pb.GroupSpec:
    return pb.GroupSpec(
        group=g.group,
        server=g.server,
        device_type=g.device_type,
        device_kind=g.device_kind,
        devices=g.devices,
        tp=g.tp,
        pp=g.pp,
        parts=g.parts,
        tenants=[tenant_to_pb(t) for t in g.tenants],
        stages=[stage_to_pb(s) for s in g.stages],
    )


def group_from_pb(m: pb.GroupSpec) -> ports.GroupSpec:
    return ports.GroupSpec(
        group=m.group,
        server=m.server,
        device_type=m.device_type,
        device_kind=m.device_kind,
        devices=tuple(m.devices),
        tp=m.tp,
        pp=m.pp,
        parts=m.parts or 1,
        tenants=tuple(tenant_from_pb(t) for t in m.tenants),
        stages=tuple(stage_from_pb(s) for s in m.stages),
    )


def commit_to_pb(spec: ports.CommitSpec, fence: ports.Fence) -> pb.CommitRequest:
    return pb.CommitRequest(
        fence=fence_to_pb(fence),
        server=spec.server,
        groups=[group_to_pb(g) for g in spec.groups],
        routes=[
            pb.RouteSpec(
                service=r.service,
                replica=r.replica,
                server=r.server,
                address=r.address,
                rate_per_s=r.rate_per_s,
                network_ms=r.network_ms,
                frames=r.frames,
            )
            for r in spec.routes
        ],
        peers=[
            pb.PeerSpec(
                service=p.service,
                server=p.server,
                address=p.address,
                network_ms=p.network_ms,
                capacity_per_s=p.capacity_per_s,
            )
            for p in spec.peers
        ],
        plan_json=spec.plan_json,
    )


def commit_from_pb(m: pb.CommitRequest) -> ports.CommitSpec:
    return ports.CommitSpec(
        server=m.server,
        groups=tuple(group_from_pb(g) for g in m.groups),
        routes=tuple(
            ports.RouteSpec(
                service=r.service,
                replica=r.replica,
                server=r.server,
                address=r.address,
                rate_per_s=r.rate_per_s,
                network_ms=r.network_ms,
                frames=r.frames or 1,
            )
            for r in m.routes
        ),
        peers=tuple(
            ports.PeerSpec(
                service=p.service,
                server=p.server,
                address=p.address,
                network_ms=p.network_ms,
                capacity_per_s=p.capacity_per_s,
            )
            for p in m.peers
        ),
        plan_json=m.plan_json,
    )


def fetch_spec_to_pb(f: ports.FetchSpec) -> pb.FetchSpec:
    return pb.FetchSpec(source=f.source, holders=[pb.HolderSpec(server=h.server, address=h.address) for h in f.holders])


def fetch_spec_from_pb(m: pb.FetchSpec) -> ports.FetchSpec:
    holders = tuple(ports.HolderSpec(server=h.server, address=h.address) for h in m.holders)
    return ports.FetchSpec(source=m.source, holders=holders)


def fetch_to_pb(f: ports.FetchObservation) -> pb.FetchState:
    return pb.FetchState(
        source=f.source,
        state=f.state,
        origin=f.origin,
        done_bytes=f.done_bytes,
        total_bytes=f.total_bytes,
        detail=f.detail,
    )


def fetch_from_pb(m: pb.FetchState) -> ports.FetchObservation:
    return ports.FetchObservation(
        source=m.source,
        state=m.state,
        origin=m.origin,
        done_bytes=m.done_bytes,
        total_bytes=m.total_bytes,
        detail=m.detail,
    )


def histogram_to_pb(h: ports.Histogram) -> pb.Histogram:
    return pb.Histogram(bounds=h.bounds, counts=h.counts, sum=h.sum)


def histogram_from_pb(m: pb.Histogram) -> ports.Histogram:
    return ports.Histogram(bounds=tuple(m.bounds), counts=tuple(m.counts), sum=m.sum)


def _service_to_pb(s: ports.ServiceObservation) -> pb.ServiceState:
    return pb.ServiceState(
        service=s.service,
        arrived=s.arrived,
        on_time=s.on_time,
        late=s.late,
        shed=s.shed,
        failed=s.failed,
        forwarded=s.forwarded,
        served=s.served,
        streams=s.streams,
        latency_p50_ms=s.latency_p50_ms,
        latency_p99_ms=s.latency_p99_ms,
        arrived_per_s=s.arrived_per_s,
        e2e_s=histogram_to_pb(s.e2e_s) if s.e2e_s is not None else None,
    )


def _service_from_pb(m: pb.ServiceState) -> ports.ServiceObservation:
    return ports.ServiceObservation(
        service=m.service,
        arrived=m.arrived,
        on_time=m.on_time,
        late=m.late,
        shed=m.shed,
        failed=m.failed,
        forwarded=m.forwarded,
        served=m.served,
        streams=m.streams,
        latency_p50_ms=m.latency_p50_ms,
        latency_p99_ms=m.latency_p99_ms,
        arrived_per_s=m.arrived_per_s,
        e2e_s=histogram_from_pb(m.e2e_s) if m.HasField("e2e_s") else None,
    )


def _replica_to_pb(r: ports.ReplicaObservation) -> pb.ReplicaState:
    message = pb.ReplicaState(
        replica=r.replica,
        group=r.group,
        service=r.service,
        state=r.state,
        queued=r.queued,
        served=r.served,
        busy_s=r.busy_s,
        mean_batch=r.mean_batch,
        batch_ms=r.batch_ms,
        detail=r.detail,
        waiting=r.waiting,
        arrived=r.arrived,
        arrived_per_s=r.arrived_per_s,
        busy_share=r.busy_share,
        memory_bytes=r.memory_bytes,
        restarts=r.restarts,
        batch_times=[
            pb.BatchTime(rows=b.rows, num_batches=b.num_batches, median_ms=b.median_ms) for b in r.batch_times
        ],
        stages=r.stages,
        num_stages=r.num_stages,
    )
    if (h := r.histograms) is not None:
        message.queue_s.CopyFrom(histogram_to_pb(h.queue_s))
        message.service_s.CopyFrom(histogram_to_pb(h.service_s))
        message.e2e_s.CopyFrom(histogram_to_pb(h.e2e_s))
        message.first_token_s.CopyFrom(histogram_to_pb(h.first_token_s))
        message.per_token_s.CopyFrom(histogram_to_pb(h.per_token_s))
        message.batch_rows.CopyFrom(histogram_to_pb(h.batch_rows))
    return message


def _replica_from_pb(m: pb.ReplicaState) -> ports.ReplicaObservation:
    histograms = None
    if m.HasField("queue_s"):
        histograms = ports.ReplicaHistograms(
            queue_s=histogram_from_pb(m.queue_s),
            service_s=histogram_from_pb(m.service_s),
            e2e_s=histogram_from_pb(m.e2e_s),
            first_token_s=histogram_from_pb(m.first_token_s),
            per_token_s=histogram_from_pb(m.per_token_s),
            batch_rows=histogram_from_pb(m.batch_rows),
        )
    return ports.ReplicaObservation(
        replica=m.replica,
        group=m.group,
        service=m.service,
        state=m.state,
        queued=m.queued,
        served=m.served,
        busy_s=m.busy_s,
        mean_batch=m.mean_batch,
        batch_ms=m.batch_ms,
        detail=m.detail,
        waiting=m.waiting,
        arrived=m.arrived,
        arrived_per_s=m.arrived_per_s,
        busy_share=m.busy_share,
        memory_bytes=m.memory_bytes,
        restarts=m.restarts,
        batch_times=tuple(
            ports.BatchTime(rows=b.rows, num_batches=b.num_batches, median_ms=b.median_ms) for b in m.batch_times
        ),
        histograms=histograms,
        stages=tuple(m.stages),
        num_stages=m.num_stages,
    )


def state_to_pb(state: ports.ExecutorState) -> pb.StateResponse:
    return pb.StateResponse(
        server=state.server,
        incarnation=state.incarnation,
        fence=pb.Fence(epoch=state.epoch, generation=state.generation),
        at=state.at,
        services=[_service_to_pb(s) for s in state.services],
        replicas=[_replica_to_pb(r) for r in state.replicas],
        plan_json=state.plan_json,
        devices=[pb.DeviceState(kind=d.kind, index=d.index, name=d.name, energy_j=d.energy_j) for d in state.devices],
        draining=state.draining,
        fetches=[fetch_to_pb(f) for f in state.fetches],
        model_bytes_received=state.model_bytes_received,
        model_bytes_sent=state.model_bytes_sent,
    )


def state_from_pb(m: pb.StateResponse) -> ports.ExecutorState:
    return ports.ExecutorState(
        server=m.server,
        incarnation=m.incarnation,
        epoch=m.fence.epoch,
        generation=m.fence.generation,
        at=m.at,
        services=tuple(_service_from_pb(s) for s in m.services),
        replicas=tuple(_replica_from_pb(r) for r in m.replicas),
        plan_json=m.plan_json,
        devices=tuple(
            ports.DeviceObservation(kind=d.kind, index=d.index, name=d.name, energy_j=d.energy_j) for d in m.devices
        ),
        draining=m.draining,
        fetches=tuple(fetch_from_pb(f) for f in m.fetches),
        model_bytes_received=m.model_bytes_received,
        model_bytes_sent=m.model_bytes_sent,
    )
