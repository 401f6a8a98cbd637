"""Bad input, one test each: what is said, with which exit code, and that nothing was written or changed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.system

BAD_INPUT, NO_PLAN, REFUSED, EXECUTORS, STORE = 2, 3, 4, 5, 6


def line_of(path: Path, text: str) -> int:
    """1-based, of the first line that contains the text."""
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@contextmanager
def unchanged(epara: Any) -> Iterator[None]:
    before = epara.files()
    yield
    assert epara.files() == before


def refused_topology(epara: Any, path: Path) -> list[dict[str, Any]]:
    """The violations with which `plan` refuses a topology; nothing is written."""
    with unchanged(epara):
        done = epara("plan", path.name, "--out", "plan.json", "--json")
    assert done.code == BAD_INPUT
    error = done.json["error"]
    assert (error["type"], error["exit_code"]) == ("InputError", BAD_INPUT)
    for v in error["violations"]:  # people read the same as programs
        assert f"{v['path']}: {v['law']}" in done.err
        assert not v["line"] or f"{v['file']}:{v['line']}: " in done.err
    return error["violations"]


def only(violations: list[dict[str, Any]]) -> tuple[str, str, str, int]:
    """(path, law, value, line) of the one violation."""
    (v,) = violations
    return v["path"], v["law"], v["value"], v["line"]


# The topology


def test_an_unknown_key_is_refused_with_the_key_that_was_probably_meant(epara, edge):
    path = edge(replace=("rtt_ms:", "rtt_msec:"))
    assert only(refused_topology(epara, path)) == (
        "links[0].rtt_msec",
        "unknown key; did you mean rtt_ms?",
        "",
        line_of(path, "rtt_msec"),
    )


def test_1e9_is_refused_as_the_string_that_yaml_reads(epara, edge):
    path = edge(replace=("slo_ms: 200", "slo_ms: 1e9"))
    where, law, value, line = only(refused_topology(epara, path))
    assert (where, value, line) == ("services.label.slo_ms", "1e9", line_of(path, "1e9"))
    assert law == "expected a number; write 1.0e+9"


def test_no_as_a_name_is_refused_as_the_truth_value_that_yaml_reads(epara, edge):
    path = edge(replace=("name: label", "name: no"))
    found = refused_topology(epara, path)
    first = next(v for v in found if v["line"] == line_of(path, "name: no"))
    assert first["law"] == 'expected text; quote it: "no"'
    assert first["value"] == "no (YAML reads a truth value)"


def test_a_duplicate_server_is_refused_and_the_first_is_named(epara, edge):
    path = edge(lambda d: d["servers"].append(dict(d["servers"][0])))
    where, law, _, line = only(refused_topology(epara, path))
    first = line_of(path, "shop-a")
    assert where == "servers.shop-a"
    assert law == f"expected each name once, first at {path.name}:{first}"
    assert line > first


def test_a_link_to_nowhere_is_refused(epara, edge):
    path = edge(lambda d: d["links"][0].update(between=["shop-a", "shop-z"]))
    found = refused_topology(epara, path)
    assert any(v["path"].startswith("links[0].between") and "shop-z" in v["value"] for v in found)


def test_zero_devices_are_refused(epara, edge):
    path = edge(replace=("count: 1", "count: 0"))
    found = refused_topology(epara, path)
    assert [(v["path"], v["law"], v["value"]) for v in found] == [
        (f"servers.{s}.devices[0].count", "expected >= 1", "0") for s in ("shop-a", "shop-b")
    ]


def test_servers_without_any_device_are_refused(epara, edge):
    path = edge(lambda d: [s.pop("devices") for s in d["servers"]])
    where, law, value, _ = only(refused_topology(epara, path))
    assert (where, law, value) == ("servers", "expected at least one device in the whole edge", "zero devices")


def test_a_profile_with_a_missing_point_is_refused_with_the_point(epara, edge):
    def words(d):
        d["services"][0]["model"] = {"source": "m/words", "task": "text-generation"}
        d["services"][0]["request"] |= {"prompt_tokens": 100, "output_tokens": 4}

    path = edge(words)
    where, law, value, line = only(refused_topology(epara, path))
    assert (where, value) == ("services.label.request.prompt_tokens", "100")
    assert law.startswith("profile with a missing point: m/words on cpu tp1 pp1 is measured at 64 prompt tokens")
    assert "profiles.csv:" in law
    assert line == line_of(path, "prompt_tokens")


def test_a_service_that_fits_no_device_is_left_unserved_for_want_of_memory(epara, edge):
    path = edge(replace=("memory_gib: 1.0", "memory_gib: 0.25"))
    done = epara("plan", path.name, "--solver", "mathopt-highs", "--json")
    assert done.code == 0
    assert done.json["replicas"] == []
    for u in done.json["unserved"]:
        assert (u["code"], u["rate"]) == ("no_memory", 5)
        assert "0.5" in u["reason"]
        assert "0.25" in u["reason"]


def test_a_service_level_that_no_route_can_meet_is_named_with_the_numbers_compared(epara, edge):
    path = edge(replace=("slo_ms: 200", "slo_ms: 9"))
    done = epara("plan", path.name, "--solver", "mathopt-highs", "--json")
    assert done.code == 0
    assert {u["code"] for u in done.json["unserved"]} == {"no_route_in_time"}
    assert all("9 ms" in u["reason"] for u in done.json["unserved"])


def test_without_demand_an_empty_plan_says_so(epara, edge):
    path = edge(lambda d: d.update(demand=[]))
    done = epara("plan", path.name, "--out", "plan.json", "--json")
    assert done.code == 0
    made = done.json
    assert (made["stop"], made["replicas"], made["unserved"], made["objective"]) == ("no_demand", [], [], 0)
    warned = epara("topology", "validate", path.name)
    assert warned.code == 0
    assert "nothing is offered" in warned.out


def test_tabs_in_yaml_are_refused_with_their_line(epara, tmp_path):
    (tmp_path / "tabs.yaml").write_text("version: 1\nname: x\nservers:\n\t- {name: a}\n")
    done = epara("plan", "tabs.yaml")
    assert done.code == BAD_INPUT
    assert "tabs.yaml:4: expected spaces: YAML allows no tab in indentation" in done.err


def test_every_error_of_a_file_is_listed_at_once(epara, edge):
    path = edge(lambda d: (d["servers"][0].update(kind="toaster"), d["links"][0].update(rtt_ms=-1), d.update(frob=1)))
    assert [v["path"] for v in sorted(refused_topology(epara, path), key=lambda v: v["path"])] == [
        "frob",
        "links[0].rtt_ms",
        "servers.shop-a.kind",
    ]


@pytest.mark.parametrize(("given", "why"), [("nowhere.yaml", "No such file"), (".", "Is a directory")])
def test_a_topology_that_is_no_file_is_named(epara, given, why):
    done = epara("plan", given, "--json")
    assert done.code == BAD_INPUT
    assert why in done.json["error"]["message"]
    assert given in done.json["error"]["message"]


# Arguments


def test_a_misspelt_solver_lists_those_that_are_known_and_usable(epara, edge):
    edge()
    with unchanged(epara):
        done = epara("plan", "edge.yaml", "--solver", "mathopt-higs", "--json")
    assert done.code == NO_PLAN
    message = done.json["error"]["message"]
    assert "no solver is called 'mathopt-higs'" in message
    assert "mathopt-highs" in message.split("Usable here:")[1]


def test_a_time_limit_of_zero_is_refused_in_words_and_in_json(epara, edge):
    done = epara("plan", edge().name, "--time-limit", "0", "--json")
    assert done.code == BAD_INPUT
    error = done.json["error"]
    assert "--time-limit" in error["message"]
    assert "0.1" in error["message"]
    plain = epara("plan", "edge.yaml", "--time-limit", "0")
    assert (plain.code, plain.out) == (BAD_INPUT, "")
    assert "greater than or equal to 0.1" in plain.err


def test_a_duration_with_its_unit_spelt_out_is_refused_with_an_example(epara, edge):
    edge()
    with unchanged(epara):
        done = epara("run", "edge.yaml", "--every", "30 seconds", "--json")
    assert done.code == BAD_INPUT
    assert only(done.json["error"]["violations"])[:3] == (
        "duration",
        "expected a positive one such as 30s, 2m or 500ms",
        "30 seconds",
    )


def test_a_schema_that_does_not_exist_is_refused(epara):
    done = epara("schema", "nothing", "--json")
    assert done.code == BAD_INPUT
    done = epara("schema", "nothing")
    assert (done.code, done.out) == (BAD_INPUT, "")
    assert "schema: expected topology or plan, got nothing" in done.err


@pytest.mark.parametrize(
    ("out", "law"),
    [("here.txt/plan.json", "expected a folder at"), (".", "expected a file, this is a folder")],
)
def test_an_out_that_cannot_be_written_is_refused_before_anything_is_solved(epara, edge, tmp_path, out, law):
    edge()
    (tmp_path / "here.txt").write_text("a file")
    with unchanged(epara):
        done = epara("plan", "edge.yaml", "--solver", "nope", "--out", out, "--json")  # the solver is not even asked
    assert done.code == BAD_INPUT
    assert only(done.json["error"]["violations"])[0::2] == ("out", out)
    assert law in done.json["error"]["message"]


def test_a_planner_for_servers_without_executors_is_refused_with_their_names(epara, edge):
    edge()
    with unchanged(epara):
        done = epara("run", "edge.yaml", "--cycles", "1", "--json")
    assert done.code == BAD_INPUT
    paths = [v["path"] for v in done.json["error"]["violations"]]
    assert paths == ["servers.shop-a.address", "servers.shop-b.address"]


def test_a_store_that_cannot_be_made_is_the_stores_trouble(epara, edge, tmp_path):
    edge(lambda d: [s.update(address=f"127.0.0.1:{7 + i}") for i, s in enumerate(d["servers"])])
    (tmp_path / "taken").write_text("a file")
    with unchanged(epara):
        done = epara("run", "edge.yaml", "--store", "taken", "--cycles", "1")
    assert done.code == STORE
    assert "taken/planner.sqlite: cannot be opened" in done.err


# Solvers


@pytest.fixture
def without_solvers(tmp_path) -> dict[str, str]:
    """An environment in which neither PuLP nor OR-Tools can be imported."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pulp', 'ortools', 'highspy'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def test_a_solver_that_is_not_installed_is_refused_and_the_usable_ones_are_listed(epara, edge, without_solvers):
    edge()
    done = epara("plan", "edge.yaml", "--solver", "mathopt-highs", "--out", "plan.json", "--json", env=without_solvers)
    assert done.code == NO_PLAN
    message = done.json["error"]["message"]
    assert "ortools is not installed (pip install 'epara-opt[planner]')" in message
    assert message.split("Usable here:")[1].strip() == "columns, greedy, greedy-density."
    assert not (epara.folder / "plan.json").exists()


