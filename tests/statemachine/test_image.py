"""The image: what a snapshot is written from while commands go on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as everything
from hypothesis import strategies as some

from statemachine import image, snapshot
from statemachine import settings as st
from statemachine.commands import CancelWork, ChangeSetting
from statemachine.machine import Machine
from statemachine.rows import Row
from statemachine.state import State
from tests.statemachine.invariants import check_image
from tests.support.histories import history
from tests.support.law import Cluster, given, item


@pytest.fixture(autouse=True)
def _every_table_is_long(monkeypatch):
    monkeypatch.setattr(image, "LONG", 1)


LOG = history(seed=7, entries=150)


def listed(tables: object) -> dict[str, list[Row]]:
    assert isinstance(tables, dict)
    return {name: list(rows) for name, rows in tables.items()}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@everything(some.lists(some.tuples(some.integers(0, 40), some.integers(0, 40)), max_size=6))
def test_whoever_holds_it_sees_one_state_whatever_is_applied_meanwhile(turns: list[tuple[int, int]]):
    machine, log = Machine(), iter(LOG)

    def go_on(entries: int) -> None:
        for _, entry in zip(range(entries), log, strict=False):
            machine.apply(*entry)

    for before, meanwhile in turns:
        go_on(before)
        there = {name: list(rows.values()) for name, rows in machine.state.tables.items()}
        frozen = snapshot.freeze(machine)
        assert frozen.image is machine.state.image
        go_on(meanwhile)
        assert listed(frozen.tables) == there
        frozen.release()
        machine.state.image.follow()
        check_image(machine.state)


def test_a_view_beside_another_one_is_of_the_present_all_the_same():
    cluster = given(item("w1"))
    first = snapshot.freeze(cluster.machine)
    cluster.do(item("w2"))
    second = snapshot.freeze(cluster.machine)
    cluster.do(item("w3"))
    assert [len(view.tables["work"]) for view in (first, second)] == [1, 2]
    second.release()
    cluster.do(item("w4"))
    assert len(first.tables["work"]) == 1
    first.release()
    cluster.do(item("w5"))
    check_image(cluster.state)


def test_a_row_that_went_and_came_back_is_the_youngest_of_its_table():
    def again(cluster: Cluster) -> list[str]:
        cluster.do(CancelWork("w1"))
        cluster.after(5_000)
        cluster.do(item("w1"))
        return list(cluster.state.work)

    retention = ChangeSetting("retention", st.encode(st.Retention(work_ms=1_000)))
    for held in (False, True):
        cluster = given(retention, item("w1"), item("w2"))
        frozen = snapshot.freeze(cluster.machine)
        if not held:
            frozen.release()
        assert again(cluster) == ["w2", "w1"]
        frozen.release()
        cluster.do(item("w3"))
        check_image(cluster.state)


def test_after_a_long_reading_it_catches_up_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(image, "STEP", 3)
    cluster = given(item("w0"))
    frozen = snapshot.freeze(cluster.machine)
    for n in range(1, 9):
        cluster.do(item(f"w{n}"))
    frozen.release()
    cluster.do(item("w9"))
    assert list(cluster.state.image.tables["work"]) == ["w0", "w1", "w2", "w3"]
    assert len(snapshot.freeze(cluster.machine).tables["work"]) == 10


def test_rows_that_were_loaded_are_in_it():
    cluster = given(item("w1"), item("w2"))
    fresh = State()
    fresh.load({name: rows.values() for name, rows in cluster.state.tables.items()})
    check_image(fresh)
