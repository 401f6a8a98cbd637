"""What the benchmarks of resilience share at their rim: arguments, rows with their targets, a table, a results file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from run import machine
from servers import HERE

RESULTS = HERE.parent / "results"


def write(name: str, figures: dict[str, Any]) -> None:
    """benchmarks/results/NAME with the machine and the date."""
    load = f"load average when it ended: {os.getloadavg()[0]:.1f}"
    head = {"machine": machine(), "date": datetime.now(UTC).date().isoformat(), "notes": [load]}
    (RESULTS / name).write_text(json.dumps({**head, **figures}, indent=1) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("what", "measured", "wanted", "", title=title)
    for r in rows:
        value = f"{r['value']:.4g} {r['unit']}".strip()
        wanted = f"{r['law']} {r['target']:g} {r['unit']}".strip() if r["law"] else "-"
        table.add_row(r["what"], value, wanted, {True: "met", False: "MISSED", None: ""}[r["met"]])
    Console().print(table)


def main(words: str | None, measure: Callable[..., dict[str, Any]], result: str, **settings: float) -> None:
    """The command line of one benchmark: its settings as options, then measured, written and shown."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in settings.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = vars(parser.parse_args())
    if wrong := [f"--{k}: expected > 0, got {v:g}" for k, v in given.items() if v <= 0]:
        parser.error("; ".join(wrong))
    figures = measure(**given)
    write(result, figures)
    show(result.removesuffix(".json"), figures["rows"])
