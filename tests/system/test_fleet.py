"""A real edge through the command line: three executor processes, torch workers, a planner, clients."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from epara_executors.infer_client import InferClient
from epara_executors.load import LoadGenerator, LoadRun
from epara_executors.local import LocalExecutor
from epara_executors.tiny_models import make_all

from epara_opt.cli.demo_edge import Planner
from epara_opt.cli.load import load_specs
from epara_opt.importers.catalogue import shipped_topologies
from epara_opt.topology import load_topology

pytestmark = pytest.mark.system

DEADLINE_S = 90.0


class Edge:
    """The demo topology on executors of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_all(folder / "models")
        document = yaml.safe_load((shipped_topologies() / "demo.yaml").read_text())
        self.executors: dict[str, LocalExecutor] = {}
        for server in document["servers"]:
            self.start(server["name"])
            server["address"] = self.executors[server["name"]].address
        document["profiles"] = str(shipped_topologies() / "profiles" / "demo-cpu.csv")
        self.file = folder / "edge.yaml"
        self.file.write_text(yaml.safe_dump(document))

    def start(self, name: str, listen: str = "127.0.0.1:0") -> None:
        self.executors[name] = LocalExecutor(
            name,
            state_dir=self.folder / "state" / name,
            model_root=self.folder,
            listen=listen,
            log_file=self.folder / f"{name}.log",
        )

    def epara(self, *arguments: object, code: int = 0) -> str:
        command = [sys.executable, "-m", "epara_opt.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr if code else done.stdout

    def with_demand(self, factor: float) -> Path:
        document = yaml.safe_load(self.file.read_text())
        for demand in document["demand"]:
            if "rate_per_s" in demand:
                demand["rate_per_s"] *= factor
        path = self.folder / f"edge-x{factor}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def load(self, seconds: float) -> LoadRun:
        topology = load_topology(self.file).topology
        return LoadRun(LoadGenerator(load_specs(topology, seconds), duration_s=seconds, seed=5)).start()


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    made = Edge(tmp_path_factory.mktemp("edge"))
    pids = [e.pid for e in made.executors.values()]
    yield made
    for executor in made.executors.values():
        pids.append(executor.pid)
        assert executor.stop() in (0, -signal.SIGKILL)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.fixture(scope="module")
def applied(edge):
    edge.epara("plan", edge.file, "--out", "plan.json")
    edge.epara("apply", edge.file, "plan.json")
    return edge


def test_a_plan_is_applied_and_status_shows_it_on_every_executor(applied):
    state = json.loads(applied.epara("status", applied.file, "--json"))
    assert {e["generation"] for e in state["executors"].values()} == {1}
    assert set(state["executors"]) == {"edge-a", "edge-b", "cam-box"}


def test_applying_the_plan_in_force_again_changes_nothing(applied):
    assert "was in force already" in applied.epara("apply", applied.file, "plan.json")


def test_every_task_answers_at_every_executor_as_torch_does(applied):
    import torch
    from transformers import AutoModelForImageClassification

    for executor in applied.executors.values():
        with InferClient(executor.address) as client:
            pixels = np.random.default_rng(0).random((1, 3, 112, 112), np.float32)
            answer = client.infer("classify", {"pixel_values": pixels}).outputs["logits"]
            chat = client.infer("chat", {"text": np.array([b"hello"], np.object_)}, params={"max_tokens": 4})
            assert chat.outputs["tokens"].size <= 4
            embedding = client.infer("embed", {"text": np.array([b"hello"], np.object_)}).outputs["embedding"]
            assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-4)
            shape = [1 if n < 0 else n for n in client.metadata("lane-seg").inputs[0].shape]
            assert client.infer("lane-seg", {"pixel_values": np.zeros(shape, np.float32)}).outputs["mask"].ndim == 3
        model = AutoModelForImageClassification.from_pretrained(applied.folder / "models" / "tiny-vit").eval()
        with torch.inference_mode():
            np.testing.assert_allclose(answer, model(torch.from_numpy(pixels)).logits.numpy(), atol=1e-4)


