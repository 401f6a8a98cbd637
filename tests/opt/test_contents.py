"""The fronts of contents, computed in bulk, against the definition written out."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_left

import pytest

from epara_opt.contents import Content, PlanningRules, contents_of, in_company, shape_allowed
from epara_opt.domain.category import is_timely
from epara_opt.domain.performance import Performance, configurations, evaluate
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.units import GIB


def defined(problem: PlacementProblem, device_type: str) -> list[Content]:
    """Every content by its definition: all combinations, one after the other, against all that were kept so far."""
    topology, memory = problem.topology, problem.topology.device_types[device_type].memory_bytes
    slacks: dict[str, list[float]] = {}
    for edge in problem.edges:
        slacks.setdefault(edge.service, []).append(edge.slack_ms)
    options: dict[tuple[int, int], dict[str, list[Performance]]] = {}
    for name in sorted({d.service for d in problem.demand}):
        service = topology.services[name]
        for shape, profile in problem.catalogue.shapes(service.model.profile_name, device_type).items():
            if shape_allowed(problem.categories[name], shape):
                made = [evaluate(service, profile, c) for c in configurations(service, profile)]
                options.setdefault(shape, {}).setdefault(name, []).extend(made)
    return [
        content
        for num_tenants in range(1, problem.rules.max_tenants + 1)
        for shape, by_name in sorted(options.items())
        for names in itertools.combinations(sorted(by_name), num_tenants)
        for content in front(
            problem, device_type, shape, [by_name[n] for n in names], memory, {n: sorted(s) for n, s in slacks.items()}
        )
    ]


def front(problem, device_type, shape, choices, memory, slacks) -> list[Content]:
    kept: list[tuple[tuple[float, ...], Content]] = []
    for combo in itertools.product(*choices):
        if sum(p.memory_bytes for p in combo) > memory:
            continue
        total_ms = sum(p.quantum_ms for p in combo)
        mark: list[tuple[float, ...]] = []
        for p in combo:
            service = problem.topology.services[p.service]
            others_ms = total_ms - p.quantum_ms
            response_ms = p.response_in_company_ms(others_ms)
            mine = slacks.get(p.service, [])
            reach = len(mine) - bisect_left(mine, response_ms)
            if reach == 0 or not is_timely(service, response_ms, p.tpot_in_company_ms(others_ms)):
                break
            work_per_s = p.work_per_s * problem.busy.part(p, others_ms)
            mark.append((work_per_s, float(reach), -float(p.config.batch) if service.is_stream else 0.0))
        else:
            flat = tuple(itertools.chain(*mark))
            if any(all(a >= b for a, b in zip(m, flat, strict=True)) for m, _ in kept):
                continue
            kept = [(m, c) for m, c in kept if not all(a >= b for a, b in zip(flat, m, strict=True))]
            kept.append((flat, in_company(combo, device_type=device_type, shape=shape, busy=problem.busy)))
    return [content for _, content in kept]


def crowded(make, seed: int) -> PlacementProblem:
    """Services of every kind, with ties, tight memory, and slacks that sort them out."""
    rng = random.Random(seed)
    makers = (make.latency, make.stream, make.chat)
    services = [makers[(seed + i) % 3](f"s{i}") for i in range(rng.randint(2, 5))]
    rows = []
    for service in services:
        shapes = rng.choice(([(1, 1)], [(1, 1)], [(2, 1)], [(2, 1), (1, 2)]))
        for tp, pp in shapes:
            base, step = rng.choice((4.0, 8.0, 11.0)), rng.choice((0.5, 2.0, 3.0))
            shared = {"tp": tp, "pp": pp, "load_s": 6.0}
            chats = service.request.output_tokens > 0
            if chats:
                rows.append(make.row(service.name, prefill_ms=base, prompt_tokens=100, **shared))
            for batch in (1, 2, 4, 8)[: rng.randint(2, 4)]:
                ms = rng.choice((base + step * batch, base * batch**0.7))
                point = {"decode_step_ms": ms} if chats else {"latency_ms": ms}
                gib = rng.choice((1, 4, 8)) + batch // 2
                rows.append(make.row(service.name, batch=batch, memory_bytes=gib * GIB, **point, **shared))
    demand = [
        make.offer(s.name, o, rng.choice((1.0, 3.0, 20.0)), streams=s.is_stream)
        for s in services
        for o in ("a", "b")
        if o == "a" or rng.random() < 0.7
    ]
    target = (None, 0.99, 0.95)[seed % 3]
    rules = PlanningRules(max_utilization=0.8, max_tenants=rng.randint(1, 3), on_time_target=target)
    rtt_ms = rng.choice((5.0, 40.0, 60.0))
    return make.edge(services=services, rows=rows, demand=demand, rules=rules, rtt_ms=rtt_ms).problem()


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_bulk_fronts_keep_what_the_definition_keeps_in_its_order(make, first: int) -> None:
    sizes: list[int] = []
    for seed in range(first, first + 20):
        problem = crowded(make, seed)
        assert list(problem.contents["l4"]) == defined(problem, "l4")
        sizes.append(max((len(c.tenants) for c in problem.contents["l4"]), default=0))
    assert max(sizes) == 3


def test_chunks_change_nothing(make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [crowded(make, seed).contents for seed in range(12)]
    monkeypatch.setattr("epara_opt.contents.CHUNK", 7)
    assert [crowded(make, seed).contents for seed in range(12)] == whole


def test_the_limit_counts_contents_of_all_shapes(make) -> None:
    problem = next(p for p in (crowded(make, s) for s in range(50)) if len(p.contents["l4"]) > 8)
    slacks: dict[str, list[float]] = {}
    for edge in problem.edges:
        slacks.setdefault(edge.service, []).append(edge.slack_ms)
    num_all = len(problem.contents["l4"])
    for limit, is_cut in ((num_all, False), (num_all - 1, True)):
        rules = PlanningRules(max_utilization=0.8, max_tenants=problem.rules.max_tenants, max_contents=limit)
        kept, notes = contents_of(
            problem.topology,
            problem.catalogue,
            problem.categories,
            "l4",
            sorted({d.service for d in problem.demand}),
            {n: sorted(s) for n, s in slacks.items()},
            rules,
            problem.busy,
        )
        assert bool(notes) is is_cut
        assert len(kept) <= limit


def test_single_contents_stay_however_low_the_limit(make) -> None:
    problem = next(p for p in (crowded(make, s) for s in range(50)) if len(p.contents["l4"]) > 8)
    whole = [c for c in problem.contents["l4"] if len(c.tenants) == 1]
    rules = PlanningRules(max_utilization=0.8, max_tenants=2, max_contents=1)
    tight = build_problem(problem.topology, problem.catalogue, rules=rules)
    assert [c.services for c in tight.contents["l4"]] == [c.services for c in whole]
    assert any("at most 1 service(s)" in n for n in tight.notes)


def test_two_hundred_services_on_one_server_stay_within_the_limit(make) -> None:
    rng = random.Random(3)
    names = [f"s{i:03}" for i in range(200)]
    services = [make.latency(n, slo_ms=rng.choice((100.0, 400.0)), weight=10.0 ** rng.uniform(-6, 6)) for n in names]
    rows = [make.row(n, latency_ms=5.0 + b * rng.uniform(0.5, 3.0), batch=b) for n in names for b in (1, 4, 16)]
    demand = [make.offer(n, "a", 10.0 ** rng.uniform(-6, 6)) for n in names]
    problem = make.edge(l4_at_b=0, services=services, rows=rows, demand=demand, rules=PlanningRules()).problem()
    assert {s for c in problem.contents["l4"] for s in c.services} == set(names)
    assert len(problem.contents["l4"]) <= PlanningRules().max_contents
    assert len(problem.notes) == 1
