"""Goodput and resilience of executors, all of it, one after the other: a table each, a results file each.

    python benchmarks/serving/resilience.py [--only overload,change,deadlines,crash,malformed,idle]

Every benchmark runs alone too and says in its own file what it measures. Exit code 1 where a target was missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import ModuleType

import change
import crash
import deadlines
import idle
import malformed
import overload
import report

PARTS: dict[str, ModuleType] = {
    "overload": overload,
    "change": change,
    "deadlines": deadlines,
    "crash": crash,
    "malformed": malformed,
    "idle": idle,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    names = parser.parse_args().only.split(",")
    if unknown := [n for n in names if n not in PARTS]:
        parser.error(f"--only: expected of {', '.join(PARTS)}, got {', '.join(unknown)}")
    missed: list[str] = []
    for name in names:
        began_at = time.monotonic()
        figures = PARTS[name].measure()
        report.write(PARTS[name].RESULT, figures)
        report.show(f"{name}, {time.monotonic() - began_at:.0f} s", figures["rows"])
        missed += [f"{name}: {r['what']}" for r in figures["rows"] if r["met"] is False]
    if missed:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
