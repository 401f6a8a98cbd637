"""One self-contained HTML page about a plan: no network, no fonts, no scripts but its own few lines.

The page forbids itself everything else by its Content-Security-Policy, so it stays safe to open whatever the
names in a plan contain.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from importlib.resources import files

from epara_opt.control.ports import FleetState
from epara_opt.domain.category import Category
from epara_opt.domain.topology import Topology
from epara_opt.plan import Plan
from epara_opt.problem import PlanningRules
from epara_opt.report import sections
from epara_opt.report.edge_map import draw
from epara_opt.report.figures import (
    STOP_WORDS,
    num_devices,
    num_devices_used,
    number,
    offloaded,
    percent,
    tone,
    verdict,
)
from epara_opt.report.history import HistoryPoint
from epara_opt.report.hosting import anchors, hues, server_cards
from epara_opt.report.load import LoadWindow
from epara_opt.report.markup import Child, el, raw, to_html
from epara_opt.report.measured import history_chart, load_section
from epara_opt.report.replicas import replicas_section
from epara_opt.report.tables import tiles

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def render(
    plan: Plan,
    topology: Topology,
    *,
    categories: Mapping[str, Category] | None = None,
    history: Sequence[HistoryPoint] = (),
    load: Sequence[LoadWindow] | None = None,
    fleet: FleetState | None = None,
    title: str | None = None,
    rules: PlanningRules | None = None,
) -> str:
    """The whole page. Everything but plan and topology is optional and leaves its section out."""
    name = title or f"{plan.topology}: plan {plan.generation}"
    hue, ids = hues(topology, plan), anchors(plan, topology)
    parts: list[tuple[str, str, str, list[Child]]] = [
        ("edge", "Edge", "The edge", [draw(plan, topology, anchors=ids)]),
        ("goodput", "Goodput", "Goodput against demand and bound", sections.goodput(plan, topology, hue)),
        ("unserved", "Unserved", "What is not served, and why", sections.unserved(plan, topology, hue)),
    ]
    if history:
        parts.append(("history", "History", "The cycle's history", [history_chart(history)]))
    if load:
        parts.append(("load", "Load", "Load", load_section(load, history, hue)))
    if fleet is not None:
        parts.append(("measured", "Measured", "What executors measure", replicas_section(fleet)))
    parts += [
        ("hosting", "Hosting", "What runs where", server_cards(plan, topology, ids, hue)),
        ("routes", "Routes", "Who is served from where", sections.routes(plan, topology, hue)),
        ("actions", "Actions", "Actions, by stage", sections.actions(plan)),
        ("appendix", "Appendix", "Appendix", sections.appendix(plan, topology, categories, rules)),
    ]
    return to_html(
        el(
            "html",
            el(
                "head",
                el("meta", charset="utf-8"),
                el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
                el("meta", name="viewport", content="width=device-width, initial-scale=1"),
                el("meta", name="color-scheme", content="light dark"),
                el("meta", name="generator", content="epara-opt"),
                el("title", name),
                raw("style", _own("page.css")),
            ),
            el(
                "body",
                el("a", "Skip to the content", href="#edge", class_="skip"),
                _header(plan, topology, name),
                el("nav", [el("a", short, href=f"#{key}") for key, short, _, _ in parts], aria_label="Sections"),
                el("main", [_section(key, heading, content) for key, _, heading, content in parts]),
                raw("script", _own("page.js")),
            ),
            lang="en",
        )
    )


def _own(file: str) -> str:
    return files("epara_opt.report").joinpath(file).read_text(encoding="utf-8")


def _section(key: str, heading: str, content: list[Child]) -> ET.Element:
    return el("section", el("h2", heading), content, id=key, aria_label=heading)


def _header(plan: Plan, topology: Topology, name: str) -> ET.Element:
    p = plan.predicted
    away, total = offloaded(plan, topology)
    devices, used = num_devices(topology), num_devices_used(plan)
    groups = len({r.group for r in plan.replicas})
    busy = len({place[0] for r in plan.replicas for place in r.places})
    limit = "no bound proved" if plan.dual_bound is None else f"to a proven bound of {number(plan.dual_bound)}"
    lost = sum(1 for u in plan.unserved if u.rate > 0)
    items = [
        (number(p.goodput), "Served in time", f"of {number(p.offered)} offered, weighted work/s"),
        (percent(p.slo_attainment), "SLO attainment", "of what is offered"),
        (percent(plan.gap), "Gap", limit),
        (f"{used} / {devices}", "Devices in use", f"at {busy} of {len(topology.servers)} servers"),
        (str(len(plan.replicas)), "Replicas", f"on {groups} device groups, {len(topology.services)} services"),
        (percent(away / total) if total > 0 else "–", "Offloaded", "served away from its origin"),
        (str(lost), "Demands not fully served", "each with its reason below" if lost else "nothing is left out"),
        (f"{number(plan.wall_s)} s", "Solved in", f"{plan.solver}, {STOP_WORDS[plan.stop]}"),
    ]  # fmt: skip
    return el(
        "header",
        el("p", "epara report", class_="brand"),
        el("h1", name),
        el("p", verdict(plan), class_=f"verdict {tone(p.slo_attainment).value if p.offered > 0 else ''}".strip()),
        tiles(items),
        el("ul", [el("li", n) for n in plan.notes], class_="notes") if plan.notes else None,
        el("p", f"Generation {plan.generation}" + (f", made at {plan.made_at}" if plan.made_at else ""), class_="sub"),
    )
