"""load: clients of a topology's demand, in open loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import Compression, JsonFlag, MaxMessage, TopologyArgument, emit, err, seconds
from epara_opt.errors import InputError, Violation
from epara_opt.report.load import LoadWindow

if TYPE_CHECKING:
    from epara_executors.load import LoadProgress
    from epara_executors.load_report import LoadReport
    from epara_executors.load_spec import LoadSpec

    from epara_opt.domain.topology import Topology
    from epara_opt.traces import Trace

BYTES_PER_WORD = 6  # of the words that text inputs are made of, the space included; byte-level tokenizers count bytes


def register(app: typer.Typer) -> None:
    """Add the command to the root."""
    app.command("load")(load)


def load(
    topology: TopologyArgument,
    duration: Annotated[str, typer.Option(help="How long: 30s, 2m.")] = "30s",
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals from this CSV; Poisson or gamma by demand if none.")
    ] = None,
    scale: Annotated[float, typer.Option(min=0.001, help="Times the declared demand; streams are rounded.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and inputs.")] = 0,
    max_requests: Annotated[int, typer.Option(min=1, help="Never more than so many.")] = 100_000,
    max_message_mib: MaxMessage = 256,
    compression: Compression = "none",
    as_json: JsonFlag = False,
) -> None:
    """Send the demand of TOPOLOGY to its executors and measure goodput and SLO attainment as clients see them."""
    from epara_executors.channel import ChannelSettings
    from epara_executors.load import LoadGenerator, LoadRun
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from epara_opt.report.terminal_live import load_table
    from epara_opt.topology import load_topology

    edge = load_topology(topology, with_profiles=False).topology
    duration_s = seconds(duration)
    specs = load_specs(edge, duration_s, trace=trace, scale=scale)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
        task = bar.add_task("loading", total=duration_s)

        def show(p: LoadProgress) -> None:
            bar.update(task, completed=p.elapsed_s, description=f"{p.done} answered, {p.outcomes['on_time']} on time")

        generator = LoadGenerator(
            specs,
            duration_s=duration_s,
            seed=seed,
            max_requests=max_requests,
            settings=ChannelSettings(max_message_mib=max_message_mib, compression=compression),
            on_progress=show,
        )
        report = LoadRun(generator).start().result()
    emit(report.to_dict(), load_table(totals(report)), as_json=as_json)


def load_specs(
    topology: Topology, duration_s: float, *, trace: Path | None = None, scale: float = 1.0
) -> list[LoadSpec]:
    """Clients of every demand. With a trace, each latency-sensitive demand follows its own part of it.

    Clients whose executor does not answer go to the next by network distance.
    """
    from epara_executors.load_spec import LoadSpec

    from epara_opt.traces import read_trace

    recorded = read_trace(trace) if trace is not None else None
    if not topology.demand:
        raise InputError(Violation(path="demand", law="expected something to send", value="nothing"))
    specs: list[LoadSpec] = []
    for i, demand in enumerate(topology.demand):
        service = topology.services[demand.service]
        address = topology.servers[demand.origin].address
        if address is None:
            path = f"servers.{demand.origin}.address"
            raise InputError(Violation(path=path, law="expected host:port, clients enter there", value="none"))
        offered = demand.offered * scale
        arrivals = None if service.is_stream or recorded is None else _arrivals(recorded, offered, duration_s, i)
        specs.append(
            LoadSpec(
                service=service.name,
                origin=demand.origin,
                address=address,
                deadline_ms=service.deadline_ms,
                rate_per_s=None if service.is_stream or arrivals is not None else offered,
                burstiness_cv=demand.burstiness_cv or 1.0,
                arrivals_s=arrivals,
                streams=round(offered) if service.is_stream else None,
                fps=service.fps or 0.0,
                prompt_tokens=max(service.request.prompt_tokens // BYTES_PER_WORD, 1),
                output_tokens=service.request.output_tokens,
                failover=_others(topology, demand.origin),
            )
        )
    return specs


def _arrivals(trace: Trace, rate_per_s: float, duration_s: float, part: int) -> tuple[float, ...]:
    """A part of the trace, stretched to the rate. Different parts, so that bursts coincide only by chance."""
    if rate_per_s <= 0:
        return ()
    span_s = min(duration_s * rate_per_s / trace.rate_per_s, trace.duration_s)
    start_s = (part * 41.0) % max(trace.duration_s - span_s, 1.0)
    window = trace.window(start_s, span_s)
    if not len(window):
        return ()
    arrivals = window.scaled(rate_per_s)
    return tuple(float(t) for t in arrivals.arrival_s if t < duration_s)


def _others(topology: Topology, origin: str) -> tuple[str, ...]:
    found = [
        (path.rtt_ms, server.address)
        for server in topology.servers.values()
        if server.address and server.name != origin and (path := topology.path(origin, server.name)) is not None
    ]
    return tuple(address for _, address in sorted(found))


def windows(report: LoadReport, *, window_s: float = 1.0) -> tuple[LoadWindow, ...]:
    """The report page's form of the same records."""
    made: list[LoadWindow] = []
    for w in report.windows(window_s=window_s):
        part = report.between(w.starts_at, w.starts_at + window_s)
        mine = [r for r in part.records if r.service == w.service]
        answered = sorted(r.latency_ms for r in mine if r.outcome in ("on_time", "late"))
        made.append(
            LoadWindow(
                at=report.started_at + w.starts_at,
                duration_s=window_s,
                service=w.service,
                sent=w.offered,
                on_time=w.on_time,
                late=sum(r.outcome == "late" for r in mine),
                shed=sum(r.outcome == "shed" for r in mine),
                failed=sum(r.outcome in ("failed", "timeout") for r in mine),
                p50_ms=percentile(answered, 0.50),
                p99_ms=percentile(answered, 0.99),
            )
        )
    return tuple(made)


def totals(report: LoadReport) -> tuple[LoadWindow, ...]:
    """One window per service over the whole run, so that percentiles are the run's own."""
    return windows(report, window_s=report.duration_s + 1.0)


def percentile(ascending: Sequence[float], q: float) -> float | None:
    """Nearest rank: the smallest value that at least q of all do not exceed. None where there is none."""
    return ascending[max(0, math.ceil(q * len(ascending)) - 1)] if ascending else None
