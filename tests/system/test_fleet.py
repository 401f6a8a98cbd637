"""One edge of three real executors with torch workers, through its life: applied, loaded, changed, hurt, planned again.

Tests run in this order on the same edge; each but the last two leaves it serving.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient
from epara_executors.load import LoadGenerator, LoadRun
from epara_executors.load_report import LoadReport

from epara_opt.cli.demo_edge import Planner, executors, start_executor
from epara_opt.cli.load import load_specs
from epara_opt.control.ports import FleetState
from epara_opt.topology import load_topology

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NAMES = ["edge-a", "edge-b", "cam-box"]
EXAMPLES = Path(__file__).resolve().parents[2] / "topologies"
SERVICES = {"chat", "classify", "embed", "lane-seg"}
SEED = 5
EVERY_S = 3.0  # of the planner's cycles
TIMEOUT_FACTOR = 3.0  # a client waits so many deadlines
MAX_LOAD_S = 90.0  # loads are stopped long before


@dataclass
class Edge:
    """The edge under test."""

    folder: Path
    epara: Callable[..., Any]  # the command line in `folder`
    running: dict[str, Any]
    fleet: GrpcFleet
    children: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def topology(self) -> Path:
        return self.folder / "edge.yaml"

    def state(self) -> FleetState:
        return self.fleet.observe({n: e.address for n, e in self.running.items()}, with_plan=True)

    def generations(self) -> dict[str, int]:
        return {n: e.generation for n, e in self.state().executors.items()}

    def arrived(self) -> int:
        return sum(s.arrived for e in self.state().executors.values() for s in e.services)

    def load(self) -> LoadRun:
        """Clients of the whole demand, once the first requests have come in."""
        before = self.arrived()
        specs = load_specs(load_topology(self.topology).topology, MAX_LOAD_S)
        load = LoadRun(LoadGenerator(specs, duration_s=MAX_LOAD_S, seed=SEED, timeout_factor=TIMEOUT_FACTOR)).start()
        until(lambda: self.arrived() >= before + 20 or not load.running, "requests arrive")
        return load

    def processes(self) -> dict[int, psutil.Process]:
        """Every process of every executor, workers included."""
        for executor in self.running.values():
            agent = psutil.Process(executor.pid)
            self.children |= {p.pid: p for p in (agent, *agent.children(recursive=True))}
        return self.children


def until(done: Callable[[], bool], what: str, *, within_s: float = 60.0) -> None:
    ends_at = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < ends_at, f"expected within {within_s:g} s: {what}"
        time.sleep(0.05)


def finish(load: LoadRun) -> LoadReport:
    """Stop sending; every request must have ended by its own client deadline."""
    load.stop()
    return load.result(timeout_s=60.0)


def unanswered(report: LoadReport) -> list[str]:
    """What was shed, failed or timed out: a client got no answer.

    But for what an executor dropped because this machine had become too slow for its deadline.
    """
    return [
        f"{r.service}@{r.origin} {r.sent_at:.2f} s: {r.outcome} {r.detail}"
        for r in report.records
        if r.outcome not in ("on_time", "late") and "could not be on time any more" not in r.detail
    ]


def write_topology(folder: Path, addresses: dict[str, str], name: str = "edge.yaml") -> Path:
    """The demo's edge at these addresses: its own deadlines, its own demand."""
    document = yaml.safe_load((EXAMPLES / "demo.yaml").read_text())
    for server in document["servers"]:
        server["address"] = addresses[server["name"]]
    document["profiles"] = "profiles.csv"
    shutil.copy(EXAMPLES / "profiles" / "demo-cpu.csv", folder / "profiles.csv")
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def with_demand(topology: Path, factor: float) -> Path:
    """The same edge with so many times the requests."""
    document = yaml.safe_load(topology.read_text())
    for demand in document["demand"]:
        if "rate_per_s" in demand:
            demand["rate_per_s"] *= factor
    path = topology.with_name(f"edge-x{factor:g}.yaml")
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def edge(
    tmp_path_factory: pytest.TempPathFactory, command_line: Callable[[Path], Callable[..., Any]]
) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("fleet")
    epara = command_line(folder)
    made = epara("models", "make", "models", "--seed", str(SEED), "--json")
    assert made.code == 0, made.err
    assert all((folder / path).is_dir() for path in made.json["models"].values())
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    with patch.context(), executors(NAMES, folder) as running, GrpcFleet() as fleet:
        edge = Edge(folder=folder, epara=epara, running=running, fleet=fleet)
        write_topology(folder, {n: e.address for n, e in running.items()})
        yield edge
    patch.undo()


