"""Profile CSV files: read strictly, written so that they read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from epara_opt.domain.profile import ProfileRow
from epara_opt.errors import InputError
from epara_opt.topology import COLUMNS, read_profiles, write_profiles
from epara_opt.units import gib_to_bytes

HEADER = ",".join(COLUMNS)
GOOD = "seg,gpu,1,1,1,1,10,,,,,1.5,2,measured\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(body: str, header: str = HEADER) -> Path:
    path = Path("p.csv")
    path.write_text(f"{header}\n{body}")
    return path


def errors(*paths: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_profiles(paths)
    return [str(v) for v in caught.value.violations]


def row(**changes: object) -> ProfileRow:
    values: dict[str, object] = {
        "model": "seg",
        "device_type": "gpu",
        "latency_ms": 10.0,
        "memory_bytes": gib_to_bytes(1.5),
        "load_s": 2.0,
        "source": "measured",
    }
    return ProfileRow(**(values | changes))  # type: ignore[arg-type]


def test_rows_become_curves() -> None:
    catalogue = read_profiles([put(GOOD + "seg,gpu,1,1,8,1,40,30,,,,2,3,measured\n")])
    profile = catalogue.shapes("seg", "gpu")[1, 1]
    assert profile.latency_ms.at(1) == 10.0
    assert profile.interval_ms.at(8) == 30.0
    assert profile.memory_bytes.at(1) == gib_to_bytes(1.5)
    assert profile.load_s == 3.0


def test_blank_degrees_mean_one() -> None:
    (read,) = read_profiles([put("seg,gpu,,,,,10,,,,,1,2,measured\n")]).rows
    assert (read.tp, read.pp, read.batch, read.frames) == (1, 1, 1, 1)


def test_comments_above_the_header_and_blank_lines_are_skipped_and_lines_still_count() -> None:
    path = Path("p.csv")
    path.write_text(f"# one\n# two\n\n{HEADER}\n{GOOD}\n{GOOD.replace('10', 'ten')}")
    assert errors(path) == ["p.csv:7: latency_ms: expected a number, got ten"]


def test_rows_written_read_back_equal() -> None:
    rows = [
        row(),
        row(batch=8, latency_ms=40.25, interval_ms=30.0),
        row(model="llm", latency_ms=None, prefill_ms=20.0, prompt_tokens=64, source='a "quoted", source'),
        row(model="llm", latency_ms=None, decode_step_ms=1.25, batch=4),
    ]
    path = Path("out/p.csv")
    write_profiles(rows, path, comment="two\nlines")
    read = read_profiles([path]).rows
    assert path.read_text().startswith("# two\n# lines\nmodel,")
    plain = [(r.model, r.batch, r.latency_ms, r.interval_ms, r.prefill_ms, r.decode_step_ms, r.source) for r in read]
    assert plain == [
        (r.model, r.batch, r.latency_ms, r.interval_ms, r.prefill_ms, r.decode_step_ms, r.source) for r in rows
    ]
    assert [r.memory_bytes for r in read] == pytest.approx([r.memory_bytes for r in rows], rel=1e-5)


def test_appending_keeps_what_was_there_and_one_header() -> None:
    path = Path("p.csv")
    write_profiles([row()], path, append=True)
    write_profiles([row(batch=2, latency_ms=12.0)], path, append=True)
    assert path.read_text().count("model,device") == 1
    assert [r.batch for r in read_profiles([path]).rows] == [1, 2]


def test_slices_are_kept_apart_and_read_back_equal() -> None:
    rows = [row(), row(layers=4, latency_ms=2.0), row(layers=8, latency_ms=4.0)]
    write_profiles(rows, Path("p.csv"))
    write_profiles([row(layers=8, batch=2, latency_ms=6.0)], Path("p.csv"), append=True)
    found = read_profiles([Path("p.csv")])
    assert [r.layers for r in found.rows] == [None, 4, 8, 8]
    assert set(found.shapes("seg", "gpu")) == {(1, 1)}
    assert found.slices["seg", "gpu", 1][8].latency_ms.x == (1, 2)


def test_a_slice_of_several_stages_is_told() -> None:
    header = f"{HEADER},layers"
    assert errors(put("seg,gpu,1,2,1,1,10,,,,,1.5,2,measured,4\n", header)) == [
        "p.csv:2: layers: expected for pp 1 alone: a slice is one stage, got 2"
    ]


def test_several_files_make_one_catalogue() -> None:
    write_profiles([row()], Path("a.csv"))
    write_profiles([row(device_type="cpu")], Path("b.csv"))
    assert set(read_profiles([Path("a.csv"), Path("b.csv")]).profiles) == {("seg", "gpu"), ("seg", "cpu")}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "seg,gpu,1,1,1,1,,,,,,1,2,x\n",
            "latency_ms: expected exactly one of latency_ms, prefill_ms, decode_step_ms, got 0",
        ),
        (
            "seg,gpu,1,1,1,1,10,,,,5,1,2,x\n",
            "latency_ms: expected exactly one of latency_ms, prefill_ms, decode_step_ms, got 2",
        ),
        ("seg,gpu,1,1,1,1,,,20,,,1,2,x\n", "prompt_tokens: expected together with prefill_ms, got None"),
        ("seg,gpu,0,1,1,1,10,,,,,1,2,x\n", "tp: expected >= 1, got 0"),
        ("seg,gpu,1,1,1.5,1,10,,,,,1,2,x\n", "batch: expected a whole number, got 1.5"),
        ("seg,gpu,1,1,1,1,-10,,,,,1,2,x\n", "latency_ms: expected a finite number >= 0, got -10"),
        ("seg,gpu,1,1,1,1,0,,,,,1,2,x\n", "latency_ms: expected a finite number > 0, got 0.0"),
        ("seg,gpu,1,1,1,1,inf,,,,,1,2,x\n", "latency_ms: expected a finite number >= 0, got inf"),
        ("seg,gpu,1,1,1,1,10ms,,,,,1,2,x\n", "latency_ms: expected a number, got 10ms"),
        ("seg,gpu,1,1,1,1,10,,,,,0,2,x\n", "memory_bytes: expected a finite number > 0, got 0"),
        (",gpu,1,1,1,1,10,,,,,1,2,x\n", "model: expected a value, got nothing"),
        ("seg,gpu,1,1,1,1,10,,,,,1,2,\n", "source: expected a value, got nothing"),
        ("seg,gpu,1,1,1,1,10,,,,,1,2\n", "row: expected 14 cells, got 13"),
    ],
)
def test_a_bad_row_is_told_with_its_line(body: str, message: str) -> None:
    assert errors(put(body)) == [f"p.csv:2: {message}"]


def test_a_point_given_twice_is_told() -> None:
    assert errors(put(GOOD + GOOD.replace("10", "11"))) == [
        "p.csv:3: seg on gpu tp1 pp1 at 1: expected each point once, got twice"
    ]


def test_prefill_without_decode_is_told() -> None:
    assert errors(put("llm,gpu,1,1,1,1,,,20,64,,1,2,x\n")) == [
        "p.csv:2: profiles.llm on gpu tp1 pp1: expected prefill and decode rows together, got no decode_step_ms row"
    ]


def test_a_misspelt_column_is_told() -> None:
    assert errors(put(GOOD, HEADER.replace("memory_gib", "memory_gb"))) == [
        "p.csv:1: memory_gb: unknown column; did you mean memory_gib?",
        f"p.csv:1: header: expected the columns {HEADER}, got no memory_gib",
    ]


def test_a_missing_column_is_told() -> None:
    assert errors(put(GOOD, HEADER.replace(",load_s", ""))) == [
        f"p.csv:1: header: expected the columns {HEADER}, got no load_s"
    ]


def test_a_column_twice_is_told() -> None:
    assert "p.csv:1: tp: expected each column once" in errors(put(GOOD, f"{HEADER},tp"))


def test_an_empty_file_is_told() -> None:
    Path("p.csv").write_text("# nothing yet\n")
    assert errors(Path("p.csv")) == ["p.csv: expected profile rows, the file is empty"]


def test_a_file_that_is_not_there_is_told() -> None:
    assert errors(Path("gone.csv")) == ["gone.csv: expected a profile file that can be read: No such file or directory"]


def test_everything_wrong_in_all_files_is_told_at_once() -> None:
    Path("a.csv").write_text(f"{HEADER}\n{GOOD.replace('10', 'x')}")
    Path("b.csv").write_text(f"{HEADER}\n{GOOD.replace('1.5', 'y')}")
    assert errors(Path("a.csv"), Path("b.csv")) == [
        "a.csv:2: latency_ms: expected a number, got x",
        "b.csv:2: memory_gib: expected a number, got y",
    ]


def test_the_error_of_a_measurement_is_kept_and_may_be_unknown(tmp_path):
    path = tmp_path / "p.csv"
    write_profiles([row(error=0.031), row(batch=2)], path)
    assert [r.error for r in read_profiles([path]).rows] == [0.031, None]
    with pytest.raises(InputError, match=r"error: expected a finite number >= 0, got -0\.1"):
        row(error=-0.1)
