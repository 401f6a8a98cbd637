"""The planner's memory on disk."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.store import CycleRecord, Store
from epara_opt.control.transaction import nothing
from epara_opt.errors import StoreError
from epara_opt.plan import Plan
from epara_opt.problem import build_problem

TOPOLOGY, CATALOGUE = small_edge()
PLAN = FirstFitPlanner().plan(build_problem(TOPOLOGY, CATALOGUE), generation=1, time_limit_s=1.0)


def test_epochs_never_repeat_even_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path) as store:
        first = store.next_epoch(at=1.0)
        assert store.next_epoch(at=2.0, at_least=40) == 41
    with Store(path) as store:
        assert store.next_epoch(at=3.0) == 42 > first


def test_a_plan_is_intended_first_and_in_force_after(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        store.intend(PLAN, epoch=1, at=1.0)
        assert (store.in_force(), store.intended()) == (None, PLAN)
        store.put_in_force(PLAN, epoch=1, at=2.0)
        assert (store.in_force(), store.intended()) == (PLAN, None)
        later = replace(PLAN, generation=2)
        store.intend(later, epoch=1, at=3.0)
        store.mark_failed(2)
        assert (store.in_force(), store.intended()) == (PLAN, None)
        assert store.next_generation() == 3
        assert store.next_generation(at_least=9) == 10


def test_an_intended_plan_survives_a_crash(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        store.put_in_force(PLAN, epoch=1, at=1.0)
        store.intend(replace(PLAN, generation=2), epoch=1, at=2.0)
    with Store(tmp_path / "s.db") as store:
        assert store.in_force() == PLAN
        intended = store.intended()
        assert isinstance(intended, Plan)
        assert intended.generation == 2


def test_history_is_the_last_cycles_oldest_first(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        for i in range(5):
            record = CycleRecord(started_at=float(i), wall_s=0.1, reason="schedule", outcome="kept", generation=i)
            store.record_cycle(replace(record, down=("a",)), epoch=1)
        assert [(r.generation, r.down) for r in store.history(2)] == [(3, ("a",)), (4, ("a",))]


def test_events_observations_and_state_come_back(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        store.record_event("planned", {"generation": 3}, at=1.0)
        store.record_observation({"offered": 2.5}, at=2.0)
        store.put_state("x", "1")
        store.put_state("x", "2")
        assert store.events() == ((1.0, "planned", {"generation": 3}),)
        assert store.observations() == ((2.0, {"offered": 2.5}),)
        assert (store.get_state("x"), store.get_state("y")) == ("2", None)


def test_a_second_writer_is_refused_and_readers_are_welcome(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path) as writer:
        writer.put_in_force(PLAN, epoch=1, at=1.0)
        with pytest.raises(StoreError, match=r"s\.db: locked: another planner"):
            Store(path)
        with Store(path, writer=False) as reader:
            assert reader.in_force() == PLAN
    Store(path).close()


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"s\.db"):
        Store(path)


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="expected a planner's store, found another SQLite file"):
        Store(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="expected schema version 1, got 99"):
        Store(path)


def test_reading_what_is_not_there_is_an_error_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="found nothing"):
        Store(tmp_path / "s.db", writer=False)
    assert not (tmp_path / "s.db").exists()


def test_the_plan_under_which_nothing_runs_can_be_stored(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        store.put_in_force(nothing(PLAN), epoch=1, at=1.0)
        assert store.in_force() == nothing(PLAN)
