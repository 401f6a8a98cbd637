"""A text model over two executors, from YAML to tokens: planned, applied, broken, repaired, unloaded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import yaml
from epara_executors.infer_client import InferClient, InferError
from epara_executors.local import LocalExecutor

pytestmark = pytest.mark.system

PROMPTS = ["hello", "the quick brown fox jumps over the lazy dog", "x"]
TOKENS = 12
COLUMNS = "model,device,tp,pp,batch,frames,latency_ms,interval_ms,prefill_ms,prompt_tokens,decode_step_ms,memory_gib"


def profiles() -> str:
    """Slices of one layer and of all four: 0.2 GiB and a few milliseconds a layer, so that a device holds two."""
    rows = [f"{COLUMNS},load_s,source,layers"]
    for layers in (1, 4):
        memory = 0.1 + 0.2 * layers
        rows += [f"chat,cpu,1,1,1,1,,,{2 * layers},{n},,{memory},1,made up,{layers}" for n in (8, 64)]
        rows += [f"chat,cpu,1,1,{b},1,,,,,{layers},{memory},1,made up,{layers}" for b in (1, 2)]
    return "\n".join(rows) + "\n"


def edge_of(addresses: dict[str, str]) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "two-halls",
        "rules": {"across_servers": True},
        "device_types": {"cpu": {"memory_gib": 0.6, "kind": "cpu"}},
        "servers": [
            {"name": name, "kind": "edge-server", "address": address, "devices": [{"type": "cpu", "count": 1}]}
            for name, address in addresses.items()
        ],
        "links": [{"between": list(addresses), "rtt_ms": 0.2, "bandwidth_mbps": 10000}],
        "services": [
            {
                "name": "chat",
                "model": {
                    "source": "tiny-llama",
                    "profile": "chat",
                    "task": "text-generation",
                    "layers": 4,
                    "activation_kb": 0.25,
                },
                "sensitivity": "latency",
                "slo_ms": 20000,
                "request": {"input_kb": 1, "output_kb": 1, "prompt_tokens": 16, "output_tokens": 16},
            }
        ],
        "demand": [{"service": "chat", "origin": name, "rate_per_s": 0.5} for name in addresses],
        "profiles": "profiles.csv",
    }


class Halls:
    """Two executors on loopback and the command line beside them."""

    def __init__(self, folder: Path, epara: Any) -> None:
        from epara_executors.tiny_models import make

        self.folder = folder
        self.epara = epara
        make("tiny-llama", folder / "models" / "tiny-llama")
        self.running = {name: self.start(name) for name in ("hall-a", "hall-b")}
        self.topology = folder / "edge.yaml"
        self.topology.write_text(yaml.safe_dump(edge_of({n: e.address for n, e in self.running.items()})))
        (folder / "profiles.csv").write_text(profiles())

    def start(self, name: str, listen: str = "127.0.0.1:0") -> LocalExecutor:
        return LocalExecutor(
            name,
            state_dir=self.folder / name,
            model_root=self.folder / "models",
            listen=listen,
            log_file=self.folder / f"{name}.log",
        )

    def ranks(self, name: str) -> list[psutil.Process]:
        """Workers: what the fork server has forked."""
        (forker,) = psutil.Process(self.running[name].pid).children()
        return forker.children()

    def tokens(self, name: str) -> list[list[int]]:
        with InferClient(self.running[name].address) as client:
            return [self.ask(client, p)["tokens"].tolist() for p in PROMPTS]

    @staticmethod
    def ask(client: InferClient, prompt: str, max_tokens: int = TOKENS) -> Any:
        given = {"text": np.array([prompt.encode()], dtype=np.object_)}
        return client.infer("chat", given, params={"max_tokens": max_tokens}, timeout_s=60).outputs

    def replicas(self) -> dict[str, Any]:
        said = self.epara("status", self.topology, "--json").json
        return {name: {r["state"]: r for r in e["replicas"]} for name, e in said["executors"].items()}

    def are_live(self) -> bool:
        return all("live" in r for r in self.replicas().values())

    def close(self) -> None:
        for executor in self.running.values():
            executor.stop(timeout_s=30)


def until(true: Callable[[], bool], what: str, *, within_s: float = 60.0) -> None:
    ends_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends_at, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def halls(tmp_path_factory: pytest.TempPathFactory, command_line: Any) -> Iterator[Halls]:
    folder = tmp_path_factory.mktemp("halls")
    made = Halls(folder, command_line(folder))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def expected(halls: Halls) -> list[list[int]]:
    """Greedy tokens of the whole model in one process."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = halls.folder / "models" / "tiny-llama"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    found: list[list[int]] = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
        found.append(made[0, given["input_ids"].shape[1] :].tolist())
    return found


