"""What replicas and devices were measured to do, as executors report it: figures for terminal, page and JSON."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from epara_opt.control.ports import FleetState, Histogram, ReplicaObservation
from epara_opt.report.cells import cell, grid
from epara_opt.report.figures import millis, number, percent
from epara_opt.report.markup import Child
from epara_opt.report.tables import table

_NOTE = "latencies (about, from histograms) and rows since each executor's start, rates and busy over the last 10 s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFigures:
    """One replica; None where nothing was measured yet, or histograms were not asked for."""

    server: str
    replica: str
    service: str
    state: str
    waiting: int  # requests not yet at the worker
    running: int  # requests at the worker
    arrived_per_s: float
    busy_share: float
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    queue_p99_ms: float | None
    first_token_p50_ms: float | None  # of generations that stream
    per_token_p50_ms: float | None
    mean_batch: float | None  # rows; generations side by side
    memory_bytes: int | None  # per device
    restarts: int  # of its group's worker


def figures_of(fleet: FleetState) -> tuple[ReplicaFigures, ...]:
    """By server, then by replica."""
    return tuple(
        _figures(name, r)
        for name, state in sorted(fleet.executors.items())
        for r in sorted(state.replicas, key=lambda r: r.replica)
    )


def _figures(server: str, r: ReplicaObservation) -> ReplicaFigures:
    h = r.histograms
    return ReplicaFigures(
        server=server,
        replica=r.replica,
        service=r.service,
        state=r.state,
        waiting=r.waiting,
        running=max(0, r.queued - r.waiting),
        arrived_per_s=r.arrived_per_s,
        busy_share=r.busy_share,
        e2e_p50_ms=_ms(h.e2e_s, 0.5) if h else None,
        e2e_p99_ms=_ms(h.e2e_s, 0.99) if h else None,
        queue_p99_ms=_ms(h.queue_s, 0.99) if h else None,
        first_token_p50_ms=_ms(h.first_token_s, 0.5) if h else None,
        per_token_p50_ms=_ms(h.per_token_s, 0.5) if h else None,
        mean_batch=h.batch_rows.sum / h.batch_rows.count if h and h.batch_rows.count else r.mean_batch or None,
        memory_bytes=r.memory_bytes or None,
        restarts=r.restarts,
    )


def _ms(histogram: Histogram, share: float) -> float | None:
    seconds = histogram.quantile(share)
    return None if seconds is None else 1000.0 * seconds


def _memory(memory_bytes: int | None) -> str:
    return number(memory_bytes / 2**20) if memory_bytes is not None else "–"


def replicas_grid(rows: Sequence[ReplicaFigures]) -> Table:
    """Fits 100 columns; names of replicas, which say their server, are folded beyond 34 characters."""
    tones = {"live": "green", "failed": "red"}
    cells: list[list[Text | str]] = [
        [
            r.replica,
            cell(r.state, tones.get(r.state, "yellow")),
            str(r.waiting),
            str(r.running),
            number(r.arrived_per_s),
            percent(r.busy_share),
            millis(r.e2e_p50_ms),
            millis(r.e2e_p99_ms),
            number(r.mean_batch),
            _memory(r.memory_bytes),
            cell(r.restarts, "yellow" if r.restarts else ""),
        ]
        for r in rows
    ]
    heads = [
        "Replica", "!State", "#Waits", "#Runs", "#Per s", "#Busy", "#p50 ms", "#p99 ms", "#Rows", "#MiB",
        "#Re-\nstarts",
    ]  # fmt: skip
    return grid("Replicas; latencies, rows: since each executor's start", heads, cells)


def energy_grid(fleet: FleetState) -> Table | None:
    """Devices whose energy could be read; None where there is none."""
    rows = _energy(fleet)
    return grid("Energy since each driver was loaded", ["Server", "!Device", "Name", "#kJ"], rows) if rows else None


def _energy(fleet: FleetState) -> list[list[str]]:
    return [
        [name, f"{d.kind} {d.index}", d.name, number(d.energy_j / 1000.0)]
        for name, state in sorted(fleet.executors.items())
        for d in state.devices
    ]


def replicas_section(fleet: FleetState) -> list[Child]:
    """For the page: every figure of every replica, and energy."""
    heads = [
        "Replica", "Server", "State", "#Waiting", "#Running", "#Arrivals/s", "#Busy", "#Latency p50, ms",
        "#p99, ms", "#Queue p99, ms", "#First token p50, ms", "#Per token p50, ms", "#Rows of a batch", "#Memory, MiB",
        "#Restarts",
    ]  # fmt: skip
    rows: list[list[Child]] = [
        [
            r.replica,
            r.server,
            r.state,
            str(r.waiting),
            str(r.running),
            number(r.arrived_per_s),
            percent(r.busy_share),
            millis(r.e2e_p50_ms),
            millis(r.e2e_p99_ms),
            millis(r.queue_p99_ms),
            millis(r.first_token_p50_ms),
            millis(r.per_token_p50_ms),
            number(r.mean_batch),
            _memory(r.memory_bytes),
            str(r.restarts),
        ]
        for r in figures_of(fleet)
    ]
    made: list[ET.Element] = [table(f"Replicas; {_NOTE}", heads, rows)]
    if energy := _energy(fleet):
        made.append(table("Energy since each driver was loaded", ["Server", "Device", "Name", "#Energy, kJ"], energy))
    if fleet.down:
        silent: list[list[Child]] = [[name, why] for name, why in sorted(fleet.down.items())]
        made.append(table("Executors that did not answer", ["Server", "Why"], silent))
    return list(made)
