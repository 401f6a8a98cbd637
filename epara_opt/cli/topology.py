"""topology validate, show, import, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from epara_opt.cli.output import JsonFlag, TopologyArgument, emit, err, require_writable, working

if TYPE_CHECKING:
    from epara_opt.importers.document import Document

app = typer.Typer(help="Check, show, import and generate topologies.", no_args_is_help=True)


@app.command()
def validate(topology: TopologyArgument, as_json: JsonFlag = False) -> None:
    """Check a topology and its profiles; list every error with file and line, and what could never be served."""
    from epara_opt.problem import build_problem
    from epara_opt.topology import load_topology

    loaded = load_topology(topology)
    problem = build_problem(loaded.topology, loaded.catalogue, rules=loaded.rules)
    warnings = [f"services.{name}: {'; '.join(why)}" for name, why in problem.misfits.items() if why]
    reached = {(e.service, e.origin) for e in problem.edges}
    warnings += [
        f"demand.{d.service}@{d.origin}: the network alone takes longer than the deadline to every server"
        for d in problem.demand
        if (d.service, d.origin) not in reached
    ]
    if not problem.demand:
        warnings.append("demand: nothing is offered; a plan would place nothing")
    edge = loaded.topology
    counts = {
        "servers": len(edge.servers),
        "devices": sum(p.count for s in edge.servers.values() for p in s.devices),
        "links": len(edge.links),
        "services": len(edge.services),
        "demand": len(edge.demand),
        "profile_rows": len(loaded.catalogue.rows),
    }
    lines = [Text(f"{edge.name}: valid; " + ", ".join(f"{v} {k.replace('_', ' ')}" for k, v in counts.items()))]
    lines += [Text(f"warning: {w}", style="yellow") for w in warnings]
    emit({"valid": True, "name": edge.name, **counts, "warnings": warnings}, *lines, as_json=as_json)


@app.command()
def show(topology: TopologyArgument, as_json: JsonFlag = False) -> None:
    """Servers, links, services, and the category of each service with its reason."""
    from epara_opt.domain.category import categorize
    from epara_opt.domain.snapshot import topology_to_dict
    from epara_opt.report.terminal import topology_table
    from epara_opt.topology import load_topology

    loaded = load_topology(topology)
    edge = loaded.topology
    categories = {s.name: categorize(s, edge, loaded.catalogue) for s in edge.services.values()}
    data = topology_to_dict(edge) | {
        "categories": {n: asdict(c) | {"operators": c.operators} for n, c in categories.items()}
    }
    emit(data, topology_table(edge, categories), as_json=as_json)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A .graphml file, or an EUA site .csv.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The YAML to write.", show_default=False)],
    users: Annotated[Path | None, typer.Option(help="EUA users .csv: demand follows them.")] = None,
    services: Annotated[int, typer.Option(min=1, help="How many services of the catalogue to offer.")] = 12,
    seed: Annotated[int, typer.Option(help="For devices and demand, which such files do not give.")] = 0,
    overload: Annotated[float, typer.Option(min=0.01, help="Demand over what the edge could serve.")] = 1.2,
    as_json: JsonFlag = False,
) -> None:
    """Make a plannable topology from a real network: Internet Topology Zoo or any GraphML, or EUA sites."""
    from epara_opt.errors import InputError, Violation
    from epara_opt.importers.eua import import_eua
    from epara_opt.importers.graphml import import_graphml

    require_writable(out)
    if source.suffix == ".graphml":
        imported = import_graphml(source, services=services, seed=seed, overload=overload)
    elif source.suffix == ".csv":
        imported = import_eua(source, users=users, services=services, seed=seed, overload=overload)
    else:
        raise InputError(Violation(path="source", law="expected a .graphml or .csv file", value=str(source)))
    _write(imported.document, out, imported.notes, as_json=as_json)


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="The YAML to write.", show_default=False)],
    servers: Annotated[int, typer.Option(min=1)] = 20,
    services: Annotated[int, typer.Option(min=1)] = 24,
    seed: Annotated[int, typer.Option()] = 0,
    overload: Annotated[float, typer.Option(min=0.01, help="Demand over what the edge could serve.")] = 1.5,
    as_json: JsonFlag = False,
) -> None:
    """Make a seeded synthetic edge: unlike servers, four categories, Zipf popularity, skewed demand."""
    from epara_opt.importers.generate import generate as make

    require_writable(out)
    with working(f"generating {servers} servers", quiet=as_json):
        made = make(servers=servers, services=services, seed=seed, overload=overload)
    _write(made, out, as_json=as_json)


def _write(document: Document, out: Path, notes: Sequence[str] = (), *, as_json: bool) -> None:
    from epara_opt.importers.document import write_document

    topology, profiles = write_document(document, out)
    if as_json:
        emit({"topology": str(topology), "profiles": str(profiles), "notes": list(notes)}, as_json=True)
        return
    for note in notes:
        err.print(f"note: {note}", highlight=False, markup=False)
    err.print(f"topology written to {topology}, its profiles to {profiles}", highlight=False)