def test_a_plan_over_two_servers_is_applied_and_its_tokens_are_the_models(
    halls: Halls, expected: list[list[int]]
) -> None:
    planned = halls.epara("plan", halls.topology, "--solver", "greedy", "--out", "plan.json")
    assert planned.code == 0, planned.err
    applied = halls.epara("apply", halls.topology, "plan.json", "--json")
    assert applied.code == 0, applied.out + applied.err
    assert [a["server"] for a in applied.json["actions"] if a["kind"] == "prepare"] == ["hall-a", "hall-b"]
    for name in halls.running:
        assert halls.tokens(name) == expected
    until(halls.are_live, "the further stage has heard that its head is ready")
    seen = halls.replicas()
    parts = [seen[name]["live"] for name in ("hall-a", "hall-b")]
    assert sorted(tuple(r["stages"]) for r in parts) == [(0,), (1,)]
    assert all(r["memory_bytes"] > 0 for r in parts)
    shown = halls.epara("status", halls.topology).out
    assert "1 of 2" in shown
    assert "2 of 2" in shown


def test_ranks_listen_at_the_servers_own_address_only(halls: Halls) -> None:
    places = {
        c.laddr.ip
        for name in halls.running
        for rank in halls.ranks(name)
        for c in rank.net_connections()
        if c.status == psutil.CONN_LISTEN
    }
    assert places == {"127.0.0.1"}


def test_a_stage_that_is_killed_fails_what_is_in_flight_and_the_chain_comes_back(
    halls: Halls, expected: list[list[int]]
) -> None:
    stages = {tuple(r["live"]["stages"]): name for name, r in halls.replicas().items()}
    errors: list[InferError] = []
    began = threading.Event()

    def ask() -> None:
        given = {"text": np.array([b"hello"], dtype=np.object_)}
        with InferClient(halls.running[stages[0,]].address) as client:
            try:
                for _ in client.stream("chat", given, params={"max_tokens": 400}, timeout_s=60):
                    began.set()
            except InferError as e:
                errors.append(e)

    asking = threading.Thread(target=ask)
    asking.start()
    assert began.wait(30)
    (stage,), (head,) = halls.ranks(stages[1,]), halls.ranks(stages[0,])
    stage.kill()
    asking.join()
    assert errors[0].status is grpc.StatusCode.UNAVAILABLE
    assert f"stage 1 at {stages[1,]}: ended with -9" in errors[0].message
    psutil.wait_procs([head], timeout=10)
    assert not head.is_running()
    until(halls.are_live, "both stages are live again")
    assert halls.tokens(stages[1,]) == expected


def test_the_cycle_takes_such_a_plan_over(halls: Halls, expected: list[list[int]]) -> None:
    cycle = ("run", halls.topology, "--solver", "greedy", "--store", "store", "--every", "1s", "--cycles", "1")
    done = halls.epara(*cycle, "--json")
    assert done.code == 0, done.err
    assert {tuple(r["live"]["stages"]) for r in halls.replicas().values()} == {(0,), (1,)}
    assert halls.tokens("hall-a") == expected


def test_a_plan_without_it_frees_every_executor(halls: Halls) -> None:
    text = halls.topology.read_text()
    quiet = halls.folder / "quiet.yaml"
    quiet.write_text(text.replace("rate_per_s: 0.5", "rate_per_s: 0.0"))
    ranks = [r for name in halls.running for r in halls.ranks(name)]
    assert len(ranks) == 2
    plan = halls.epara("plan", quiet, "--solver", "greedy", "--out", "empty.json")
    assert plan.code == 0, plan.err
    empty = json.loads((halls.folder / "empty.json").read_text())
    (halls.folder / "empty.json").write_text(json.dumps({**empty, "generation": 99}))  # newer than the cycle's
    done = halls.epara("apply", quiet, "empty.json", "--json")
    assert done.code == 0, done.out + done.err
    assert psutil.wait_procs(ranks, timeout=20)[1] == []
    assert halls.replicas() == {"hall-a": {}, "hall-b": {}}
