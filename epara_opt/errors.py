"""The exception tree. One root, one exit code per branch, so that scripts can tell them apart.

EparaError                  1  something went wrong that we foresaw
|- InputError               2  a file or an argument breaks a law; carries every violation found
|- NoPlanError              3  no plan could be made
|  `- NoSolverError         3  the solver asked for is not installed or not known
|- PlanRejected             4  the checker refused a plan; carries every violation found
|- FleetError               5  executors could not do what was asked
|  |- ExecutorUnreachable      try again later
|  |- ModelsOnTheWay           try again later: nothing was changed, and they keep coming
|  |- StaleFence               never try again: a newer planner or plan is in force
|  `- ExecutorRefused          the executor says why; nothing was changed
`- StoreError               6  the planner's own store cannot be used
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken law: where, what was expected, what was found."""

    path: str  # dotted, e.g. servers.edge-a.devices[0].count
    law: str  # e.g. "expected >= 1"
    value: str = ""  # what was found, as typed
    file: str = ""
    line: int = 0  # 1-based; 0 where unknown

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        found = f", got {self.value}" if self.value else ""
        return f"{place}{self.path}: {self.law}{found}" if self.path else f"{place}{self.law}{found}"


class EparaError(Exception):
    """Root of everything this project raises on purpose."""

    exit_code = 1


class InputError(EparaError):
    """A file or an argument breaks at least one law. Nothing was planned or changed."""

    exit_code = 2

    def __init__(self, violations: Sequence[Violation] | Violation | str) -> None:
        if isinstance(violations, str):
            violations = [Violation(path="", law=violations)]
        elif isinstance(violations, Violation):
            violations = [violations]
        self.violations = tuple(violations)
        super().__init__("\n".join(str(v) for v in self.violations))


class NoPlanError(EparaError):
    """No plan could be made within the limits given."""

    exit_code = 3


class NoSolverError(NoPlanError):
    """The solver asked for is not installed or not known; the message lists those that are."""


class PlanRejected(EparaError):
    """The checker refused a plan. It must not be applied."""

    exit_code = 4

    def __init__(self, violations: Sequence[str]) -> None:
        self.violations = tuple(violations)
        super().__init__("plan rejected:\n" + "\n".join(f"  - {v}" for v in self.violations))


class FleetError(EparaError):
    """Executors could not do what was asked."""

    exit_code = 5


class ExecutorUnreachable(FleetError):
    """Temporary: the executor did not answer in time."""

    def __init__(self, server: str, detail: str) -> None:
        self.server = server
        super().__init__(f"executor of {server} did not answer: {detail}")


class ModelsOnTheWay(FleetError):
    """Temporary: models that a plan needs are not yet on a server's disk. They keep coming; nothing was changed."""

    def __init__(self, server: str, detail: str) -> None:
        self.server = server
        super().__init__(f"executor of {server} is still fetching: {detail}")


class StaleFence(FleetError):
    """Permanent: a newer planner (epoch) or a newer plan (generation) is already in force."""


class ExecutorRefused(FleetError):
    """The executor refused and says why. What ran before still runs."""

    def __init__(self, server: str, detail: str) -> None:
        self.server = server
        self.detail = detail
        super().__init__(f"executor of {server} refused: {detail}")


class StoreError(EparaError):
    """The planner's own store cannot be used."""

    exit_code = 6
