"""executor, apply, status, infer, drain: everything that talks to executors, save the cycle (cycle.py)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import Compression, JsonFlag, MaxMessage, TopologyArgument, emit, err, out, working
from epara_opt.errors import FleetError, InputError, Violation

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from epara_executors.client import GrpcFleet
    from epara_executors.infer_client import ModelSpec

    from epara_opt.control.ports import FleetState
    from epara_opt.domain.service import Demand
    from epara_opt.domain.topology import Topology
    from epara_opt.plan import Plan


def register(app: typer.Typer) -> None:
    """Add these commands to the root."""
    app.command("executor")(executor)
    app.command("apply")(apply)
    app.command("status")(status)
    app.command("infer")(infer)
    app.command("drain")(drain)


def executor(
    server: Annotated[str, typer.Option(help="This server's name in the topology.", show_default=False)],
    topology: Annotated[Path | None, typer.Option(help="Take the address from here.")] = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 lets the system choose.")] = None,
    http: Annotated[str, typer.Option(help="HOST:PORT for OpenAI's API over HTTP; none if empty.")] = "",
    state_dir: Annotated[Path, typer.Option(help="Where the committed plan is kept.")] = Path("runs/executor"),
    model_root: Annotated[Path, typer.Option(help="Local model sources are relative to it.")] = Path(),
    devices: Annotated[str, typer.Option(help='What it drives, e.g. "cpu:2,gpu:1"; found if empty.')] = "",
    threads: Annotated[int, typer.Option(min=1, help="Torch threads per CPU device.")] = 1,
    pin_cpus: Annotated[bool, typer.Option("--pin-cpus", help="Each CPU device's worker to cores of its own.")] = False,
    allow_remote_hub: Annotated[bool, typer.Option(help="Let workers download models from the hub.")] = False,
    max_message_mib: MaxMessage = 256,
    compression: Compression = "none",
    metrics: Annotated[str, typer.Option(help="HOST:PORT for Prometheus; port 0 lets the system choose.")] = "",
    model_cache: Annotated[
        Path | None, typer.Option(help="Where fetched models are kept; in the state directory if omitted.")
    ] = None,
    model_cache_gib: Annotated[float, typer.Option(help="GiB that fetched models may take.")] = 50.0,
    model_bandwidth_mbps: Annotated[
        float, typer.Option(help="Mbit/s for fetching models, and as much for giving them; 0: no cap.")
    ] = 0.0,
    serve_models: Annotated[bool, typer.Option(help="Let any peer read models' files from here.")] = False,
) -> None:
    """Serve one server of the edge: gRPC agent, request handler, and a worker process per device group."""
    from epara_executors.agent.main import AgentOptions, run

    if listen is None:
        if topology is None:
            raise InputError(Violation(path="listen", law="expected --listen HOST:PORT, or --topology"))
        from epara_opt.control.deploy import address_of
        from epara_opt.topology import load_topology

        listen = address_of(server, load_topology(topology).topology)
    options = AgentOptions(
        server=server,
        listen=listen,
        http=http,
        state_dir=state_dir / server,
        model_root=model_root,
        devices=devices,
        threads_per_device=threads,
        allow_remote_hub=allow_remote_hub,
        metrics=metrics,
        model_cache=model_cache,
        model_cache_gib=model_cache_gib,
        model_bandwidth_mbps=model_bandwidth_mbps,
        serve_models=serve_models,
        max_message_mib=max_message_mib,
        compression=compression,
        pin_cpus=pin_cpus,
    )
    raise typer.Exit(run(options))


def addresses(topology: Topology) -> dict[str, str]:
    """Servers that have an executor, and where it listens."""
    return {s.name: s.address for s in topology.servers.values() if s.address}


def plan_in_force(state: FleetState) -> Plan | None:
    """The newest plan any executor has committed."""
    from epara_opt.plan import Plan

    plans = [Plan.from_json(e.plan_json, file=f"executor {e.server}") for e in state.executors.values() if e.plan_json]
    return max(plans, key=lambda p: p.generation, default=None)


def apply(
    topology: TopologyArgument,
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="plan.json", show_default=False)],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the whole transaction.")] = 120.0,
    fetch_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds before it for models to reach the servers' disks.")
    ] = 3600.0,
    as_json: JsonFlag = False,
) -> None:
    """Bring PLAN into force on the executors of TOPOLOGY: prepare, switch, retire; all or nothing."""
    from epara_executors.client import GrpcFleet
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from epara_opt.cli.planning import check_same_edge, read_plan
    from epara_opt.control.apply import apply as bring
    from epara_opt.control.ports import Fence
    from epara_opt.control.running import look
    from epara_opt.control.transaction import Progress as Step
    from epara_opt.control.transition import same_content
    from epara_opt.errors import StaleFence
    from epara_opt.topology import load_topology
    from epara_opt.verify import verify

    loaded = load_topology(topology)
    edge = loaded.topology
    plan = read_plan(plan_file)
    check_same_edge(plan, edge, str(plan_file))
    # What the plan was made for may differ from the demand in the file (the cycle plans for forecasts).
    verify(plan, replace(edge, demand=demand_of(plan, edge)), loaded.catalogue)
    with GrpcFleet() as fleet:
        running, state = look(fleet, edge)
        needed = {s for r in plan.replicas for s in r.servers} & set(state.down)
        if needed:
            lines = "; ".join(f"{s}: {state.down[s]}" for s in sorted(needed))
            raise FleetError(f"nothing was changed: the plan needs executors that do not answer: {lines}")
        in_force = running.plan
        if in_force is not None and plan.generation <= in_force.generation and not same_content(in_force, plan):
            raise StaleFence(
                f"nothing was changed: {plan_file} is of generation {plan.generation}, and another plan of generation "
                f"{in_force.generation} is in force; plan again with --previous"
            )
        epoch = running.highest_epoch or 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=err, transient=True, disable=as_json or not err.is_terminal) as bar:
            task = bar.add_task("applying", total=None)

            def show(step: Step) -> None:
                what = f"stage {step.stage}: {step.kind} at {step.server}" if step.stage else f"fetch at {step.server}"
                bar.update(task, description=what, total=step.num_stages, completed=max(0, step.stage - 1))

            done = bring(
                plan,
                in_force,
                edge,
                loaded.catalogue,
                fleet,
                Fence(epoch=epoch, generation=plan.generation),
                on_progress=show,
                deadline_s=timeout,
                fetch_deadline_s=fetch_timeout,
                down=frozenset(state.down),
                stale=running.stale,
            )
    text = f"plan {plan.generation} is in force" if done.changed else f"plan {done.generation} was in force already"
    text += f"; {done.num_loads} group(s) loaded in {done.wall_s:.1f} s" if done.changed else ""
    text += f", after {done.fetch_s:.1f} s for models to reach disks" if done.fetch_s >= 1.0 else ""
    for server, why in done.leftovers.items():
        text += f"\nleft over at {server}: {why}"
    emit(asdict(done), text, as_json=as_json)


def demand_of(plan: Plan, edge: Topology) -> tuple[Demand, ...]:
    """The demand a plan was made for: what it routes and what it leaves unserved."""
    from epara_opt.domain.service import Demand

    offered: dict[tuple[str, str], float] = {}
    for part in (*plan.routes, *plan.unserved):
        key = (part.service, part.origin)
        offered[key] = offered.get(key, 0.0) + part.rate
    unknown = sorted({s for s, _ in offered} - set(edge.services))
    if unknown:
        raise InputError(Violation(path="plan", law="expected services of the topology", value=", ".join(unknown)))
    return tuple(
        Demand(service=s, origin=o, offered=rate, is_streams=edge.services[s].is_stream)
        for (s, o), rate in offered.items()
    )


def status(topology: TopologyArgument, as_json: JsonFlag = False) -> None:
    """What every executor of TOPOLOGY serves and measures right now, and which do not answer. Exit 5 if any is down."""
    from epara_executors.client import GrpcFleet

    from epara_opt.report.replicas import figures_of
    from epara_opt.report.terminal_live import status_table
    from epara_opt.topology import load_topology

    edge = load_topology(topology).topology
    with working("asking the executors", quiet=as_json), GrpcFleet() as fleet:
        state = fleet.observe(addresses(edge), with_plan=True, with_histograms=True)
    plan = plan_in_force(state)
    data = asdict(state)
    for executor_state in data["executors"].values():
        del executor_state["plan_json"]
    data["replicas"] = [asdict(f) for f in figures_of(state)]  # the same as the table: quantiles and what is at work
    emit(data, status_table(state, edge, plan), as_json=as_json)
    if state.down:
        raise typer.Exit(FleetError.exit_code)


def infer(
    address: Annotated[str, typer.Argument(help="HOST:PORT of any executor.", show_default=False)],
    service: Annotated[str, typer.Argument(help="A service of the plan in force.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="For services that read text.")] = None,
    input_: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE.npy", help="A tensor; may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="For text generation.")] = 32,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come.")] = False,
    seed: Annotated[int, typer.Option(help="For tensors that are not given: random ones.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds the call may take.")] = 30.0,
    max_message_mib: MaxMessage = 256,
    compression: Compression = "none",
    as_json: JsonFlag = False,
) -> None:
    """Send one request over the Open Inference Protocol and show the answer."""
    import numpy as np
    from epara_executors.channel import ChannelSettings
    from epara_executors.infer_client import InferClient

    settings = ChannelSettings(max_message_mib=max_message_mib, compression=compression)
    with InferClient(address, settings=settings) as client:
        spec = client.metadata(service, timeout_s=timeout)
        inputs = _inputs(spec, text=text, files=input_ or [], rng=np.random.default_rng(seed))
        generates = any(o.name == "tokens" for o in spec.outputs)
        params: dict[str, bool | int | float | str] = {"max_tokens": max_tokens} if generates else {}
        if stream and generates:
            for answer in client.stream(service, inputs, params=params, timeout_s=timeout):
                if as_json:  # a line per step
                    values = {n: _words(a) if a.dtype == object else a.tolist() for n, a in answer.outputs.items()}
                    print(json.dumps({"outputs": values, "parameters": dict(answer.parameters)}), flush=True)
                    continue
                piece = answer.outputs.get("token_text", answer.outputs.get("text"))
                if piece is not None:
                    out.print(_words(piece), end="", markup=False, highlight=False)
            if not as_json:
                out.print()
            return
        answer = client.infer(service, inputs, params=params, timeout_s=timeout)
    shown = {
        name: {"datatype": str(a.dtype), "shape": list(a.shape), "values": _preview(a)}
        for name, a in answer.outputs.items()
    }
    lines = [f"{n}  {v['datatype']} {v['shape']}  {v['values']}" for n, v in shown.items()]
    emit({"service": service, "outputs": shown, "parameters": dict(answer.parameters)}, *lines, as_json=as_json)


def _inputs(
    spec: ModelSpec, *, text: str | None, files: list[str], rng: np.random.Generator
) -> dict[str, npt.NDArray[np.generic]]:
    """Given tensors, then text, then random ones of the model's shapes. Alternatives of given inputs are left out."""
    import numpy as np
    from epara_executors.load_inputs import random_inputs

    given: dict[str, npt.NDArray[np.generic]] = {}
    names = {i.name for i in spec.inputs}
    for item in files:
        name, _, file = item.partition("=")
        if name not in names or not file:
            raise InputError(
                Violation(path="input", law=f"expected NAME=FILE.npy, NAME of {sorted(names)}", value=item)
            )
        try:
            given[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as e:
            raise InputError(Violation(path=f"input.{name}", law=f"expected a .npy file: {e}", value=file)) from None
    if text is not None:
        if "text" not in names:
            raise InputError(Violation(path="text", law=f"expected a service that reads text; inputs {sorted(names)}"))
        given["text"] = np.array([text.encode()], dtype=np.object_)
    return given or random_inputs(spec, rng)


def _words(value: npt.NDArray[np.generic]) -> str:
    return "".join(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in value.ravel().tolist())


def _preview(value: npt.NDArray[np.generic]) -> str:
    flat = value.ravel()
    if value.dtype == object:
        return json.dumps(_words(flat[:4]))
    head = ", ".join(f"{v:.4g}" for v in flat[:6].tolist())
    return head + (", ..." if flat.size > 6 else "")


def drain(
    topology: TopologyArgument,
    server: Annotated[str, typer.Argument(help="The server to empty.", show_default=False)],
    exit_: Annotated[bool, typer.Option("--exit", help="End the executor afterwards.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for what is in flight.")] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Let one executor finish what is in flight and take no new work; peers take over what they can."""
    from epara_opt.control.deploy import address_of
    from epara_opt.topology import load_topology

    address = address_of(server, load_topology(topology).topology)
    fleet = _fleet()
    try:
        with working(f"draining {server}", quiet=as_json):
            left = fleet.drain(address, exit_process=exit_, deadline_s=timeout, server=server)
    finally:
        fleet.close()
    text = f"{server}: drained" if left == 0 else f"{server}: {left} request(s) still in flight"
    emit({"server": server, "left_in_flight": left, "exits": exit_}, text, as_json=as_json)


def _fleet() -> GrpcFleet:
    from epara_executors.client import GrpcFleet

    return GrpcFleet()
