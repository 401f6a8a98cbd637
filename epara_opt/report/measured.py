"""Sections of the page that show what was observed: the cycles' history, and a load run."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from epara_opt.report.charts import Event, Series, line_chart
from epara_opt.report.figures import millis, number, percent
from epara_opt.report.history import HistoryPoint
from epara_opt.report.load import LoadWindow, over_time, per_service
from epara_opt.report.markup import Child, el
from epara_opt.report.tables import bar, service_name, table


def history_chart(history: Sequence[HistoryPoint]) -> ET.Element:
    """Offered, observed goodput and proven bound over the cycles; events as numbered marks."""
    ordered = sorted(history, key=lambda p: p.at)
    cycles = [p for p in ordered if (p.goodput, p.offered, p.dual_bound) != (None, None, None)]
    return line_chart(
        "Goodput, offered work and proven bound over time (weighted work/s)",
        [p.at for p in cycles],
        [
            Series(name="offered", css="s0", y=tuple(p.offered for p in cycles)),
            Series(name="bound of the plan", css="s1", y=tuple(p.dual_bound for p in cycles)),
            Series(name="goodput observed", css="s2", y=tuple(p.goodput for p in cycles)),
        ],
        _events(ordered),
        show=number,
    )


def load_section(load: Sequence[LoadWindow], history: Sequence[HistoryPoint], hue: Mapping[str, int]) -> list[Child]:
    """Attainment over time, and counts per service over the whole run."""
    total = over_time(load)
    sent, on_time = sum(w.sent for w in load), sum(w.on_time for w in load)
    chart = line_chart(
        "SLO attainment over time, all services",
        [at for at, _, _ in total],
        [Series(name="answered in time", css="s2", y=tuple(good / n if n else None for _, n, good in total))],
        [e for e in _events(sorted(history, key=lambda p: p.at)) if total and total[0][0] <= e.at <= total[-1][0]],
        show=percent,
        top=1.0,
    )
    heads = [
        "Service", "SLO attainment", "#Sent", "#On time", "#Late", "#Shed", "#Failed", "#p50, ms", "#p99, ms",
    ]  # fmt: skip
    rows: list[list[Child]] = [
        [
            service_name(w.service, hue.get(w.service, 0)),
            bar(w.slo_attainment) if w.slo_attainment is not None else "–",
            f"{w.sent:,}",
            f"{w.on_time:,}",
            f"{w.late:,}",
            f"{w.shed:,}",
            f"{w.failed:,}",
            millis(w.p50_ms),
            millis(w.p99_ms),
        ]
        for w in sorted(per_service(load), key=lambda w: (w.slo_attainment if w.sent else 2.0, w.service))
    ]
    share = f"{on_time:,} of {sent:,} answered within their deadline ({percent(on_time / sent if sent else None)})."
    return [el("p", share), chart, table("Load by service; percentiles are of the worst window", heads, rows)]


def _events(ordered: Sequence[HistoryPoint]) -> list[Event]:
    return [Event(at=p.at, text=p.event) for p in ordered if p.event]
