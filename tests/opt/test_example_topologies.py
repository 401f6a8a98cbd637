"""The shipped examples load, match their schema, can be planned, and name the source of every number."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from epara_opt.importers.catalogue import shipped_topologies
from epara_opt.problem import PlacementProblem, build_problem
from epara_opt.topology import load_topology, read_profiles, topology_schema

FOLDER = shipped_topologies()
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
CATALOGUES = sorted((FOLDER / "profiles").glob("*.csv"))
ALL_FOUR = {
    "latency, single-device",
    "latency, multi-device",
    "frequency, single-device",
    "frequency, multi-device",
}


def problem_of(path: Path) -> PlacementProblem:
    loaded = load_topology(path)
    return build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)


@pytest.fixture(scope="module")
def metro() -> PlacementProblem:
    return problem_of(FOLDER / "metro-20.yaml")


@pytest.fixture(scope="module")
def testbed() -> PlacementProblem:
    return problem_of(FOLDER / "testbed.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_matches_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), topology_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_service_of_every_example_can_be_served_somewhere(path: Path) -> None:
    problem = problem_of(path)
    assert not any(problem.misfits.values())
    assert {(e.service, e.origin) for e in problem.edges} == {(d.service, d.origin) for d in problem.demand}
    placed = {s for contents in problem.contents.values() for c in contents for s in c.services}
    placed |= {s for c in problem.chains.contents for s in c.services}
    assert placed == {d.service for d in problem.demand}


def test_the_three_examples_are_there() -> None:
    assert {"demo", "testbed", "metro-20"} <= {p.stem for p in EXAMPLES}


def test_the_demo_runs_on_this_machine_alone() -> None:
    edge = load_topology(FOLDER / "demo.yaml").topology
    assert {n: s.address for n, s in edge.servers.items()} == {
        "edge-a": "127.0.0.1:7101",
        "edge-b": "127.0.0.1:7102",
        "cam-box": "127.0.0.1:7103",
    }
    assert set(edge.device_types) == {"cpu"}


def test_the_testbed_has_every_category_and_class_of_machine(testbed: PlacementProblem) -> None:
    assert {str(c) for c in testbed.categories.values()} == ALL_FOUR
    assert {s.kind.value for s in testbed.topology.servers.values()} == {"edge-server", "embedded", "microcomputer"}
    tasks = {s.model.task.value for s in testbed.topology.services.values()}
    assert {"text-generation", "image-segmentation"} <= tasks


def test_the_large_model_of_the_testbed_needs_tensor_parallelism(testbed: PlacementProblem) -> None:
    shapes = {(c.tp, c.pp) for cs in testbed.contents.values() for c in cs if "assist-30b" in c.services}
    assert any(tp > 1 for tp, _ in shapes)
    assert (1, 1) not in shapes


def test_the_metro_has_every_category_and_at_least_20_servers(metro: PlacementProblem) -> None:
    assert {str(c) for c in metro.categories.values()} == ALL_FOUR
    assert len(metro.topology.servers) >= 20
    assert len(metro.topology.services) == 24


def test_the_metro_offers_every_operator(metro: PlacementProblem) -> None:
    contents = [c for cs in metro.contents.values() for c in cs]
    assert any(len(c.tenants) == 3 for c in contents)  # MT
    assert any(c.tp > 1 for c in contents)  # MP, tensor
    assert any(c.pp > 1 for c in contents)  # MP, pipeline
    assert any(t.config.batch > 1 for c in contents for t in c.tenants)  # BS
    assert any(t.config.frames > 1 for c in contents for t in c.tenants)  # MF
    slow = [t for c in contents for t in c.tenants if metro.service(t.service).is_stream and t.work_per_s < 1]
    assert slow  # DP: a stream needs several replicas


def test_the_metro_is_asked_for_more_than_it_can_serve(metro: PlacementProblem) -> None:
    """Even the best replica of every service everywhere leaves the offered device time uncovered."""
    best: dict[str, float] = {}  # device-seconds per unit of work
    for contents in metro.contents.values():
        for content in contents:
            if len(content.tenants) == 1:
                (tenant,) = content.tenants
                seconds = content.num_devices / tenant.work_per_s
                best[tenant.service] = min(best.get(tenant.service, seconds), seconds)
    devices = sum(p.count for s in metro.topology.servers.values() for p in s.devices)
    assert sum(best[d.service] * d.offered for d in metro.demand) > 0.5 * devices


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda p: p.stem)
def test_every_profile_row_names_its_source(path: Path) -> None:
    for row in read_profiles([path]).rows:
        assert len(row.source) > 30, f"{path.name}:{row.line}"
        assert "placeholder" not in row.source


def test_the_catalogue_ships_only_licensed_sources() -> None:
    licensed = re.compile(
        r"^(mlcommons/|Thesys-lab/Helix|huggingface/optimum-benchmark|justincdavis/trtutils).*(Apache-2\.0|MIT)"
    )
    for row in read_profiles([FOLDER / "profiles" / "edge-catalogue.csv"]).rows:
        assert licensed.match(row.source), f"line {row.line}: {row.source}"


def test_no_curve_mixes_two_sources() -> None:
    """Same system and submission behind every point of a latency curve; layer files of one model for LLMs."""
    systems: dict[tuple[str, str, int, int], set[str]] = {}
    for row in read_profiles([FOLDER / "profiles" / "edge-catalogue.csv"]).rows:
        file = row.source.split(" | ")[0]
        system = file.rsplit("/", 1)[0] if file.startswith("mlcommons/") else file
        systems.setdefault((row.model, row.device_type, row.tp, row.pp), set()).add(system)
    assert {k: v for k, v in systems.items() if len(v) > 1} == {}


def test_the_neighbours_share_a_model_that_none_of_them_holds() -> None:
    problem = problem_of(FOLDER / "neighbours.yaml")
    assert problem.chains.services == {"guide-30b"}
    assert {len(c.stages) for c in problem.chains.contents} == {2, 3}
    assert {s.device_type for c in problem.chains.contents for s in c.stages} == {"l4", "t4"}