def test_without_any_solver_auto_plans_with_the_engine_of_our_own_and_proves_it(epara, edge, without_solvers):
    edge()
    done = epara("plan", "edge.yaml", "--json", env=without_solvers)
    assert done.code == 0
    assert (done.json["solver"], done.json["stop"]) == ("columns", "optimal")
    assert done.json["dual_bound"] == pytest.approx(done.json["objective"])


def test_without_any_solver_a_greedy_plan_claims_no_bound(epara, edge, without_solvers):
    edge()
    done = epara("plan", "edge.yaml", "--solver", "greedy", "--json", env=without_solvers)
    assert done.code == 0
    assert (done.json["solver"], done.json["stop"], done.json["dual_bound"]) == ("greedy", "heuristic", None)


# Plans


@pytest.fixture
def plan_file(epara, edge) -> Path:
    """A plan of the small edge."""
    edge()
    assert epara("plan", "edge.yaml", "--solver", "greedy", "--out", "plan.json").code == 0
    return epara.folder / "plan.json"


def patched(plan_file: Path, name: str, **fields: Any) -> Path:
    path = plan_file.with_name(name)
    path.write_text(json.dumps(json.loads(plan_file.read_text()) | fields))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "bad.json:1: expected JSON"),
        ('{"format": 1,\n "generation": 1,\n "rep', "bad.json:3: expected JSON"),
        ("[]", "bad.json: expected a JSON object"),
        ("{}", "bad.json: format: expected a plan of format 1"),
        ('{"format": 1}', "bad.json: predicted: expected this field"),
    ],
    ids=["words", "cut off", "a list", "no format", "no fields"],
)
def test_what_is_no_plan_is_refused_with_its_place(epara, text, message):
    (epara.folder / "bad.json").write_text(text)
    with unchanged(epara):
        done = epara("report", "bad.json", "--html", "page.html")
    assert done.code == BAD_INPUT
    assert message in done.err


