"""Vendors' logs, as CBC 2.10 and HiGHS 1.12 write them: what is understood counts, the rest proves nothing."""

from __future__ import annotations

import pytest
from epara_solvers.backends import logs

CBC_AT_LIMIT = """Continuous objective value is -7284.97 - 0.01 seconds
Cbc0010I After 1000 nodes, 500 on tree, -7246 best solution, best possible -7280.79 (1.20 seconds)

Result - Stopped on time limit

Objective value:                -7246.00000000
Lower bound:                    -7280.792
Gap:                            0.00
"""
HIGHS_LOG = """        Nodes      |    B&B Tree     |            Objective Bounds              |  Dynamic Constraints
Src  Proc. InQueue |  Leaves   Expl. | BestBound       BestSol              Gap |   Cuts   InLp Confl.

         0       0         0   0.00%   inf             -inf                 inf        0      0      0
 L       0       0         0   0.00%   7280.763649     7234               0.65%     1049     25      6
        12       3         4   1.56%   7279.5          7244               0.49%     1094     26      6
"""


def test_cbc_bound_is_read_from_its_closing_block_and_never_too_low() -> None:
    assert logs.cbc_upper_bound(CBC_AT_LIMIT) == pytest.approx(7280.792, rel=1e-6)
    assert (logs.cbc_upper_bound(CBC_AT_LIMIT) or 0.0) >= 7280.792


def test_a_killed_cbc_has_its_root_relaxation_for_a_bound() -> None:
    assert logs.cbc_upper_bound(CBC_AT_LIMIT.split("Result")[0]) == pytest.approx(7284.97, rel=1e-6)


def test_progress_lines_of_cbc_prove_nothing() -> None:
    assert logs.cbc_upper_bound("Cbc0010I After 1 nodes, best possible -7280.79 (1.20 seconds)\n") is None
    assert logs.cbc_upper_bound("") is None


def test_cbc_optimal_within_its_gap_is_not_proven_optimal() -> None:
    assert logs.cbc_proves_optimal("Result - Optimal solution found\n")
    assert logs.cbc_proves_optimal("Optimal objective -10 - 2 iterations time 0.002\n")
    assert not logs.cbc_proves_optimal("Result - Optimal solution found (within gap tolerance)\n")
    assert not logs.cbc_proves_optimal(CBC_AT_LIMIT)


def test_highs_bound_is_the_last_of_its_table() -> None:
    assert logs.highs_upper_bound(HIGHS_LOG) == 7279.5


def test_an_infinite_bound_of_highs_proves_nothing() -> None:
    assert logs.highs_upper_bound("\n".join(HIGHS_LOG.splitlines()[:4]) + "\n") is None


def test_the_last_complete_incumbent_counts_when_a_kill_cut_the_file() -> None:
    text = "Objective 5\n# Columns 2\n 1\n 0\nObjective 7\n# Columns 2\n 1\n 1\nObjective 8\n# Columns 2\n 0."
    found = logs.highs_incumbent(text, 2)
    assert found is not None
    assert found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("text", ["", "Objective 5\n# Columns 3\n 1\n 0\n", "Objective 5\n# Columns 2\n x\n y\n"])
def test_a_file_without_a_complete_incumbent_has_none(text: str) -> None:
    assert logs.highs_incumbent(text, 2) is None