@pytest.fixture(scope="module")
def applied(edge: Edge) -> Edge:
    """The first plan in force."""
    assert edge.epara("plan", edge.topology, "--out", "plan-1.json").code == 0
    done = edge.epara("apply", edge.topology, "plan-1.json", "--json")
    assert done.code == 0, done.err
    assert done.json["changed"]
    edge.processes()
    return edge


def test_an_applied_plan_is_in_force_everywhere_and_status_says_so(applied):
    done = applied.epara("status", applied.topology, "--json")
    assert done.code == 0, done.err
    assert {e["generation"] for e in done.json["executors"].values()} == {1}
    served = {r["service"] for e in done.json["executors"].values() for r in e["replicas"] if r["state"] == "live"}
    assert served == SERVICES
    assert {r["service"] for r in done.json["replicas"]} == SERVICES
    assert all(r["memory_bytes"] > 0 for r in done.json["replicas"])


def test_applying_it_again_changes_nothing(applied):
    done = applied.epara("apply", applied.topology, "plan-1.json", "--json")
    assert done.code == 0, done.err
    assert not done.json["changed"]


def test_classification_equals_the_direct_torch_call(applied):
    import torch
    from transformers import ViTForImageClassification

    x = np.random.default_rng(SEED).standard_normal((1, 3, 112, 112), dtype=np.float32)
    with InferClient(applied.running["edge-b"].address) as client:
        served = client.infer("classify", {"pixel_values": x}).outputs["logits"]
    model = ViTForImageClassification.from_pretrained(applied.folder / "models" / "tiny-vit").eval()
    with torch.inference_mode():
        direct = model(pixel_values=torch.from_numpy(x)).logits.numpy()
    np.testing.assert_allclose(served, direct, rtol=1e-4, atol=1e-5)


def test_segmentation_equals_the_direct_torch_call(applied):
    import torch
    from transformers import SegformerForSemanticSegmentation

    x = np.random.default_rng(SEED).standard_normal((1, 3, 128, 128), dtype=np.float32)
    with InferClient(applied.running["cam-box"].address) as client:
        served = client.infer("lane-seg", {"pixel_values": x}).outputs
    model = SegformerForSemanticSegmentation.from_pretrained(applied.folder / "models" / "tiny-segformer").eval()
    with torch.inference_mode():
        logits = model(pixel_values=torch.from_numpy(x)).logits
        large = torch.nn.functional.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(served["logits"], logits.numpy(), rtol=1e-4, atol=1e-4)
    assert (served["mask"] == large.argmax(dim=1).numpy()).mean() > 0.999  # ties between labels may fall either way


def test_embedding_equals_the_direct_torch_call(applied):
    import torch
    from transformers import AutoTokenizer, BertModel

    text = "lights at the edge of the city"
    with InferClient(applied.running["edge-a"].address) as client:
        served = client.infer("embed", {"text": np.array([text.encode()], dtype=np.object_)}).outputs["embedding"]
    folder = applied.folder / "models" / "tiny-bert"
    given = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(folder).eval()(**given).last_hidden_state
        direct = torch.nn.functional.normalize(hidden.mean(dim=1), dim=1).numpy()
    np.testing.assert_allclose(served, direct, rtol=1e-4, atol=1e-4)


def test_generation_equals_the_direct_torch_call(applied):
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    text = "the edge of the cloud"
    with InferClient(applied.running["cam-box"].address) as client:
        answer = client.infer("chat", {"text": np.array([text.encode()], dtype=np.object_)}, params={"max_tokens": 6})
    folder = applied.folder / "models" / "tiny-llama"
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        model = LlamaForCausalLM.from_pretrained(folder).eval()
        direct = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].numpy()
    np.testing.assert_array_equal(answer.outputs["tokens"].ravel(), direct)


def test_infer_shows_an_answer_and_refuses_what_is_not_served(applied):
    address = applied.running["edge-a"].address
    done = applied.epara("infer", address, "chat", "--text", "hello", "--max-tokens", "4", "--json")
    assert done.code == 0, done.err
    assert "tokens" in done.json["outputs"]
    steps = applied.epara("infer", address, "chat", "--text", "hello", "--max-tokens", "4", "--stream", "--json")
    tokens = [t for line in steps.out.splitlines() for t in json.loads(line)["outputs"]["tokens"]]
    assert ", ".join(f"{t:.4g}" for t in tokens) == done.json["outputs"]["tokens"]["values"]
    unknown = applied.epara("infer", address, "chess", "--json")
    assert unknown.code == 5
    assert "NOT_FOUND" in unknown.json["error"]["message"]


