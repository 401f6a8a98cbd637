"""Actions between plans, and their summary."""

from dataclasses import replace

import pytest

from epara_opt.control.diff import actions, compare
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.transition import stages
from epara_opt.domain.service import Demand
from epara_opt.plan import ActionKind, Plan
from epara_opt.problem import build_problem

TOPOLOGY, CATALOGUE = small_edge()
PREPARE, COMMIT, RETIRE = ActionKind.PREPARE, ActionKind.COMMIT, ActionKind.RETIRE


def planned(generation: int, *demand: tuple[str, str, float], in_force: Plan | None = None) -> Plan:
    offered = [Demand(service=s, origin=o, offered=r, is_streams=s == "seg") for s, o, r in demand]
    problem = build_problem(TOPOLOGY, CATALOGUE, demand=offered, in_force=in_force)
    return FirstFitPlanner().plan(problem, generation=generation, time_limit_s=1.0, in_force=in_force)


@pytest.fixture
def label_at_a() -> Plan:
    return planned(1, ("label", "a", 40.0))


def kinds(before: Plan | None, after: Plan) -> list[tuple[int, ActionKind]]:
    return sorted({(a.stage, a.kind) for a in actions(before, after, TOPOLOGY, CATALOGUE)}, key=lambda x: x[0])


def test_identical_plans_give_no_actions(label_at_a: Plan) -> None:
    assert actions(label_at_a, replace(label_at_a, generation=2), TOPOLOGY, CATALOGUE) == ()


def test_a_first_plan_is_prepared_then_committed_everywhere(label_at_a: Plan) -> None:
    made = actions(None, label_at_a, TOPOLOGY, CATALOGUE)
    assert [(a.stage, a.kind, a.server) for a in made] == [
        (1, PREPARE, "a"),
        (2, COMMIT, "a"),
        (2, COMMIT, "b"),
        (2, COMMIT, "c"),
    ]


def test_what_fits_beside_is_made_before_the_old_is_broken(label_at_a: Plan) -> None:
    after = planned(2, ("seg", "c", 1.0))
    assert kinds(label_at_a, after) == [(1, PREPARE), (2, COMMIT), (3, RETIRE)]


def test_what_does_not_fit_beside_waits_until_room_is_made() -> None:
    before = planned(1, ("label", "c", 40.0))
    after = planned(2, ("seg", "c", 1.0))
    assert kinds(before, after) == [(1, COMMIT), (2, RETIRE), (3, PREPARE), (4, COMMIT)]
    first = stages(before, after, TOPOLOGY, CATALOGUE)[0]
    assert first.target.replicas == ()
    assert first.target.routes == ()


def test_displaced_work_goes_to_what_stays_while_room_is_made() -> None:
    before = planned(1, ("label", "c", 40.0), ("label", "a", 10.0))
    one_left = tuple(r for r in before.replicas if r.server == "a") or before.replicas
    host = one_left[0].server
    other = replace(one_left[0], id="label@c/gpu/0/1", group="c/gpu/0/1", server="c")
    before = replace(
        before,
        replicas=(replace(one_left[0]), other),
        routes=tuple(replace(x, replica=other.id if x.origin == "c" else one_left[0].id) for x in before.routes),
    )
    after = planned(2, ("seg", "c", 1.0), ("label", "a", 10.0), in_force=before)
    between = stages(before, after, TOPOLOGY, CATALOGUE)[0].target
    assert {r.server for r in between.replicas} == {host}
    assert {x.origin: x.rate for x in between.routes} == pytest.approx({"a": 10.0, "c": 40.0})


def test_a_tenant_added_to_a_kept_group_is_prepared_in_place(label_at_a: Plan) -> None:
    small = tuple(replace(r, memory_bytes=1) for r in label_at_a.replicas)
    extra = replace(small[0], id="seg@" + small[0].group, service="seg", memory_bytes=1)
    after = replace(label_at_a, generation=2, replicas=(*small, extra))
    before = replace(label_at_a, replicas=small)
    made = actions(before, after, TOPOLOGY, CATALOGUE)
    assert [(a.kind, a.groups) for a in made if a.groups] == [(PREPARE, (small[0].group,))]
    summary = compare(before, after, catalogue=CATALOGUE, topology=TOPOLOGY)
    assert summary.groups_kept == (small[0].group,)
    assert summary.tenants_added == (extra.id,)
    assert (summary.num_loads, summary.load_s) == (1, 3.0)


def test_a_server_that_is_down_is_asked_for_nothing(label_at_a: Plan) -> None:
    after = planned(2, ("label", "b", 20.0))
    after = replace(after, replicas=tuple(replace(r, server="b", group="b/gpu/0/2") for r in after.replicas))
    made = actions(label_at_a, after, TOPOLOGY, CATALOGUE, down=frozenset({"a"}))
    assert "a" not in {a.server for a in made}
    assert RETIRE not in {a.kind for a in made}


def test_a_stale_server_is_committed_again_even_when_plans_agree(label_at_a: Plan) -> None:
    made = actions(label_at_a, label_at_a, TOPOLOGY, CATALOGUE, stale=frozenset({"b"}))
    assert [(a.kind, a.server) for a in made] == [(COMMIT, "b")]


def test_actions_are_deterministic(label_at_a: Plan) -> None:
    after = planned(2, ("seg", "c", 1.0), ("label", "b", 90.0))
    shuffled = replace(after, replicas=after.replicas[::-1], routes=after.routes[::-1])
    assert actions(label_at_a, after, TOPOLOGY, CATALOGUE) == actions(label_at_a, shuffled, TOPOLOGY, CATALOGUE)


def test_the_summary_counts_groups_batches_and_moved_rates(label_at_a: Plan) -> None:
    replica = label_at_a.replicas[0]
    twin = replace(replica, id="label@b/gpu/0/2", group="b/gpu/0/2", server="b")
    route = label_at_a.routes[0]
    after = replace(
        label_at_a,
        replicas=(replace(replica, batch=1), twin),
        routes=(replace(route, rate=25.0), replace(route, replica=twin.id, rate=20.0)),
    )
    summary = compare(label_at_a, after)
    assert summary.groups_added == ("b/gpu/0/2",)
    assert [(c.batch_before, c.batch_after) for c in summary.batch_changes] == [(4, 1)]
    assert summary.rate_moved == {"label": 15.0}
    assert summary.rate_added == {"label": 5.0}
    assert not summary.empty
    assert compare(label_at_a, label_at_a).empty
