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


def group_to_pb(g: ports.GroupSpec) -> pb.GroupSpec:
    return pb.GroupSpec(
        group=g.group,
        server=g.server,
        device_type=g.device_type,
        device_kind=g.device_kind,
        devices=g.devices,
        tp=g.tp,
        pp=g.pp,
        tenants=[tenant_to_pb(t) for t in g.tenants],
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
        tenants=tuple(tenant_from_pb(t) for t in m.tenants),
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


def state_to_pb(state: ports.ExecutorState) -> pb.StateResponse:
    return pb.StateResponse(
        server=state.server,
        incarnation=state.incarnation,
        fence=pb.Fence(epoch=state.epoch, generation=state.generation),
        at=state.at,
        services=[
            pb.ServiceState(
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
            )
            for s in state.services
        ],
        replicas=[
            pb.ReplicaState(
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
            )
            for r in state.replicas
        ],
        plan_json=state.plan_json,
    )


def state_from_pb(m: pb.StateResponse) -> ports.ExecutorState:
    return ports.ExecutorState(
        server=m.server,
        incarnation=m.incarnation,
        epoch=m.fence.epoch,
        generation=m.fence.generation,
        at=m.at,
        services=tuple(
            ports.ServiceObservation(
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
            )
            for s in m.services
        ),
        replicas=tuple(
            ports.ReplicaObservation(
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
            )
            for r in m.replicas
        ),
        plan_json=m.plan_json,
    )