def test_a_plan_whose_number_is_a_word_is_refused_with_the_field(epara, plan_file):
    patched(plan_file, "bad.json", gap="narrow")
    done = epara("report", "bad.json", "--html", "page.html")
    assert done.code == BAD_INPUT
    assert "bad.json: gap: expected float | None, got 'narrow'" in done.err


def test_a_plan_without_its_edge_needs_the_topology_to_be_drawn(epara, plan_file):
    patched(plan_file, "bare.json", edge=None)
    done = epara("report", "bare.json", "--html", "page.html")
    assert done.code == BAD_INPUT
    assert "bare.json: edge: expected a plan that carries its edge; give --topology" in done.err
    assert not (epara.folder / "page.html").exists()
    assert epara("report", "bare.json", "--html", "page.html", "--topology", "edge.yaml").code == 0


def test_a_plan_that_overfills_a_device_is_refused_by_the_checker(epara, plan_file):
    made = json.loads(plan_file.read_text())
    patched(plan_file, "full.json", routes=[r | {"rate": 1000 * r["rate"]} for r in made["routes"]])
    with unchanged(epara):
        done = epara("apply", "edge.yaml", "full.json", "--json")
    assert done.code == REFUSED
    assert done.json["error"]["violations"]


def test_a_plan_made_for_another_topology_is_refused_by_name(epara, edge, plan_file):
    edge(lambda d: d.update(name="three-shops"), name="other.yaml")
    with unchanged(epara):
        done = epara("apply", "other.yaml", "plan.json", "--json")
    assert done.code == BAD_INPUT
    (v,) = done.json["error"]["violations"]
    assert (v["file"], v["path"], v["value"]) == ("plan.json", "topology", "two-shops")
    assert v["law"] == "expected a plan made for topology 'three-shops'"
    assert epara("plan", "other.yaml", "--previous", "plan.json").code == BAD_INPUT


