from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from executors.ledger import Ledger, LedgerError
from executors.processes import Identity


def test_intent_and_handle_are_there_after_the_process_died(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.intend("a.1", 5, b"assignment", "/j/a", "boot", 12.5)
    ledger.intend("b.1", 6, b"other", "/j/b", "boot", 13.5)
    ledger.handle("a.1", 5, Identity("boot", 99, 1234))
    ledger.stopping("a.1", 5, "timeout")
    again = Ledger(tmp_path / "l")  # the first one is not closed: its process was killed
    a, b = again.entries()
    assert (a.job, a.fence, a.assignment, a.folder) == ("a.1", 5, b"assignment", "/j/a")
    assert (a.process, a.started_at_s, a.stop_cause, a.reported) == (Identity("boot", 99, 1234), 12.5, "timeout", False)
    assert b.process == Identity("boot", 0, 0)
    again.reported("a.1", 5)
    again.forget("b.1", 6)
    assert [(e.job, e.reported) for e in again.entries()] == [("a.1", True)]
    again.close()
    ledger.close()


def test_the_index_acted_on_never_goes_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    assert ledger.index == 0
    ledger.acted_on(40)
    ledger.acted_on(30)
    assert ledger.index == 40
    ledger.close()


def test_the_index_begins_anew_in_another_cluster(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.belong_to("one")
    ledger.acted_on(40)
    ledger.belong_to("one")
    assert ledger.index == 40
    ledger.belong_to("two")
    assert ledger.index == 0
    ledger.close()


def test_an_incarnation_is_larger_than_the_last_one_also_when_the_clock_went_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    assert ledger.next_incarnation(1000) == 1000
    assert ledger.next_incarnation(10) == 1001
    ledger.close()


def test_a_ledger_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path / "l").close()
    db = sqlite3.connect(tmp_path / "l")
    db.execute("update meta set value = 99 where name = 'schema'")
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match="schema 99"):
        Ledger(tmp_path / "l")


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"this is no database, it is a text of some length" * 100)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "l")
