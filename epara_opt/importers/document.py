"""Topology documents: what importers and the generator make, before it is a file. See docs/topology.md for the keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from epara_opt.domain.profile import ProfileRow
from epara_opt.importers.catalogue import shipped_catalogue
from epara_opt.topology import write_profiles

Document = dict[str, Any]


def to_yaml(document: Document, *, comment: str = "") -> str:
    """YAML text that the strict reader accepts, one record a line; `comment` goes on top."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in document.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):  # pyright: ignore[reportUnknownVariableType]
            lines.append(f"{key}:")
            lines += [f"  - {_flow(item)}" for item in value]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(value, dict) and value:
            lines.append(f"{key}:")
            lines += [f"  {_flow(k)}: {_flow(v)}" for k, v in value.items()]  # pyright: ignore[reportUnknownVariableType]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def write_document(
    document: Document, path: Path, rows: Sequence[ProfileRow] | None = None, *, comment: str = ""
) -> tuple[Path, Path]:
    """Write the topology and, beside it, `<name>-profiles.csv` with the rows its services need. Returns both paths.

    rows: where to take profiles from; None takes the shipped catalogue.
    """
    rows = shipped_catalogue().rows if rows is None else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}-profiles.csv")
    named = {s["model"].get("profile") or s["model"]["source"] for s in document.get("services", [])}
    write_profiles([r for r in rows if r.model in named], beside, comment=f"Profiles of {path.name}.")
    path.write_text(to_yaml({**document, "profiles": beside.name}, comment=comment), encoding="utf-8")
    return path, beside


def _flow(value: object) -> str:
    """One value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
