"""Two plans compared, on a terminal: groups, tenants, batches, work moved, seconds of loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from epara_opt.report.cells import cell, grid, pairs, spaced
from epara_opt.report.figures import number, signed

if TYPE_CHECKING:
    from epara_opt.control.diff import Diff


def diff_table(diff: Diff) -> Group:
    """What would change, the objective first. Work is in each service's own unit per second."""
    if diff.empty:
        return Group(cell("Nothing changes.", "bold"))
    before, after = diff.objective_before, diff.objective_after
    kept, added, retired = len(diff.groups_kept), len(diff.groups_added), len(diff.groups_retired)
    head = pairs(
        [
            ("objective", f"{number(before)} -> {number(after)} ({signed(after - before)})"),
            ("groups", f"{kept} kept, {added} added, {retired} retired"),
            ("to load", f"{diff.num_loads} replicas, {number(diff.load_s)} s of loading added up"),
        ]
    )
    rows: list[list[Text | str]] = [
        *([cell("+ group", "green"), g, ""] for g in diff.groups_added),
        *([cell("- group", "red"), g, ""] for g in diff.groups_retired),
        *([cell("+ replica", "green"), r, "on a group that stays"] for r in diff.tenants_added),
        *([cell("- replica", "red"), r, "from a group that stays"] for r in diff.tenants_dropped),
        *(
            [
                cell("~ batch", "yellow"),
                b.replica,
                f"batch {b.batch_before} -> {b.batch_after}, frames {b.frames_before} -> {b.frames_after}",
            ]
            for b in diff.batch_changes
        ),
    ]
    names = sorted({*diff.rate_moved, *diff.rate_added})
    work = [
        [n, number(diff.rate_moved.get(n, 0.0)), signed(diff.rate_added.get(n, 0.0))]
        for n in names
        if abs(diff.rate_moved.get(n, 0.0)) > 5e-4 or abs(diff.rate_added.get(n, 0.0)) > 5e-4
    ]
    parts: list[RenderableType] = [head]
    if rows:
        parts.append(grid("Changes", ["!Change", "What", "How"], rows))
    if work:
        parts.append(grid("Work, in each service's unit", ["Service", "#Another way, /s", "#Served more, /s"], work))
    return spaced(parts)
