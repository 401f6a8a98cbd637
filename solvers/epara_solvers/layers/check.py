"""The checker: a split's flow and bound, recomputed from the problem alone. No compiled code, no solver."""

from __future__ import annotations

import networkx as nx

from epara_opt.errors import InputError, PlanRejected, Violation
from epara_solvers.layers.cover import MARGIN, Certificate, classes_of, shortfall
from epara_solvers.layers.problem import SINK, SOURCE, Interval, LayerSplit

SAME = 1e-6  # relative: what sums in another order may differ by, and more


def flow_of(problem: LayerSplit, intervals: tuple[Interval, ...]) -> float:
    """The largest flow through these runs, in tokens/s. Raises InputError for runs that are not the problem's."""
    problem.check(intervals)
    run = {node.id: interval for node, interval in zip(problem.nodes, intervals, strict=True)}
    graph: nx.DiGraph[tuple[str, str]] = nx.DiGraph()
    source, sink = (SOURCE, "out"), (SINK, "in")
    graph.add_nodes_from((source, sink))
    for node in problem.nodes:
        start, end = run[node.id]
        rate = node.layers_to_tokens_per_s[end - start - 1]
        graph.add_edge((node.id, "in"), (node.id, "out"), capacity=rate)
    for link in problem.links:
        ends = 0 if link.origin == SOURCE else run[link.origin][1]
        begins = problem.num_layers if link.target == SINK else run[link.target][0]
        if ends == begins:
            graph.add_edge((link.origin, "out"), (link.target, "in"), capacity=link.max_tokens_per_s)
    return float(nx.maximum_flow_value(graph, source, sink))


def proves(problem: LayerSplit, certificate: Certificate) -> bool:
    """Whether the certificate's weights prove its bound. Raises InputError for prices and weights that are none."""
    if len(certificate.prices) != problem.num_layers:
        law, value = "expected a price for every layer", str(len(certificate.prices))
        raise InputError(Violation(path="certificate.prices", law=law, value=value))
    return shortfall(classes_of(problem), certificate) > MARGIN


def check(problem: LayerSplit, intervals: tuple[Interval, ...], flow: float, certificate: Certificate) -> None:
    """Raises PlanRejected with every claim that does not hold."""
    broken: list[str] = []
    found = flow_of(problem, intervals)
    if abs(found - flow) > SAME * max(1.0, abs(found)):
        broken.append(f"flow_tokens_per_s: claimed {flow}, recomputed {found}")
    if not proves(problem, certificate):
        broken.append(f"bound_tokens_per_s: the weights do not prove {certificate.bound_tokens_per_s}")
    if found > certificate.bound_tokens_per_s * (1 + SAME):
        broken.append(f"bound_tokens_per_s: {certificate.bound_tokens_per_s} is below the flow {found}")
    if broken:
        raise PlanRejected(broken)
