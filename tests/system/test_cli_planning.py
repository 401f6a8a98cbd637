"""Planning through the command line on the shipped examples."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).resolve().parents[2] / "topologies"


@pytest.mark.parametrize("solver", ["mathopt-highs", "pulp-cbc", "greedy"])
def test_planning_again_with_the_same_input_moves_nothing(epara, solver):
    demo = EXAMPLES / "demo.yaml"
    assert epara("plan", demo, "--solver", solver, "--out", "one.json").code == 0
    done = epara("plan", demo, "--solver", solver, "--previous", "one.json", "--out", "two.json", "--json")
    assert done.code == 0
    assert [a for a in done.json["actions"] if a["kind"] != "commit"] == []
    moved = epara("diff", "one.json", "two.json", "--json").json
    assert (moved["groups_added"], moved["groups_retired"]) == ([], [])


def test_a_plan_obeys_its_schema_and_becomes_a_page_without_the_network(epara):
    assert epara("plan", EXAMPLES / "testbed.yaml", "--time-limit", 10, "--out", "plan.json").code == 0
    plan = json.loads((epara.folder / "plan.json").read_text())
    jsonschema.validate(plan, epara("schema", "plan").json)
    assert plan["gap"] <= 0.03
    done = epara("report", "plan.json", "--html", "page.html", "--json")
    assert (done.json["html"], done.json["num_replicas"]) == ("page.html", len(plan["replicas"]))
    page = (epara.folder / "page.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert all(r["service"] in page for r in plan["replicas"])


@pytest.mark.parametrize("name", ["demo", "testbed", "metro-20"])
def test_the_examples_obey_the_schema_of_topologies(epara, name):
    schema = epara("schema", "topology").json
    jsonschema.validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()), schema)


def test_a_generated_edge_can_be_validated_shown_and_planned(epara):
    assert epara("topology", "generate", "--servers", 5, "--services", 6, "--seed", 3, "--out", "edge.yaml").code == 0
    assert epara("topology", "validate", "edge.yaml", "--json").json["valid"]
    shown = epara("topology", "show", "edge.yaml", "--json").json
    assert len(shown["categories"]) == 6
    done = epara("plan", "edge.yaml", "--time-limit", 10, "--json")
    assert done.code == 0
    assert done.json["objective"] > 0


def test_an_edge_from_a_network_map_can_be_planned(epara):
    (epara.folder / "ring.graphml").write_text(GRAPHML)
    assert epara("topology", "import", "ring.graphml", "--services", 4, "--out", "ring.yaml").code == 0
    done = epara("plan", "ring.yaml", "--solver", "greedy", "--json")
    assert done.code == 0
    assert len(done.json["edge"]["servers"]) == 3


def test_the_solvers_on_this_machine_are_listed(epara):
    names = {s["name"] for s in epara("solvers", "--json").json if s["available"]}
    assert {"mathopt-highs", "mathopt-scip", "pulp-cbc", "cpsat", "greedy"} <= names


def test_a_plan_is_refined_for_drawn_and_for_recorded_arrivals(epara):
    edge = EXAMPLES / "testbed.yaml"
    once = ("plan", edge, "--time-limit", 3, "--refine", 1)
    drawn = epara(*once, "--json")
    assert drawn.code == 0
    assert any("held-out" in note for note in drawn.json["notes"])
    shown = epara("topology", "show", edge, "--json").json
    demand = [(d["service"], d["origin"]) for d in yaml.safe_load(edge.read_text())["demand"]]
    rows = [f"{i * 0.05:.2f},{s},{o}" for i, (s, o) in enumerate(demand * 400)]
    (epara.folder / "day.csv").write_text("\n".join(["arrival_s,service,origin", *rows]) + "\n")
    recorded = epara(*once, "--trace", "day.csv", "--json")
    assert recorded.code == 0, recorded
    assert any("held-out" in note for note in recorded.json["notes"])
    assert shown["categories"].keys() == {f["service"] for f in recorded.json["predicted"]["services"]}
    (epara.folder / "day.csv").write_text(f"arrival_s,service,origin\n0.1,zebra,{demand[0][1]}\n")
    refused = epara(*once, "--trace", "day.csv", "--json")
    assert refused.code == 2
    assert "zebra" in json.dumps(refused.json["error"])
    (epara.folder / "day.csv").write_text(
        f"arrival_s,service,origin\n0,{demand[0][0]},{demand[0][1]}\n1e308,chat-7b,edge-1\n"
    )
    refused = epara(*once, "--trace", "day.csv", "--json")
    assert refused.code == 2, refused
    assert "from the first request to the last" in json.dumps(refused.json["error"])
    origin = next(o for s, o in demand if s == "chat-7b")
    other = next(o for _, o in demand if ("chat-7b", o) not in demand)
    calls = [*(f"{1_764_115_200 + i}.5,chat-7b,{origin}" for i in range(40)), f"1764115201.7,chat-7b,{other}"]
    (epara.folder / "day.csv").write_text("\n".join(["arrival_s,service,origin", *calls]) + "\n")
    partly = epara(*once, "--trace", "day.csv", "--json")
    assert any(n.startswith("1 of 41 recorded requests are of no demand") for n in partly.json["notes"])
    (epara.folder / "day.csv").write_text(f"arrival_s,service,origin\n0.7,chat-7b,{other}\n")
    assert "none in 1" in json.dumps(epara(*once, "--trace", "day.csv", "--json").json["error"])
    assert epara("plan", edge, "--trace", "day.csv").code == 2  # only together with --refine


def test_promises_under_bursts_are_asked_for_on_the_command_line(epara):
    edge = EXAMPLES / "testbed.yaml"
    usual = epara("plan", edge, "--time-limit", 3, "--json").json
    honest = epara("plan", edge, "--time-limit", 3, "--on-time-target", 0.95, "--json").json
    assert honest["objective"] <= usual["objective"] * (1 + 1e-6)
    assert epara("plan", edge, "--on-time-target", 0.5, "--json").json["error"]["violations"][0]["path"] == (
        "rules.on_time_target"
    )


def test_under_make_before_break_no_stage_makes_room(epara):
    """The rule in YAML, from a plan in force that fills every device, after what is asked for has changed."""
    edge = yaml.safe_load((EXAMPLES / "testbed.yaml").read_text())
    assert epara("plan", EXAMPLES / "testbed.yaml", "--time-limit", 3, "--out", "one.json").code == 0
    edge["profiles"] = str(EXAMPLES / edge["profiles"])
    edge["rules"] = {**edge.get("rules", {}), "make_before_break": True}
    for i, d in enumerate(edge["demand"]):
        d |= {key: value * (3 if i % 2 else 1) for key, value in d.items() if isinstance(value, int | float)}
    (epara.folder / "later.yaml").write_text(yaml.safe_dump(edge))
    done = epara("plan", "later.yaml", "--time-limit", 3, "--previous", "one.json", "--json")
    assert done.code == 0, done
    assert any(a["kind"] == "prepare" for a in done.json["actions"])
    assert not any("make room" in json.dumps(a) for a in done.json["actions"])


GRAPHML = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
  <key attr.name="Latitude" attr.type="double" for="node" id="lat" />
  <key attr.name="Longitude" attr.type="double" for="node" id="lon" />
  <key attr.name="label" attr.type="string" for="node" id="label" />
  <graph edgedefault="undirected">
    <node id="0"><data key="label">north</data><data key="lat">-37.80</data><data key="lon">144.96</data></node>
    <node id="1"><data key="label">east</data><data key="lat">-37.81</data><data key="lon">144.98</data></node>
    <node id="2"><data key="label">south</data><data key="lat">-37.83</data><data key="lon">144.96</data></node>
    <edge source="0" target="1" /><edge source="1" target="2" /><edge source="2" target="0" />
  </graph>
</graphml>
"""


