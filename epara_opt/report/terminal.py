"""Plans on a terminal, and the names under which commands find every table. All return renderables; none prints.

At 80 columns every table still shows all its columns: names fold, numbers do not. Without a terminal rich leaves
the colours out, so nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from epara_opt.domain.topology import Topology
from epara_opt.plan import ActionKind, Plan
from epara_opt.report.cells import TONES, cell, grid, pairs, share, short_unit, spaced
from epara_opt.report.figures import (
    STOP_WORDS,
    deadline_ms,
    devices_label,
    forecasts,
    hosts,
    millis,
    num_devices,
    num_devices_used,
    number,
    percent,
    replicas_at,
    tightest_first,
    tone,
    unit,
    verdict,
    weight,
)
from epara_opt.report.terminal_diff import diff_table
from epara_opt.report.terminal_live import history_table, load_table, solvers_table, status_table
from epara_opt.report.terminal_topology import topology_table

__all__ = [
    "diff_table",
    "history_table",
    "load_table",
    "plan_table",
    "plan_view",
    "solvers_table",
    "status_table",
    "summary",
    "topology_table",
]


def plan_view(plan: Plan, topology: Topology, *, max_rows: int | None = 40) -> Group:
    """Summary and tables: what `epara plan` shows."""
    return Group(summary(plan), Text(), plan_table(plan, topology, max_rows=max_rows))


def summary(plan: Plan) -> Group:
    """The verdict, goodput against offered and bound, gap, stop, and what is used."""
    p = plan.predicted
    groups, servers = len({r.group for r in plan.replicas}), len({p[0] for r in plan.replicas for p in r.places})
    bound = (
        "none proved by this solver"
        if plan.dual_bound is None
        else f"{number(plan.dual_bound)} proven on an objective of {number(plan.objective)}; gap {percent(plan.gap)}"
    )
    rows: list[tuple[str, Text | str]] = [
        ("goodput", f"{number(p.goodput)} of {number(p.offered)} offered (weighted work/s)"),
        ("bound", bound),
        ("stop", f"{STOP_WORDS[plan.stop]}, {number(plan.wall_s)} s, solver {plan.solver}"),
        ("uses", f"{len(plan.replicas)} replicas on {groups} device groups at {servers} servers"),
        ("plan", f"generation {plan.generation} of {plan.topology}, inputs {plan.inputs_digest}"),
    ]  # fmt: skip
    rows += [("note", n) for n in plan.notes]
    style = f"bold {TONES[tone(p.slo_attainment)]}" if p.offered > 0 else "bold"
    return Group(cell(verdict(plan), style), pairs(rows))


def certificate_view(found: Mapping[str, Any]) -> RenderableType:
    """What was recomputed of a plan, and what it claims. found: as `epara plan --certify --json` prints it."""
    claimed = found["claimed_bound"]
    searched = claimed is not None and claimed < found["certified_bound"] * (1.0 - 1e-6)
    return pairs(
        [
            ("Checked", "every replica, route and claim holds"),
            ("Objective", f"{found['objective']:.6g}"),
            ("Certified bound", f"{found['certified_bound']:.6g}, recomputed from the plan's prices"),
            ("Certified gap", share(found["certified_gap"])),
            (
                "Claimed bound",
                "none"
                if claimed is None
                else f"{claimed:.6g}" + (f", by the search of {found['solver']}: not proved here" if searched else ""),
            ),
        ]
    )


def plan_table(plan: Plan, topology: Topology, *, max_rows: int | None = 40) -> Group:
    """Services, what runs where, routes, unserved demand, actions by stage. Empty parts are left out."""
    parts: list[RenderableType] = [services_table(plan, topology)]
    if plan.replicas:
        parts.append(replicas_table(plan, topology, max_rows=max_rows))
    if plan.routes:
        parts.append(routes_table(plan, topology, max_rows=max_rows))
    if plan.unserved:
        parts.append(unserved_table(plan, topology, max_rows=max_rows))
    if plan.actions:
        parts.append(actions_table(plan))
    return spaced(parts)


def _of_limit(ms: float | None, limit_ms: float | None) -> str:
    return f"{millis(ms)}/{millis(limit_ms)}"


def services_table(plan: Plan, topology: Topology) -> Table:
    rows = [
        [
            f.service,
            f.category.replace("-device", ""),
            share(f.slo_attainment) if f.offered > 0 else cell("–"),
            number(f.goodput),
            number(f.offered),
            short_unit(f.unit),
            _of_limit(f.worst_ms or None, deadline_ms(topology, f.service)),
        ]
        for f in forecasts(plan, topology)
    ]
    heads = ["Service", "Category", "#SLO met", "#Served", "#Offered", "!Unit", "#Worst/\nlimit ms"]
    return grid("Services, the one that loses most first", heads, rows)


def replicas_table(plan: Plan, topology: Topology, *, max_rows: int | None = None) -> Table:
    rows: list[list[Text | str]] = []
    ends: list[int] = []
    for server, replicas in replicas_at(plan).items():
        used = plan.predicted.utilization.get(server)
        for i, r in enumerate(replicas):
            same = i > 0 and (replicas[i - 1].group, replicas[i - 1].devices) == (r.group, r.devices)
            rows.append(
                [
                    _place(server, used, i, len(replicas)),
                    "" if same else devices_label(r),
                    r.service,
                    f"{r.tp}x{r.pp}",
                    str(r.batch),
                    str(r.frames),
                    percent(r.share),
                    _of_limit(r.response_ms, deadline_ms(topology, r.service)),
                ]
            )
        ends.append(len(rows) - 1)
    used_text = f"{num_devices_used(plan)} of {num_devices(topology)} devices in use"
    heads = ["Server", "Devices", "Service", "#TPxPP", "#Batch", "#Frames", "#Share", "#Resp./\nlimit ms"]
    return grid(f"What runs where ({used_text})", heads, rows, max_rows=max_rows, sections=ends)


def _place(server: str, used: float | None, i: int, num_replicas: int) -> str:
    """The server in its first row, its utilization in the second, or both in the only one."""
    told = f"{percent(used)} used" if used is not None else ""
    if num_replicas == 1:
        return f"{server} {told}".strip()
    return server if i == 0 else told if i == 1 else ""


def routes_table(plan: Plan, topology: Topology, *, max_rows: int | None = None) -> Table:
    at = hosts(plan)
    rows = [
        [
            r.service,
            r.origin,
            "here" if at.get(r.replica) == r.origin else at.get(r.replica, r.replica),
            number(r.rate),
            short_unit(unit(topology, r.service)),
            millis(r.network_ms),
            _of_limit(r.predicted_ms, deadline_ms(topology, r.service)),
        ]
        for r in tightest_first(plan, topology)
    ]
    heads = ["Service", "Origin", "Served at", "#Rate", "!Unit", "#Network ms", "#Total/\nlimit ms"]
    return grid("Routes, the tightest first", heads, rows, max_rows=max_rows)


def unserved_table(plan: Plan, topology: Topology, *, max_rows: int | None = None) -> Table:
    ordered = sorted(plan.unserved, key=lambda u: (-weight(topology, u.service) * u.rate, u.service, u.origin))
    rows = [[u.service, u.origin, number(u.rate), short_unit(unit(topology, u.service)), u.reason] for u in ordered]
    return grid("Not served, and why", ["Service", "Origin", "#Rate", "!Unit", "Why"], rows, max_rows=max_rows)


def actions_table(plan: Plan) -> Table:
    """One line per stage and kind; servers with the number of groups each."""
    ordered = sorted(plan.actions, key=lambda a: (a.stage, list(ActionKind).index(a.kind)))
    rows: list[list[str]] = []
    for (stage, kind), members in groupby(ordered, key=lambda a: (a.stage, a.kind)):
        counts: dict[str, int] = {}
        details: dict[str, None] = {}
        for a in members:
            counts[a.server] = counts.get(a.server, 0) + len(a.groups)
            details |= {a.detail: None} if a.detail else {}
        names = [f"{s} ({n} group{'s' * (n != 1)})" if n else s for s, n in sorted(counts.items())]
        left = len(names) - 12
        text = ", ".join(names[:12]) + (f" and {left} more servers" if left > 0 else "")
        rows.append([str(stage), kind.value, text, "; ".join(list(details)[:3])])
    return grid("Actions; stages run in order", ["#Stage", "!Action", "Servers", "Detail"], rows)
