"""Other servers under the same load: each in an environment of its own, for their pins of pydantic and grpc conflict.

`peers/setup.sh DIR` makes the environments; a peer without one is reported absent. How a peer serves the network is in
peers/NAME_server.py, what it needs in peers/NAME.txt.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers import ENVIRONMENT, HERE, SOURCE, STARTERS, Server

SCRIPTS = HERE / "peers"
ENVIRONMENTS = SCRIPTS / ".venv"  # where setup.sh puts them unless it is told
STUBS = HERE.parents[1] / "executors"  # of the Open Inference Protocol, the folder of a package


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How one peer is called."""

    calls: str  # a protocol of calls.py
    brings_client: bool  # its environment has what `calls` needs; otherwise the project's has


PEERS: Mapping[str, Peer] = {
    "litserve": Peer(calls="raw_http", brings_client=True),
    "mlserver": Peer(calls="open_inference", brings_client=False),
    "ray": Peer(calls="open_inference", brings_client=False),
    "bentoml": Peer(calls="base64_http", brings_client=True),
}


def names_of(given: str) -> list[str]:
    """Servers in the order of their turns: ours and the floor first. Raises ValueError for one that is not known."""
    known = (*STARTERS, *PEERS)
    names = given.split(",")
    if unknown := [n for n in names if n not in known]:
        raise ValueError(f"--servers: expected of {', '.join(known)}, got {', '.join(unknown)}")
    return [n for n in known if n in names]


def absence(name: str, environments: Path) -> str | None:
    """Why a peer cannot be measured and what would change that, or None if it can."""
    if (environments / name / "ready").exists():
        return None
    return f"{name}: absent; it is installed by: benchmarks/serving/peers/setup.sh {environments} {name}"


@contextmanager
def peer(name: str, environments: Path, folder: Path) -> Generator[Server]:
    """A peer with the network of `folder`. It is up when it answers, which is not awaited here."""
    python = str(environments / name / "bin" / "python")
    scratch = folder / name
    scratch.mkdir()
    port = free_port()
    options = {"client": python} if PEERS[name].brings_client else {}
    server = Server(
        [python, str(SCRIPTS / f"{name}_server.py"), str(folder / SOURCE), str(port), str(scratch)],
        scratch / "log",
        address=f"127.0.0.1:{port}",
        calls=PEERS[name].calls,
        environment=ENVIRONMENT | {"PYTHONPATH": str(STUBS)},
        rests=True,
        **options,
    )
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port that the system calls free: most peers cannot be told to choose one, or to say which they chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