def test_another_plan_of_an_old_generation_is_refused(applied):
    applied.epara("plan", applied.with_demand(2.0), "--out", "rival.json", "--max-tenants", 1)
    said = applied.epara("apply", applied.file, "rival.json", code=5)
    assert "nothing was changed" in said
    assert "plan again with --previous" in said


def test_a_plan_change_under_load_loses_no_request(applied):
    load = applied.load(12.0)
    applied.epara("plan", applied.with_demand(2.0), "--previous", "plan.json", "--out", "next.json")
    applied.epara("apply", applied.file, "next.json")
    outcomes = {r.outcome for r in load.result(timeout_s=DEADLINE_S).records}
    assert outcomes <= {"on_time", "late"}


def test_an_executor_that_is_down_stops_an_apply_before_it_begins(applied, tmp_path):
    document = yaml.safe_load(applied.file.read_text())
    for port, server in enumerate(document["servers"], start=7):
        server["address"] = f"127.0.0.1:{port}"  # nobody listens on the lowest ports
    dead = tmp_path / "dead.yaml"
    dead.write_text(yaml.safe_dump(document))
    applied.epara("plan", dead, "--out", "dead.json")
    said = applied.epara("apply", dead, "dead.json", code=5)
    assert "nothing was changed: the plan needs executors that do not answer" in said


def test_killing_an_executor_under_load_its_services_are_served_again_within_a_cycle_and_nothing_hangs(applied):
    every_s = 5.0
    store = applied.folder / "planner"
    planner = Planner(applied.file, store, every_s=every_s, solver="auto", log=applied.folder / "planner.log")
    try:
        planner.wait_for(lambda e: e["kind"] == "recorded", timeout_s=DEADLINE_S)
        load = applied.load(25.0)
        began = time.time()
        load.join(5.0)
        victim = applied.executors.pop("edge-a")
        address, killed_at = victim.address, time.time() - began
        victim.kill()
        load.join(12.0)
        applied.start("edge-a", address)
        planner.wait_for(lambda e: e["kind"] == "server_up", timeout_s=DEADLINE_S)
        report = load.result(timeout_s=DEADLINE_S)
    finally:
        planner.stop()
    down = next(e for e in planner.events if e["kind"] == "server_down")
    assert down["fields"]["server"] == "edge-a"
    limit_ms = {s.name: s.deadline_ms for s in load_topology(applied.file).topology.services.values()}
    assert all(r.latency_ms <= 3.0 * limit_ms[r.service] + 1500.0 for r in report.records)
    again = report.between(killed_at + 2.0 * every_s, 17.0)
    assert {r.service for r in again.records if r.outcome == "on_time"} == {"chat", "lane-seg", "classify", "embed"}
    assert again.slo_attainment > 0.8


def test_a_planner_that_was_killed_goes_on_with_a_newer_epoch_and_executors_served_meanwhile(applied):
    store = applied.folder / "planner"

    def start() -> Planner:
        return Planner(applied.file, store, every_s=3.0, solver="greedy", log=applied.folder / "planner.log")

    first = start()
    one = first.wait_for(lambda e: e["kind"] == "recorded", timeout_s=DEADLINE_S)
    started = first.wait_for(lambda e: e["kind"] == "started", timeout_s=1.0)
    os.kill(first.process.pid, signal.SIGKILL)
    first.stop()
    with InferClient(applied.executors["edge-b"].address) as client:
        client.infer("embed", {"text": np.array([b"still here"], np.object_)})
    second = start()
    try:
        again = second.wait_for(lambda e: e["kind"] == "started", timeout_s=DEADLINE_S)
        second.wait_for(lambda e: e["kind"] == "recorded", timeout_s=DEADLINE_S)
    finally:
        second.stop()
    assert one["kind"] == "recorded"
    assert again["fields"]["epoch"] > started["fields"]["epoch"]
    assert again["fields"]["generation"] >= 1
