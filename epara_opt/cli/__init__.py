"""The command line: the composition root. Every command imports what it needs when it runs.

Exit codes: 0 done; 1 a foreseen failure of another kind; 2 bad input or usage; 3 no plan or no solver; 4 the
checker refused the plan; 5 executors could not do it; 6 the planner's store cannot be used; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from epara_opt.cli import advice, cycle, demo, fleet, load, models, planning, topology
from epara_opt.cli.output import err
from epara_opt.errors import EparaError, InputError, PlanRejected

app = typer.Typer(
    name="epara",
    help="Decide where AI models run in an edge cloud, in which parallel mode, and run them there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 no plan, 4 plan refused, 5 executors, 6 store.",
)
app.add_typer(topology.app, name="topology")
app.add_typer(models.app, name="models")
for module in (demo, planning, advice, fleet, load, cycle, models):
    module.register(app)


def main() -> None:
    """Run the command line; turn foreseen errors into one clear message and an exit code."""
    as_json = "--json" in sys.argv
    try:
        if as_json:
            sys.exit(_run_for_programs())
        app(standalone_mode=True)
    except EparaError as e:
        if as_json:
            print(json.dumps({"error": _as_json(e)}))
        err.print(f"[bold red]{type(e).__name__}[/]", highlight=False)
        err.print(str(e), markup=False, highlight=False, soft_wrap=True)
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)
    except OSError as e:
        if e.filename is None:
            raise  # no file that an operator could do something about
        message = f"{e.filename}: {e.strerror}"
        if as_json:
            print(json.dumps({"error": {"type": type(e).__name__, "message": message, "exit_code": 1}}))
        err.print(message, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _run_for_programs() -> int:
    """As a program asks: what is wrong with the arguments is said in JSON too. Returns the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except Exception as e:
        # Typer brings its own copy of click or uses the installed one; both call what they raise the same.
        say: Any = getattr(e, "format_message", None)
        code = getattr(e, "exit_code", None)
        if say is None or not isinstance(code, int):
            raise
        print(json.dumps({"error": {"type": type(e).__name__, "message": say(), "exit_code": code}}))
        err.print(say(), markup=False, highlight=False, soft_wrap=True)
        return code


def _as_json(e: EparaError) -> dict[str, object]:
    body: dict[str, object] = {"type": type(e).__name__, "message": str(e), "exit_code": e.exit_code}
    if isinstance(e, InputError):
        body["violations"] = [
            {"file": v.file, "line": v.line, "path": v.path, "law": v.law, "value": v.value} for v in e.violations
        ]
    if isinstance(e, PlanRejected):
        body["violations"] = list(e.violations)
    return body
