"""The edges that planners are compared on: shipped ones, generated ones, and a real one where its data is there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epara_opt.importers.document import write_document
from epara_opt.importers.eua import import_eua
from epara_opt.importers.generate import generate
from epara_opt.topology import LoadedTopology, load_topology

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EPARA_DATA", ROOT.parent / "shared" / "data"))
PEER_RESULTS = ROOT / "benchmarks" / "results" / "planner_peers.json"
# 125 base stations and 816 users of Melbourne's centre: EUA data set (PhuLai/eua-dataset, MIT)
SITES = "topologies/eua_optus_melbcbd_sites.csv"
USERS = "topologies/eua_users_melbcbd_generated.csv"


GENERAL_SERVERS = 130  # beyond it general solvers' programs take minutes to build and are not asked


@dataclass(frozen=True, slots=True)
class Case:
    """An edge to plan, and how long planners get."""

    name: str
    time_limit_s: float
    warm_s: float | None  # for planning again after 5 % of the demand has changed
    servers: int
    seed: int = 1


CASES = {
    c.name: c
    for c in (
        Case("testbed", 30.0, None, 4, 0),
        Case("metro-20", 30.0, None, 20, 0),
        Case("5x8", 30.0, None, 5),
        Case("20x24", 30.0, None, 20),
        Case("eua-melbourne-125", 30.0, None, 125),
        Case("100x60", 30.0, 5.0, 100),
        Case("1000x100", 60.0, 10.0, 1000),
        Case("10000x100", 300.0, None, 10_000),
    )
}


def load(name: str, folder: Path) -> LoadedTopology:
    """The edge of a case, made in `folder` where it is not shipped. Raises FileNotFoundError without its data."""
    shipped = ROOT / "topologies" / f"{name}.yaml"
    if shipped.exists():
        return load_topology(shipped)
    case, path = CASES[name], folder / f"{name}.yaml"
    if name.startswith("eua"):
        made = import_eua(DATA / SITES, DATA / USERS, services=24, seed=case.seed, overload=1.6).document
    else:
        servers, services = name.split("x")
        made = generate(servers=int(servers), services=int(services), seed=case.seed, overload=1.6)
    write_document(made, path)
    return load_topology(path)


def is_there(name: str) -> bool:
    """Whether the case's data is on this machine."""
    return not name.startswith("eua") or (DATA / SITES).exists()


def merge(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of the same case and solver."""
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    fresh = {(r["case"], r["solver"]) for r in rows}
    found = [r for r in found if (r["case"], r["solver"]) not in fresh] + rows
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": found}, indent=1) + "\n")
