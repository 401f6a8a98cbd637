"""`load_topology`: files to a checked topology and its profiles, or one error that lists everything wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epara_opt.domain.category import categorize
from epara_opt.domain.performance import configurations, evaluate
from epara_opt.domain.profile import Profile, ProfileCatalogue, ProfileRow
from epara_opt.domain.service import Service, Task
from epara_opt.domain.topology import Topology
from epara_opt.errors import InputError, Violation
from epara_opt.problem import PlanningRules
from epara_opt.topology.build import Builder
from epara_opt.topology.keys import TOPOLOGY
from epara_opt.topology.nodes import read_tree
from epara_opt.topology.profiles_csv import read_profiles
from epara_opt.topology.reader import BROKEN, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTopology:
    """Everything a topology file says."""

    topology: Topology
    catalogue: ProfileCatalogue
    rules: PlanningRules = field(default_factory=PlanningRules)
    files: tuple[Path, ...]  # all that were read, the file itself first
    profile_files: tuple[Path, ...] = ()  # as named under `profiles`; `epara profile` writes to the last


def load_topology(path: Path | str, *, with_profiles: bool = True) -> LoadedTopology:
    """Read a topology with its includes and profiles.

    with_profiles: False reads no profile file and checks nothing about profiles (for measuring them first).

    Raises InputError with every violation of all files, each with file, line, dotted path, law and value.
    """
    path = Path(path)
    tree = read_tree(path)
    reader = Reader()
    reader.violations.extend(tree.violations)
    if not tree.pairs:
        raise InputError(reader.violations)
    reader.places[""] = tree.start
    values = reader.record(TOPOLOGY, tree.pairs, "", tree.start)
    profile_files = _profile_files(reader, values, must_exist=with_profiles)
    catalogue = ProfileCatalogue()
    if profile_files and with_profiles:
        try:
            catalogue = read_profiles(profile_files)
        except InputError as e:
            reader.violations.extend(e.violations)
    builder = Builder(reader, values, _digest(values, catalogue.rows))
    topology = builder.topology()
    rules = builder.rules()
    if topology is not None and with_profiles and not reader.violations:
        reader.violations.extend(builder.at(v) for v in _profile_violations(topology, catalogue))
    if reader.violations or topology is None or rules is None:
        raise InputError(sorted(reader.violations, key=lambda v: (v.file != str(path), v.file, v.line)))
    return LoadedTopology(
        topology=topology,
        catalogue=catalogue,
        rules=rules,
        files=(*tree.files, *(profile_files if with_profiles else ())),
        profile_files=profile_files,
    )


def _profile_files(reader: Reader, values: dict[str, Any], *, must_exist: bool) -> tuple[Path, ...]:
    """Paths under `profiles`, each relative to the YAML file that names it."""
    named = values.get("profiles", [])
    files: list[Path] = []
    for i, name in enumerate([] if named is BROKEN else named):
        if name is BROKEN:
            continue
        where = f"profiles[{i}]" if f"profiles[{i}]" in reader.places else "profiles"
        file, line = reader.places[where]
        target = Path(file).parent / name
        if must_exist and not target.is_file():
            law = "expected a profile file that exists"
            reader.violations.append(Violation(path=where, law=law, value=str(target), file=file, line=line))
        elif target.resolve() not in {f.resolve() for f in files}:
            files.append(target)
    return tuple(files)


def _digest(values: dict[str, Any], rows: tuple[ProfileRow, ...]) -> str:
    """sha256 over what the files say of the edge, not how: order, comments, formatting and file names do not count.

    Demand and rules are left out: they change while the edge stays, and PlacementProblem.digest adds them.
    """
    said = {k: v for k, v in values.items() if k in ("name", "device_types")}
    for key in ("servers", "services", "links"):
        value = values.get(key, BROKEN)
        said[key] = [] if value is BROKEN else sorted(_canonical(item) for item in value)
    measured = sorted(
        _canonical(
            [
                [r.model, r.device_type, r.tp, r.pp, r.batch, r.frames, r.latency_ms, r.interval_ms],
                [r.prefill_ms, r.prompt_tokens, r.decode_step_ms, r.memory_bytes, r.load_s],
                *([r.layers] if r.layers else []),  # older files keep their digests
            ]
        )
        for r in rows
    )
    return hashlib.sha256(_canonical([said, measured]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _profile_violations(topology: Topology, catalogue: ProfileCatalogue) -> Iterator[Violation]:
    """What would stop a plan from being made: points that services need and nobody measured."""
    present = sorted({pool.type for server in topology.servers.values() for pool in server.devices})
    for service in topology.services.values():
        found: list[Violation] = []
        for device_type in present:
            shapes = catalogue.shapes(service.model.profile_name, device_type)
            found.extend(v for profile in shapes.values() for v in _missing_points(service, profile, catalogue))
        found += _missing_in_slices(service, catalogue)
        yield from found
        if not found:
            try:
                categorize(service, topology, catalogue)
            except InputError as e:
                yield from e.violations


def _missing_in_slices(service: Service, catalogue: ProfileCatalogue) -> Iterator[Violation]:
    """Slices that a chain could not use: of the other form, or measured at other prompts."""
    for (model, device_type, tp), measured in catalogue.slices.items():
        if model != service.model.profile_name:
            continue
        for layers, profile in measured.items():
            row = next(
                r
                for r in catalogue.rows
                if (r.model, r.device_type, r.tp, r.layers) == (model, device_type, tp, layers)
            )
            on = f"{layers} layers of {model} on {device_type} tp{tp}"
            tokens = service.request.prompt_tokens
            if profile.generates != (service.model.task is Task.TEXT_GENERATION):
                want = "latency rows" if profile.generates else "prefill and decode rows"
                law = f"expected {want} for {on} ({row.file}:{row.line})"
                yield Violation(path=f"services.{service.name}.model.task", law=law, value=service.model.task.value)
            elif profile.generates and not profile.prefill_ms.covers(tokens):
                x = profile.prefill_ms.x
                law = (
                    f"profile with a missing point: {on} are measured at {x[0]} .. {x[-1]} prompt tokens "
                    f"({row.file}:{row.line})"
                )
                yield Violation(path=f"services.{service.name}.request.prompt_tokens", law=law, value=str(tokens))


def _missing_points(service: Service, profile: Profile, catalogue: ProfileCatalogue) -> Iterator[Violation]:
    on = f"{profile.model} on {profile.device_type} tp{profile.tp} pp{profile.pp}"
    row = next(
        r
        for r in catalogue.rows
        if (r.model, r.device_type, r.tp, r.pp, r.layers)
        == (profile.model, profile.device_type, profile.tp, profile.pp, None)
    )
    if profile.generates != (service.model.task is Task.TEXT_GENERATION):
        want = "latency rows" if profile.generates else "prefill and decode rows"
        yield Violation(
            path=f"services.{service.name}.model.task",
            law=f"expected {want} for {on} ({row.file}:{row.line})",
            value=service.model.task.value,
        )
        return
    tokens = service.request.prompt_tokens
    if profile.generates and not profile.prefill_ms.covers(tokens):
        xs = profile.prefill_ms.x
        hull = f"{xs[0]}" if len(xs) == 1 else f"{xs[0]} .. {xs[-1]}"
        yield Violation(
            path=f"services.{service.name}.request.prompt_tokens",
            law=f"profile with a missing point: {on} is measured at {hull} prompt tokens ({row.file}:{row.line})",
            value=str(tokens),
        )
        return
    for config in configurations(service, profile):
        try:
            evaluate(service, profile, config)
        except InputError as e:
            for v in e.violations:
                law = f"profile with a missing point: {on} at {config}: {v.law} ({row.file}:{row.line})"
                yield Violation(path=f"services.{service.name}", law=law, value=v.value)
