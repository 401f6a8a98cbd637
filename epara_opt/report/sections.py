"""Sections of the page that are tables at heart: goodput, routes, unserved demand, actions, appendix."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from itertools import groupby

from epara_opt.domain.category import Category
from epara_opt.domain.topology import Topology
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import PlanningRules
from epara_opt.report.figures import (
    STOP_WORDS,
    UNSERVED_WORDS,
    Share,
    by_category,
    by_origin,
    deadline_ms,
    forecasts,
    hosts,
    millis,
    number,
    operators_in_use,
    percent,
    tightest_first,
    unit,
    weight,
)
from epara_opt.report.markup import Child, el
from epara_opt.report.tables import bar, budget_bar, chip, service_name, table

_MOST_ROUTES = 800
_MOST_UNSERVED = 200  # rows of reasons that stand open
_MOST_SHARES = 12  # rows of a share table that stand open

ACTION_WORDS: Mapping[ActionKind, str] = {
    ActionKind.PREPARE: "load and warm up beside what runs",
    ActionKind.COMMIT: "switch routes",
    ActionKind.RETIRE: "drain, then unload",
}


def goodput(plan: Plan, topology: Topology, hue: Mapping[str, int]) -> list[Child]:
    used = operators_in_use(plan, topology)
    counts: dict[str, int] = {}
    for r in plan.replicas:
        counts[r.service] = counts.get(r.service, 0) + 1
    heads = [
        "Service", "Category", "SLO attainment", "#Served", "#Offered", "Unit", "#Weight", "#Replicas",
        "Operators used", "#Slowest route, ms", "#Deadline, ms",
    ]  # fmt: skip
    rows: list[list[Child]] = [
        [
            service_name(f.service, hue.get(f.service, 0)),
            f.category,
            bar(f.slo_attainment) if f.offered > 0 else "nothing offered",
            number(f.goodput),
            number(f.offered),
            f.unit,
            f"{weight(topology, f.service):.3g}",
            str(counts.get(f.service, 0)),
            " ".join(used.get(f.service, ())) or "–",
            millis(f.worst_ms) if f.worst_ms else "–",
            millis(deadline_ms(topology, f.service)),
        ]
        for f in forecasts(plan, topology)
    ]
    return [
        _scale(plan),
        table("Services, the one that loses most value first", heads, rows, folded=False if len(rows) > 60 else None),
        el(
            "p",
            "Operators: BS batching, MT several services share a group, MP tensor or pipeline parallel, "
            "MF several frames per batch, DP one origin's streams over several replicas.",
            class_="sub",
        ),
        el(
            "div",
            _shares("By category", by_category(plan, topology)),
            _shares("By origin", by_origin(plan, topology)),
            class_="pair",
        ),
    ]


def _shares(caption: str, shares: Sequence[Share]) -> ET.Element | None:
    rows: list[list[Child]] = [[s.name, bar(s.attainment), number(s.served), number(s.offered)] for s in shares]
    heads = [caption.removeprefix("By ").capitalize(), "SLO attainment", "#Served", "#Offered"]
    folded = True if len(rows) > _MOST_SHARES else None
    return table(f"{caption} (weighted)", heads, rows, folded=folded) if rows else None


def _scale(plan: Plan) -> ET.Element:
    """Served, proven limit and offered on one scale."""
    p = plan.predicted
    most = max(p.offered, p.goodput, plan.dual_bound or 0.0) or 1.0
    limit = plan.dual_bound
    says = [
        el("li", el("i", class_="dot fill"), el("b", number(p.goodput)), " served within the SLO"),
        el("li", el("i", class_="dot bound"), el("b", number(limit)), " at most, proven")
        if limit is not None
        else el("li", "no bound was proved"),
        el("li", el("i", class_="dot track"), el("b", number(p.offered)), " offered"),
    ]
    return el(
        "div",
        el(
            "div",
            el("i", class_="fill", style=f"width:{100 * p.goodput / most:.2f}%"),
            el("i", class_="bound", style=f"left:{100 * limit / most:.2f}%") if limit is not None else None,
            class_="scale",
            role="img",
            aria_label=f"{number(p.goodput)} served of {number(p.offered)} offered; "
            + (f"proven limit {number(limit)}" if limit is not None else "no bound proved"),
        ),
        el("ul", says, class_="legend"),
        el("p", "All in weighted work/s, the unit of the objective: requests per second, and streams.", class_="sub"),
    )


def routes(plan: Plan, topology: Topology, hue: Mapping[str, int]) -> list[Child]:
    at = hosts(plan)
    ordered = tightest_first(plan, topology)
    heads = [
        "Service",
        "Origin",
        "Served at",
        "#Rate",
        "Unit",
        "Deadline spent",
        "#Network, ms",
        "#Service, ms",
        "#Deadline, ms",
    ]
    rows: list[list[Child]] = []
    for r in ordered[:_MOST_ROUTES]:
        deadline = deadline_ms(topology, r.service)
        inside = max(0.0, r.predicted_ms - r.network_ms)
        host = at.get(r.replica, r.replica)
        rows.append(
            [
                service_name(r.service, hue.get(r.service, 0)),
                r.origin,
                "here" if host == r.origin else host,
                number(r.rate),
                unit(topology, r.service),
                budget_bar(r.network_ms, inside, deadline),
                millis(r.network_ms),
                millis(inside),
                millis(deadline),
            ]
        )
    key = el(
        "ul",
        el("li", el("i", class_="dot net"), "network"),
        el("li", el("i", class_="dot srv"), "service, worst case predicted"),
        el("li", el("i", class_="dot track"), "slack to the deadline"),
        class_="legend",
    )
    left = len(ordered) - len(rows)
    more = el("p", f"{left} routes with more slack are in the plan and not on this page.") if left else None
    return [key, table("Routes, the tightest first", heads, rows), more]


def unserved(plan: Plan, topology: Topology, hue: Mapping[str, int]) -> list[Child]:
    if not plan.unserved:
        return [el("p", "Nothing: all that is offered is served.")]
    made: list[Child] = []

    def lost(code: str) -> float:
        return sum(weight(topology, u.service) * u.rate for u in plan.unserved if u.code == code)

    for code in sorted({u.code for u in plan.unserved}, key=lambda c: (-lost(c), c)):
        rows: list[list[Child]] = [
            [
                service_name(u.service, hue.get(u.service, 0)),
                u.origin,
                number(u.rate),
                unit(topology, u.service),
                u.reason,
            ]
            for u in sorted(plan.unserved, key=lambda u: (-weight(topology, u.service) * u.rate, u.service, u.origin))
            if u.code == code
        ]
        caption = f"{UNSERVED_WORDS.get(code, code)}: {number(lost(code))} weighted work/s"
        folded = None if len(rows) <= 60 else len(rows) > _MOST_UNSERVED
        made.append(table(caption, ["Service", "Origin", "#Rate", "Unit", "Why"], rows, folded=folded))
    return made


def actions(plan: Plan) -> list[Child]:
    if not plan.actions:
        return [el("p", "None: the plan in force already does all this, or the actions were not derived.")]
    stages: list[ET.Element] = []
    ordered = sorted(plan.actions, key=lambda a: (a.stage, list(ActionKind).index(a.kind), a.server))
    for stage, members in groupby(ordered, key=lambda a: a.stage):
        todo = list(members)
        rows: list[list[Child]] = [
            [
                chip(a.kind.value, a.kind.value),
                a.server,
                [el("div", g, class_="id") for g in a.groups] or "–",
                a.detail,
            ]
            for a in todo
        ]
        kinds = "; ".join(f"{k.value} ({ACTION_WORDS[k]})" for k in ActionKind if any(a.kind is k for a in todo))
        stages.append(table(f"Stage {stage}: {kinds}", ["Action", "Server", "Groups", "Detail"], rows))
    return [el("p", "Stages run in order; the actions of one stage run side by side.", class_="sub"), stages]


def categories_table(topology: Topology, categories: Mapping[str, Category]) -> ET.Element:
    heads = ["Service", "Category", "Operators allowed", "Why"]
    rows: list[list[Child]] = [
        [name, str(c), " ".join(c.operators), c.reason] for name, c in categories.items() if name in topology.services
    ]
    return table("Services and their categories", heads, rows)


def appendix(
    plan: Plan, topology: Topology, categories: Mapping[str, Category] | None, rules: PlanningRules | None
) -> list[Child]:
    facts: list[tuple[str, str]] = [
        ("Topology", plan.topology),
        ("Generation", str(plan.generation)),
        ("Made at", plan.made_at or "not recorded"),
        ("Solver", plan.solver),
        ("Stop", f"{plan.stop.value} ({STOP_WORDS[plan.stop]})"),
        ("Objective", f"{plan.objective:.6g}"),
        ("Dual bound", "none proved" if plan.dual_bound is None else f"{plan.dual_bound:.6g}"),
        ("Gap", percent(plan.gap)),
        ("Wall time, s", number(plan.wall_s)),
        ("Digest of the inputs", plan.inputs_digest),
    ]
    if rules is not None:
        facts += [
            ("Rule max_utilization", number(rules.max_utilization)),
            ("Rule on_time_target", "none" if rules.on_time_target is None else number(rules.on_time_target)),
            ("Rule max_tenants", str(rules.max_tenants)),
            ("Rule max_contents", str(rules.max_contents)),
            ("Rule max_edges", str(rules.max_edges)),
            ("Rule horizon_s", number(rules.horizon_s)),
            ("Rule make_before_break", "yes" if rules.make_before_break else "no"),
            ("Rule max_moves", "no limit" if rules.max_moves is None else str(rules.max_moves)),
        ]
    return [
        el("dl", [(el("dt", k), el("dd", v)) for k, v in facts], class_="facts"),
        el("div", el("h3", "Notes"), el("ul", [el("li", n) for n in plan.notes])) if plan.notes else None,
        categories_table(topology, categories) if categories else None,
        _links_table(topology),
    ]


def _links_table(topology: Topology) -> ET.Element | None:
    heads = ["From", "To", "#RTT, ms", "#Bandwidth, Mbit/s"]
    rows: list[list[Child]] = [
        [*link.between, millis(link.rtt_ms), number(link.bandwidth_bytes_per_s * 8 / 1e6)] for link in topology.links
    ]
    return table("Links", heads, rows) if rows else None