def test_an_edge_with_chains_is_planned_certified_and_not_applied_without_addresses(epara):
    """A plan over several servers passes checker and certificate; nobody can apply it at servers without executors."""
    edge = EXAMPLES / "neighbours.yaml"
    assert epara("plan", edge, "--time-limit", 10, "--out", "plan.json").code == 0
    plan = json.loads((epara.folder / "plan.json").read_text())
    jsonschema.validate(plan, epara("schema", "plan").json)
    chained = [r for r in plan["replicas"] if r["stages"]]
    assert {r["service"] for r in chained} == {"guide-30b"}
    assert all(len({s["server"] for s in r["stages"]}) > 1 for r in chained)
    certified = epara("plan", edge, "--certify", "plan.json", "--json").json
    assert certified["certified_bound"] >= plan["objective"] * (1 - 1e-6)
    done = epara("apply", edge, "plan.json", "--json")
    assert done.code == 2
    used = {r["server"] for r in plan["replicas"]} | {s["server"] for r in chained for s in r["stages"]}
    assert done.json["error"]["violations"][0]["path"] in {f"servers.{name}.address" for name in used}
    done = epara("run", edge, "--store", "store", "--json")
    assert done.code == 2
    assert {v["law"] for v in done.json["error"]["violations"]} == {
        "expected host:port of its executor; `epara run` plans for servers that it can reach"
    }
