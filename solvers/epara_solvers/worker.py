"""The solver's own process: `python -m epara_solvers.worker NAME THREADS SCRATCH`.

Frames come in on standard input and go out on what was standard output; whatever the vendor prints goes to
`vendor.log` in the scratch folder. Only one vendor family is ever imported here. The process ends, children and
all, as soon as its input does, so none outlives its planner.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from epara_opt.formulation.program import FloatArray, MilpBackend, MilpProgram
from epara_solvers import wire
from epara_solvers.backends.outcome import Report

VENDOR_LOG = "vendor.log"

Frame = tuple[dict[str, Any], wire.Arrays]


def make_backend(name: str, *, threads: int, scratch: Path, report: Report) -> MilpBackend:
    """Import the vendor and build its back end in this process. Raises ImportError as the vendor does."""
    if name.startswith("pulp-"):
        from epara_solvers.backends.pulp import PulpBackend

        return PulpBackend(name=name, threads=threads, scratch=scratch, report=report)
    if name == "cpsat":
        from epara_solvers.backends.cpsat import CpSatBackend

        return CpSatBackend(threads=threads, scratch=scratch, report=report)
    if name.startswith("mathopt-"):
        from epara_solvers.backends.mathopt import MathOptBackend

        return MathOptBackend(name=name, threads=threads, scratch=scratch, report=report)
    raise LookupError(f"no back end is called {name}")


def row_prices(program: MilpProgram, *, time_limit_s: float) -> FloatArray | None:
    from epara_solvers.backends.glop import row_prices as priced

    return priced(program, time_limit_s=time_limit_s)


def serve(name: str, *, threads: int, scratch: Path, requests: Callable[[], Frame | None], out: BinaryIO) -> None:
    """Say hello, then answer requests until there are none."""

    def report(x: FloatArray, dual_bound: float | None) -> None:
        bound = dual_bound if dual_bound is not None and np.isfinite(dual_bound) else None
        wire.write_frame(out, {"kind": "incumbent", "dual_bound": bound}, {"x": x})

    try:
        backend = None if name == "glop" else make_backend(name, threads=threads, scratch=scratch, report=report)
        if backend is None:
            import epara_solvers.backends.glop as _  # noqa: F401  before hello: an import that fails must say so
    except (ImportError, LookupError) as e:
        wire.write_frame(out, {"kind": "refused", "detail": f"{type(e).__name__}: {e}"})
        return
    wire.write_frame(out, {"kind": "hello"})
    while (frame := requests()) is not None:
        meta, arrays = frame
        program = wire.program_from_arrays(arrays)
        try:
            if backend is None:
                prices = row_prices(program, time_limit_s=meta["time_limit_s"])
                wire.write_frame(out, {"kind": "prices"}, {} if prices is None else {"prices": prices})
                continue
            result = backend.solve(
                program, time_limit_s=meta["time_limit_s"], gap=meta["gap"], warm_start=arrays.get("warm_start")
            )
        except Exception as e:  # a vendor may raise anything; the planner needs its words, whatever they are
            wire.write_frame(out, {"kind": "failed", "detail": f"{type(e).__name__}: {e}"})
            continue
        wire.write_frame(out, *wire.result_to_frame(result))


def main(arguments: Sequence[str]) -> None:
    name, threads, scratch = arguments[0], int(arguments[1]), Path(arguments[2])
    source = os.fdopen(os.dup(0), "rb")
    out = os.fdopen(os.dup(1), "wb")
    log = os.open(scratch / VENDOR_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, replacement in ((0, null), (1, log), (2, log)):
        os.dup2(replacement, target)
    inbox: queue.SimpleQueue[Frame] = queue.SimpleQueue()

    def listen() -> None:
        while (frame := wire.read_frame(source)) is not None:
            inbox.put(frame)
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the planner is gone: no search is worth finishing

    threading.Thread(target=listen, daemon=True, name="requests").start()
    serve(name, threads=threads, scratch=scratch, requests=inbox.get, out=out)


if __name__ == "__main__":
    main(sys.argv[1:])