def test_every_task_is_answered_wherever_it_enters(applied):
    word = np.array([b"hello"], dtype=np.object_)
    for executor in applied.running.values():
        with InferClient(executor.address) as client:
            assert client.infer("chat", {"text": word}, params={"max_tokens": 4}).outputs["tokens"].size <= 4
            assert np.linalg.norm(client.infer("embed", {"text": word}).outputs["embedding"]) == pytest.approx(
                1, abs=1e-4
            )
            for service, side, output in (("classify", 112, "logits"), ("lane-seg", 128, "mask")):
                pixels = np.zeros((1, 3, side, side), np.float32)
                assert client.infer(service, {"pixel_values": pixels}).outputs[output].shape[0] == 1


def test_another_plan_of_the_generation_in_force_is_refused(applied):
    assert applied.epara("plan", applied.topology, "--out", "rival.json", "--max-tenants", "1").code == 0
    done = applied.epara("apply", applied.topology, "rival.json", "--json")
    assert done.code == 5
    assert "nothing was changed" in done.json["error"]["message"]
    assert "plan again with --previous" in done.json["error"]["message"]
    assert applied.generations() == dict.fromkeys(NAMES, 1)


def test_a_load_is_measured_as_clients_see_it(applied):
    done = applied.epara("load", applied.topology, "--duration", "3s", "--seed", str(SEED), "--json")
    assert done.code == 0, done.err
    assert {s["service"] for s in done.json["services"]} == SERVICES
    for s in done.json["services"]:
        assert s["outcomes"]["failed"] == s["outcomes"]["timeout"] == 0
        assert sum(s["outcomes"].values()) == s["offered"] > 0


def test_an_executor_that_is_down_stops_an_apply_before_anything_changes(applied):
    addresses = {n: e.address for n, e in applied.running.items()}
    write_topology(applied.folder, addresses | {"edge-b": "127.0.0.1:1"}, "broken.yaml")
    assert applied.epara("plan", "broken.yaml", "--out", "broken.json", "--max-tenants", "1").code == 0
    used = {r["server"] for r in json.loads((applied.folder / "broken.json").read_text())["replicas"]}
    assert "edge-b" in used
    before = applied.state()
    done = applied.epara("apply", "broken.yaml", "broken.json", "--json")
    assert done.code == 5
    message = done.json["error"]["message"]
    assert "nothing was changed" in message
    assert "edge-b" in message
    assert "executor of edge-a" not in message
    after = applied.state()
    for name in NAMES:
        assert after.executors[name].generation == before.executors[name].generation
        groups = [{r.group for r in s.executors[name].replicas} for s in (before, after)]
        assert groups[0] == groups[1]


@pytest.fixture(scope="module")
def changed(applied: Edge) -> tuple[Edge, LoadReport]:
    """A second plan for twice the demand, made and brought into force while clients send."""
    doubled = with_demand(applied.topology, 2.0)
    load = applied.load()
    try:
        planned = applied.epara(
            "plan", doubled, "--previous", "plan-1.json", "--max-tenants", "1", "--out", "plan-2.json", "--json"
        )
        assert planned.code == 0, planned.err
        kinds = {a["kind"] for a in planned.json["actions"]}
        assert kinds == {"prepare", "commit", "retire"}  # a plan that moves something, or the test shows nothing
        done = applied.epara("apply", applied.topology, "plan-2.json", "--json")
        assert done.code == 0, done.err
        assert done.json["changed"]
        arrived = applied.arrived()
        until(lambda: applied.arrived() >= arrived + 60 or not load.running, "requests after the change")
    finally:
        report = finish(load)
    applied.processes()
    return applied, report


def test_a_plan_changed_under_load_loses_no_request(changed):
    edge, report = changed
    assert edge.generations() == dict.fromkeys(NAMES, 2)
    assert unanswered(report) == []
    assert {r.service for r in report.records} == SERVICES


def test_an_older_plan_is_refused_once_a_newer_one_is_in_force(changed):
    edge, _ = changed
    done = edge.epara("apply", edge.topology, "plan-1.json", "--json")
    assert done.code == 5
    assert done.json["error"]["type"] == "StaleFence"
    assert "of generation 1, and another plan of generation 2 is in force" in done.json["error"]["message"]
    assert edge.generations() == dict.fromkeys(NAMES, 2)


@pytest.fixture(scope="module")
def planner(changed: tuple[Edge, LoadReport]) -> Iterator[Callable[[], Planner]]:
    """Starts `epara run` on the edge's one store."""
    edge, _ = changed
    started: list[Planner] = []

    def start() -> Planner:
        log = edge.folder / "logs" / "planner.log"
        made = Planner(edge.topology, edge.folder / "store", every_s=EVERY_S, solver="auto", log=log)
        started.append(made)
        made.wait_for(lambda e: e["kind"] == "recorded", timeout_s=60.0)
        return made

    yield start
    for made in started:
        made.stop()