# Executors


def free_port() -> int:
    """One that nobody listens on: bound and let go."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def addressed(edge) -> Callable[[dict[str, str]], Path]:
    """The small edge with executors at these addresses."""

    def write(addresses: dict[str, str]) -> Path:
        return edge(lambda d: [s.update(address=addresses[s["name"]]) for s in d["servers"]])

    return write


def test_an_address_without_an_executor_is_named_by_status(epara, addressed):
    addressed({s: f"127.0.0.1:{free_port()}" for s in ("shop-a", "shop-b")})
    done = epara("status", "edge.yaml", "--json")
    assert done.code == EXECUTORS
    assert sorted(done.json["down"]) == ["shop-a", "shop-b"]
    assert "Connection refused" in done.json["down"]["shop-a"]


def test_a_port_that_is_taken_is_named(epara):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        address = f"127.0.0.1:{s.getsockname()[1]}"
        done = epara("executor", "--server", "shop-a", "--listen", address)
    assert done.code == EXECUTORS
    assert f"cannot listen on {address}: the address is in use or not ours" in done.err
    assert done.out == ""


def test_an_executor_without_its_folder_of_models_does_not_start(epara):
    done = epara("executor", "--server", "shop-a", "--listen", "127.0.0.1:0", "--model-root", "nowhere")
    assert done.code == BAD_INPUT
    assert "model_root: expected a folder, local model sources are relative to it, got nowhere" in done.err
    assert done.out == ""


def test_a_state_directory_that_cannot_be_made_is_named(epara):
    (epara.folder / "state").write_text("a file")
    done = epara("executor", "--server", "shop-a", "--listen", "127.0.0.1:0", "--state-dir", "state")
    assert done.code == EXECUTORS
    assert "state directory state/shop-a: expected a folder that can be made: Not a directory" in done.err
    assert done.out == ""


def test_who_cannot_be_drained_is_named(epara, addressed):
    addressed({s: f"127.0.0.1:{free_port()}" for s in ("shop-a", "shop-b")})
    done = epara("drain", "edge.yaml", "shop-b", "--timeout", "1", "--json")
    assert done.code == EXECUTORS
    assert "executor of shop-b did not answer" in done.json["error"]["message"]


def test_an_executor_of_an_unknown_server_does_not_start(epara, edge):
    edge()
    done = epara("executor", "--server", "shop-z", "--topology", "edge.yaml")
    assert done.code == BAD_INPUT
    assert "servers.shop-z: expected a server of the topology" in done.err


def test_a_plan_needs_addresses_to_be_applied(epara, plan_file):
    done = epara("apply", "edge.yaml", "plan.json")
    assert done.code == BAD_INPUT
    assert "address: expected host:port" in done.err


def test_nobody_to_ask_is_said_when_a_request_is_sent(epara):
    address = f"127.0.0.1:{free_port()}"
    done = epara("infer", address, "label", "--timeout", "5", "--json")
    assert done.code == EXECUTORS
    assert "UNAVAILABLE" in done.json["error"]["message"]
    assert address in done.json["error"]["message"]


def test_a_usage_error_is_json_where_json_is_asked_for(epara):
    done = epara("plan", "--json")
    assert done.code == BAD_INPUT
    assert "TOPOLOGY" in done.json["error"]["message"]


def test_success_is_json_where_json_is_asked_for(epara, edge):
    path = edge()
    assert yaml.safe_load(path.read_text())["name"] == "two-shops"
    for command in (("topology", "validate", path.name), ("topology", "show", path.name), ("solvers",)):
        done = epara(*command, "--json")
        assert done.code == 0
        assert done.json
        assert done.err == ""


# Hostile numbers


@pytest.mark.parametrize(
    ("number", "law"),
    [
        (".nan", "expected a number that is finite"),
        (".inf", "expected a number that is finite"),
        ("1.0e+400", "expected a number that is finite"),
        ("1e400", "expected a number; write 1.0e+400"),
        ("1.0e+300", "expected at most 1e+07 of a service at one server; is the unit right?"),
    ],
)
def test_rates_that_no_edge_could_see_are_refused_by_line(epara, edge, number, law):
    path = edge(replace=("rate_per_s: 5", f"rate_per_s: {number}"))
    for v in refused_topology(epara, path):
        assert v["law"] == law
        assert v["line"]


def test_a_weight_beyond_all_comparison_is_refused(epara, edge):
    """It once left the range of a solver's floats and ended in a traceback."""
    path = edge(replace=("slo_ms: 200", "slo_ms: 200\n  weight: 1.0e+300"))
    where, law, value, _ = only(refused_topology(epara, path))
    assert (where, value) == ("services.label.weight", "1e+300")
    assert law == "expected at most 1e+15 and at least 1e-15: weights only compare services"


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none_is_refused(epara, edge, limit):
    path = edge()
    with unchanged(epara):
        done = epara("plan", path.name, "--time-limit", limit, "--out", "plan.json", "--json")
    assert done.code == BAD_INPUT
    assert "time-limit" in done.json["error"]["message"]


def test_an_edge_whose_services_were_never_measured_is_planned_with_reasons(epara, edge):
    path = edge(lambda d: d["services"][0]["model"].update(source="m/unknown"))
    done = epara("plan", path.name, "--time-limit", "1", "--json")
    assert done.code == 0
    assert done.json["replicas"] == []
    assert {u["code"] for u in done.json["unserved"]} == {"no_profile"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--model-cache-gib", "0", "model_cache_gib: expected a finite number > 0, got 0.0"),
        (
            "--model-bandwidth-mbps",
            "0.5",
            "model_bandwidth_mbps: expected 0 (no cap), or a finite number >= 1, got 0.5",
        ),
        ("--model-bandwidth-mbps", "nan", "got nan"),
    ],
)
def test_limits_for_models_that_cannot_be_are_refused(epara, option, value, words):
    done = epara("executor", "--server", "shop-a", "--listen", "127.0.0.1:0", option, value)
    assert done.code == 2
    assert words in done.err
