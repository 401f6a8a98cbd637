"""Profile CSV files: one measured point a line, and where each number comes from.

Comment lines (`#`) may stand above the header. A blank cell means "not given". See docs/topology.md.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from epara_opt.domain.profile import ProfileCatalogue, ProfileRow
from epara_opt.errors import InputError, Violation
from epara_opt.units import bytes_to_gib, gib_to_bytes

COLUMNS = (
    "model", "device", "tp", "pp", "batch", "frames", "latency_ms", "interval_ms", "prefill_ms", "prompt_tokens",
    "decode_step_ms", "memory_gib", "load_s", "source",
)  # fmt: skip
OPTIONAL = ("layers", "error")  # may be absent: of slices of models; of what was measured here
_WHOLE = ("tp", "pp", "batch", "frames", "prompt_tokens", "layers")
_REAL = ("latency_ms", "interval_ms", "prefill_ms", "decode_step_ms", "memory_gib", "load_s", "error")
_REQUIRED = ("model", "device", "memory_gib", "load_s", "source")


def read_profiles(paths: Iterable[Path]) -> ProfileCatalogue:
    """Read profile files into one catalogue. Raises InputError with everything wrong in all of them."""
    rows: list[ProfileRow] = []
    found: list[Violation] = []
    for path in paths:
        _read_file(path, rows, found)
    try:
        catalogue = ProfileCatalogue.from_rows(rows)
    except InputError as e:
        found.extend(e.violations)
    else:
        if not found:
            return catalogue
    raise InputError(found)


def write_profiles(rows: Sequence[ProfileRow], path: Path, *, append: bool = False, comment: str = "") -> None:
    """Write rows; `append` adds to a file that has the header already. `comment` goes above the header."""
    extend = append and path.is_file() and path.stat().st_size > 0
    used = tuple(c for c in OPTIONAL if any(getattr(r, c) is not None for r in rows))
    columns = _header(path) if extend else COLUMNS + used
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if extend else "w", encoding="utf-8", newline="") as stream:
        if not extend:
            stream.writelines(f"# {line}\n" for line in comment.splitlines())
        writer = csv.writer(stream, lineterminator="\n")
        if not extend:
            writer.writerow(columns)
        writer.writerows(_cells(row, columns) for row in rows)


def _header(path: Path) -> tuple[str, ...]:
    """The columns of a file that is added to; those of a new one where it has no header that could be read."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    found = tuple(next(csv.reader([next((line for line in lines if not line.startswith("#")), "")]), ()))
    return found if set(COLUMNS) <= set(found) <= {*COLUMNS, *OPTIONAL} else COLUMNS


def _cells(row: ProfileRow, columns: Sequence[str]) -> list[str]:
    values: dict[str, object] = {
        "model": row.model,
        "device": row.device_type,
        "memory_gib": round(bytes_to_gib(row.memory_bytes), 6),
        "source": row.source,
    }
    for key in ("tp", "pp", "batch", "frames", *_REAL, "prompt_tokens", "layers"):
        if key not in values:
            values[key] = getattr(row, key)
    return ["" if values[c] is None else f"{v:g}" if isinstance(v := values[c], float) else str(v) for c in columns]


def _read_file(path: Path, rows: list[ProfileRow], found: list[Violation]) -> None:
    def fail(line: int, where: str, law: str, value: str = "") -> None:
        found.append(Violation(path=where, law=law, value=value, file=str(path), line=line))

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
        fail(0, "", f"expected a profile file that can be read: {why}")
        return
    top = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if top is None:
        fail(0, "", "expected profile rows, the file is empty")
        return
    header = next(csv.reader([lines[top]]))
    known = (*COLUMNS, *OPTIONAL)
    for name in header:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            fail(top + 1, name, f"unknown column{f'; did you mean {close[0]}?' if close else ''}")
        elif header.count(name) > 1:
            fail(top + 1, name, "expected each column once")
    missing = [c for c in COLUMNS if c not in header]
    if missing:
        fail(top + 1, "header", f"expected the columns {','.join(COLUMNS)}", f"no {', '.join(missing)}")
    if missing or len(set(header)) != len(header) or not set(header) <= set(known):
        return
    reader = csv.reader(lines[top + 1 :])
    for cells in reader:
        line = top + 1 + reader.line_num
        if not any(c.strip() for c in cells):
            continue
        if len(cells) != len(header):
            fail(line, "row", f"expected {len(header)} cells", str(len(cells)))
            continue
        row = _row(dict(zip(header, (c.strip() for c in cells), strict=True)), path, line, found)
        if row is not None:
            rows.append(row)


def _row(cells: dict[str, str], path: Path, line: int, found: list[Violation]) -> ProfileRow | None:
    before = len(found)

    def fail(where: str, law: str, value: str) -> None:
        found.append(Violation(path=where, law=law, value=value, file=str(path), line=line))

    for key in _REQUIRED:
        if not cells[key]:
            fail(key, "expected a value", "nothing")
    whole: dict[str, int | None] = {}
    for key in _WHOLE:
        text = cells.get(key, "")
        whole[key] = None
        if text and text.isdecimal():
            whole[key] = int(text)
        elif text:
            fail(key, "expected a whole number", text)
    real: dict[str, float | None] = {}
    for key in _REAL:
        text = cells.get(key, "")
        real[key] = None
        try:
            real[key] = float(text) if text else None
        except ValueError:
            fail(key, "expected a number", text)
        value = real[key]
        if value is not None and not (math.isfinite(value) and value >= 0):
            fail(key, "expected a finite number >= 0", text)
    if len(found) > before:
        return None

    def or_one(key: str) -> int:
        value = whole[key]
        return 1 if value is None else value

    try:
        return ProfileRow(
            model=cells["model"],
            device_type=cells["device"],
            tp=or_one("tp"),
            pp=or_one("pp"),
            batch=or_one("batch"),
            frames=or_one("frames"),
            latency_ms=real["latency_ms"],
            interval_ms=real["interval_ms"],
            prefill_ms=real["prefill_ms"],
            prompt_tokens=whole["prompt_tokens"],
            decode_step_ms=real["decode_step_ms"],
            layers=whole["layers"],
            error=real["error"],
            memory_bytes=gib_to_bytes(real["memory_gib"] or 0.0),
            load_s=real["load_s"] or 0.0,
            source=cells["source"],
            file=str(path),
            line=line,
        )
    except InputError as e:
        found.extend(e.violations)
        return None