@pytest.fixture(scope="module")
def survived(changed: tuple[Edge, LoadReport], planner: Callable[[], Planner]) -> dict[str, Any]:
    """One executor killed under load with a planner running, and started again."""
    edge, _ = changed
    running = planner()
    victim = max(edge.state().executors.values(), key=lambda e: sum(s.served for s in e.services)).server
    load = edge.load()
    try:
        address = edge.running[victim].address
        edge.processes()
        hosted = {r.service for r in edge.state().executors[victim].replicas}
        edge.running.pop(victim).kill()
        killed_at = time.time()
        down = running.wait_for(lambda e: e["kind"] == "server_down", timeout_s=60.0)
        cycle = running.wait_for(lambda e: e["kind"] == "recorded" and e["at"] >= down["at"], timeout_s=120.0)
        again_at = killed_at + 2.0 * EVERY_S
        until(lambda: time.time() >= again_at, "two cycles since the kill")
        arrived = edge.arrived()
        until(lambda: edge.arrived() >= arrived + 60 or not load.running, "requests two cycles after the kill")
        restarted_at = time.time()
        edge.running[victim] = start_executor(victim, edge.folder, listen=address)
        up = running.wait_for(lambda e: e["kind"] == "server_up", timeout_s=60.0)
        taken_up = running.wait_for(lambda e: e["kind"] == "recorded" and e["at"] >= up["at"], timeout_s=120.0)
    finally:
        report = finish(load)
    edge.processes()
    return {
        "report": report,
        "hosted": hosted,
        "cycle": cycle["fields"],
        "again": report.between(again_at - report.started_at, restarted_at - report.started_at),
        "taken_up": taken_up["fields"],
        "victim": victim,
        "planner": running,
    }


def test_one_cycle_after_a_kill_its_services_are_served_by_others(survived):
    assert survived["cycle"]["outcome"] in ("applied", "rerouted"), survived["cycle"]
    again = survived["again"]
    assert survived["hosted"]
    assert {r.service for r in again.records if r.outcome == "on_time"} == SERVICES
    assert again.slo_attainment > 0.8, unanswered(again)


def test_no_request_hangs_beyond_its_client_deadline_when_an_executor_is_killed(survived, edge):
    services = load_topology(edge.topology).topology.services
    for r in survived["report"].records:
        assert r.latency_ms <= TIMEOUT_FACTOR * services[r.service].deadline_ms + 1000.0, r  # and waking


def test_a_restarted_executor_rejoins(survived, edge):
    assert survived["taken_up"]["outcome"] in ("applied", "rerouted"), survived["taken_up"]
    in_force = max(edge.generations().values())

    def joined() -> bool:
        return edge.generations().get(survived["victim"], 0) >= in_force

    until(joined, "the restarted executor serves the plan in force")


def test_executors_serve_without_a_planner_and_its_successor_continues(survived, edge, planner):
    first = survived["planner"]
    started = next(e for e in first.events if e["kind"] == "started")
    first.process.kill()
    first.process.wait()
    pixels = np.zeros((1, 3, 112, 112), np.float32)
    for executor in edge.running.values():
        with InferClient(executor.address) as client:
            assert client.infer("classify", {"pixel_values": pixels}).outputs["logits"].shape == (1, 100)
    in_force = max(edge.generations().values())
    second = planner()
    again = next(e for e in second.events if e["kind"] == "started")
    assert again["fields"]["epoch"] > started["fields"]["epoch"]
    assert again["fields"]["generation"] == in_force
    planning = second.wait_for(lambda e: e["kind"] == "planning", timeout_s=60.0)
    assert planning["fields"]["generation"] > in_force
    second.stop()
    assert second.process.returncode == 0
    done = edge.epara("history", "--store", "store", "--json")
    assert done.code == 0, done.err
    assert len(done.json) >= 3


def test_a_drained_executor_finishes_and_takes_no_more(edge):
    done = edge.epara("drain", edge.topology, "edge-b", "--json")
    assert done.code == 0, done.err
    assert done.json == {"server": "edge-b", "left_in_flight": 0, "exits": False}
    refused = edge.epara("infer", edge.running["edge-b"].address, "classify", "--json")
    assert refused.code == 5
    assert "UNAVAILABLE" in refused.json["error"]["message"]


def test_nothing_is_left_running_at_the_end(edge):
    left = edge.processes()
    assert len(left) > 2 * len(NAMES)  # agents, fork servers, workers
    for executor in list(edge.running.values()):
        assert executor.stop(timeout_s=60.0) == 0
    edge.running.clear()

    def gone(p: psutil.Process) -> bool:
        return not p.is_running() or p.status() == psutil.STATUS_ZOMBIE

    until(lambda: all(map(gone, left.values())), "every process of every executor has ended", within_s=30.0)
