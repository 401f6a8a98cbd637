"""models make, profile: what needs torch on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from epara_opt.cli.output import JsonFlag, TopologyArgument, emit, err, require_writable
from epara_opt.errors import InputError, Violation
from epara_opt.report.cells import grid

if TYPE_CHECKING:
    from epara_executors.profiler import Progress
    from rich.text import Text

    from epara_opt.domain.profile import ProfileRow

app = typer.Typer(help="Small models of real architectures, made on the spot.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the commands that stand at the root."""
    root.command("profile")(profile)


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="Folder to write into, one folder per model.")] = Path("models"),
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write small models with random weights: llama, segformer, vit, yolos, bert, whisper, mlp. For demos and tests."""
    from epara_executors.tiny_models import make_all

    require_writable(out / "folder")
    made = {kind: str(folder) for kind, folder in make_all(out, seed=seed).items()}
    emit({"models": made}, *(f"{kind} in {folder}" for kind, folder in made.items()), as_json=as_json)


def shapes_of(text: str) -> tuple[tuple[int, int], ...]:
    """'1x1,2x1' to ((1, 1), (2, 1)): tensor-parallel degree x pipeline stages."""
    try:
        pairs = tuple((int(tp), int(pp)) for tp, pp in (item.split("x") for item in text.split(",")))
    except ValueError:
        pairs = ()
    if not pairs or any(tp < 1 or pp < 1 for tp, pp in pairs):
        raise InputError(Violation(path="shapes", law="expected TPxPP, comma-separated, such as 1x1,2x1", value=text))
    return pairs


def profile(
    topology: TopologyArgument,
    out: Annotated[Path | None, typer.Option(help="CSV to write; the topology's own profile file if omitted.")] = None,
    device: Annotated[str | None, typer.Option(help="Device type to measure as; the only one of a kind here.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="Only this service; may be repeated.")] = None,
    shapes: Annotated[str, typer.Option(help="TPxPP, comma-separated.")] = "1x1",
    batches: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,2,4,8",
    frames: Annotated[str, typer.Option(help="Frames of a stream per batch, comma-separated.")] = "1",
    incremental: Annotated[
        bool,
        typer.Option("--incremental", help="Only as many sizes in that range as it takes until the curve is known."),
    ] = False,
    within: Annotated[float, typer.Option(min=0.1, max=99, help="With --incremental: known within so many %.")] = 5.0,
    budget: Annotated[float, typer.Option(min=0.1, help="Seconds of measuring per model and shape.")] = 4.0,
    model_root: Annotated[Path, typer.Option(help="Local model sources are relative to it.")] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Measure the models of TOPOLOGY on this machine's devices: latency, its error, memory and load time over sizes."""
    from epara_executors.profiler import profile_model
    from epara_executors.worker.launch import Launcher

    from epara_opt.domain.service import Task
    from epara_opt.topology import load_topology, write_profiles

    loaded = load_topology(topology, with_profiles=False)
    edge = loaded.topology
    unknown = sorted(set(service or ()) - set(edge.services))
    if unknown:
        raise InputError(Violation(path="service", law=f"expected one of {', '.join(edge.services)}", value=unknown[0]))
    if device is None and len(edge.device_types) != 1:
        law = f"expected --device, one of {', '.join(edge.device_types)}"
        raise InputError(Violation(path="device", law=law, value="nothing"))
    device_type = edge.device_types.get(device or next(iter(edge.device_types)))
    if device_type is None:
        law = f"expected one of {', '.join(edge.device_types)}"
        raise InputError(Violation(path="device", law=law, value=str(device)))
    if out is None and not loaded.profile_files:
        raise InputError(Violation(path="out", law="expected --out, the topology names no profile file"))
    target = out or loaded.profile_files[-1]
    require_writable(target)
    sizes, runs, pairs = numbers_of(batches), numbers_of(frames, "frames"), shapes_of(shapes)
    wanted = [s for s in edge.services.values() if not service or s.name in service]
    models = {s.model.profile_name: s for s in wanted}
    rows: list[ProfileRow] = []
    launcher = Launcher(model_root)
    launcher.start()
    try:
        with measuring(len(models) * len(pairs), quiet=as_json) as show:
            for name, s in models.items():
                longest = max((w.request.prompt_tokens for w in wanted if w.model.profile_name == name), default=0)
                prompts = sorted({16, 64, longest} - {0}) if s.model.task is Task.TEXT_GENERATION else (16,)
                rows += profile_model(
                    s.model.source,
                    s.model.task.value,
                    device_type.name,
                    model=name,
                    model_root=model_root,
                    shapes=pairs,
                    batches=sizes,
                    frames=runs,
                    prompt_tokens=prompts,
                    output_tokens=max(s.request.output_tokens, 8),
                    budget_s=budget,
                    device_kind=device_type.kind.value,
                    tolerance=within / 100.0 if incremental else None,
                    command=("epara", *sys.argv[1:]),
                    launcher=launcher,
                    progress=show,
                )
    finally:
        launcher.close()
    kept = rows_beside(rows, target)
    write_profiles(
        [*kept, *rows], target, comment=f"Measured by `epara profile {topology.name}` on the machine named in source."
    )
    heads = ["model", "!tp x pp", "!of", "#latency ms", "#± %", "#memory GiB", "#load s"]
    table = grid(f"on {device_type.name}; ± is half the 95 % interval of the median", heads, [_shown(r) for r in rows])
    emit([asdict(r) for r in rows], table, as_json=as_json)
    err.print(f"{len(rows)} rows written to {target}", highlight=False)


def _shown(r: ProfileRow) -> list[Text | str]:
    from epara_opt.units import bytes_to_gib

    ms = r.latency_ms if r.latency_ms is not None else r.decode_step_ms
    size = f"batch {r.batch * r.frames}" if r.prompt_tokens is None else f"prompt {r.prompt_tokens}"
    shown = f"{ms if ms is not None else r.prefill_ms:.2f}"
    error = f"{100 * r.error:.1f}" if r.error is not None else "unknown"
    memory = f"{bytes_to_gib(r.memory_bytes):.2f}"
    return [r.model, f"{r.tp} x {r.pp}", size, shown, error, memory, f"{r.load_s:.1f}"]


@contextmanager
def measuring(num_shapes: int, *, quiet: bool) -> Generator[Callable[[Progress], None]]:
    """A bar over models and shapes on a terminal; what is worth keeping is said on stderr in any case."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=20), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    begun = 0
    with Bar(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task("starting", total=num_shapes)

        def show(step: Progress) -> None:
            nonlocal begun
            if step.is_note:
                err.print(step.text, highlight=False, soft_wrap=True)
                return
            begun += step.total == 0  # a shape begins with its loading, of which nobody knows the length
            done = begun - 1 + (step.done / step.total if step.total else 0.0)
            bar.update(task, description=step.text, completed=done)

        yield show


def rows_beside(rows: Sequence[ProfileRow], target: Path) -> list[ProfileRow]:
    """Rows of the file that stand: those of models, device types and shapes that were not measured now."""
    from epara_opt.topology import read_profiles

    if not target.exists():
        return []
    measured = {(r.model, r.device_type, r.tp, r.pp) for r in rows}
    return [r for r in read_profiles([target]).rows if (r.model, r.device_type, r.tp, r.pp) not in measured]


def numbers_of(text: str, path: str = "batches") -> tuple[int, ...]:
    """'1,2,4' to (1, 2, 4)."""
    try:
        values = tuple(int(v) for v in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise InputError(Violation(path=path, law="expected whole numbers >= 1, comma-separated", value=text))
    return values
