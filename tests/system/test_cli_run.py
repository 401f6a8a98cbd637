"""`epara run` and how it is ended; what commands that write files say to programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.system


@pytest.fixture
def listeners() -> Iterator[dict[str, socket.socket]]:
    """Where calls are taken and never answered, by server; refused once they are closed."""
    with ExitStack() as stack:
        made = {server: stack.enter_context(socket.socket()) for server in ("shop-a", "shop-b")}
        for s in made.values():
            s.bind(("127.0.0.1", 0))
            s.listen(64)
        yield made


def interrupted(command: list[str], folder: Path, *, times: int) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a planner that gets so many SIGINTs once its first cycle has begun."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as planner:
        assert planner.stdout is not None
        assert planner.stderr is not None
        assert '"started"' in planner.stdout.readline()
        planner.send_signal(signal.SIGINT)
        assert "once more to leave at once" in planner.stderr.readline()
        if times == 2:
            planner.send_signal(signal.SIGINT)
        out, err = planner.communicate(timeout=60)
    return planner.returncode, out, err


def test_a_first_interrupt_ends_run_after_the_cycle_and_a_second_at_once(epara, edge, listeners):
    addresses = {server: f"127.0.0.1:{s.getsockname()[1]}" for server, s in listeners.items()}
    path: Path = edge(lambda d: [s.update(address=addresses[s["name"]]) for s in d["servers"]])
    command = [sys.executable, "-m", "epara_opt.cli", "run", path.name, "--store", "store", "--every", "1h", "--json"]
    code, out, err = interrupted(command, epara.folder, times=2)  # while it waits for who is silent
    assert (code, err) == (130, "")
    assert '"stopped"' not in out
    for s in listeners.values():
        s.close()
    code, out, err = interrupted(command, epara.folder, times=1)
    assert (code, err) == (0, "")
    assert '"stopped"' in out


def test_an_apply_timeout_of_nothing_is_refused(epara, edge):
    edge()
    done = epara("run", "edge.yaml", "--apply-timeout", "0", "--json")
    assert done.code == 2
    assert "--apply-timeout" in done.json["error"]["message"]


def test_a_generated_topology_is_named_to_programs(epara):
    done = epara("topology", "generate", "--out", "made.yaml", "--servers", "4", "--services", "3", "--json")
    assert done.code == 0, done.err
    for key in ("topology", "profiles"):
        assert (epara.folder / done.json[key]).is_file()
    assert done.json["notes"] == []
