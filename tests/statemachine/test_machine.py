"""The machine: total, in order, and the same on every replica."""

from __future__ import annotations

import msgspec
import pytest

from statemachine import machine as law
from statemachine.commands import AddWork, CancelWork, ChangeSetting, Command, Once
from statemachine.entries import encode_entry
from statemachine.errors import Code, Done, Halt, Refused, Rejected
from statemachine.machine import Machine
from statemachine.rows import WorkStatus
from tests.statemachine.invariants import check_indexes
from tests.support.law import Cluster, claimable, claimed, completed, given, item, node, rows_digest


def test_one_entry_answers_each_of_its_commands_in_order():
    cluster = Cluster()
    first, second, third = cluster.apply(claimable("w1"), CancelWork("w9"), claimed("c1"))
    assert first == Done({"work": "w1", "status": "pending"})
    assert isinstance(second, Rejected)
    assert isinstance(third, Done)


def test_a_command_sees_what_the_one_before_it_in_the_entry_did():
    cluster = Cluster()
    cluster.apply(claimable("w1"), claimable("w2", depends_on=("w1",)), claimed("c1", limit=9), CancelWork("w2"))
    assert (cluster.status("w1"), cluster.status("w2")) == ("claimed", "cancelled")


def test_a_refused_command_in_the_middle_of_an_entry_leaves_its_neighbours_alone():
    alone, mixed = Cluster(), Cluster()
    alone.apply(claimable("w1"), claimable("w2"))
    mixed.apply(claimable("w1"), claimable("w1", priority=9), claimable("w2"))
    assert rows_digest(alone.state) == rows_digest(mixed.state)


def test_the_log_never_goes_backwards():
    cluster = given()
    entry = encode_entry(1, 0, [])
    for index in (cluster.index, cluster.index - 1, 0):
        with pytest.raises(Halt, match="backwards"):
            cluster.machine.apply(index, 1, entry)


def test_the_index_may_skip_entries_that_are_not_the_machines():
    cluster = given()
    cluster.machine.apply(cluster.index + 10, 1, encode_entry(1, 0, []))
    assert cluster.machine.index == cluster.index + 10


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (b"\xc1", "cannot be read"),
        (b"", "cannot be read"),
        (msgspec.msgpack.encode([2, 1, 0, []]), "format 2"),
        (msgspec.msgpack.encode([1, 1, 0, [{"kind": "moon.land"}]]), "moon.land"),
        (msgspec.msgpack.encode([1, 1, 0, [{"kind": "work.add", "work": "", "work_type": "a"}]]), "work"),
        (msgspec.msgpack.encode([1, 1, 0, [{"kind": "work.cancel", "work": ""}]]), "work"),
    ],
)
def test_an_entry_of_another_release_stops_the_node_rather_than_diverge(entry, words):
    cluster = given(item("w1"))
    before, chain = rows_digest(cluster.state), cluster.machine.chain
    with pytest.raises(Halt, match="upgrade") as halted:
        cluster.machine.apply(cluster.index + 1, 1, entry)
    assert words in str(halted.value)
    assert (rows_digest(cluster.state), cluster.machine.chain) == (before, chain)


def test_a_transition_that_fails_unforeseen_is_dropped_whole_and_the_log_goes_on(monkeypatch):
    def torn(txn, cmd):
        txn.work.delete(cmd.work)
        return {}["no such key"]

    cluster = given(item("w1"), item("w2"))
    monkeypatch.setitem(law.HANDLERS, CancelWork, torn)
    detail = cluster.refuses(CancelWork("w1"), Code.INTERNAL, "CancelWork", "KeyError")
    assert "nothing was changed" in detail
    assert cluster.machine.internal_errors == 1
    cluster.refuses(Once("r1", 10_000, CancelWork("w1")), Code.INTERNAL)
    monkeypatch.undo()
    assert cluster.do(CancelWork("w1")) == "cancelled"


def test_a_command_that_is_refused_late_leaves_no_row_no_event_and_no_number_behind(monkeypatch):
    def late(txn, cmd):
        law.HANDLERS[AddWork](txn, item("w3"))
        txn.work.change("w1", reason="once")
        txn.work.change("w1", reason="twice")
        txn.work.delete("w2")
        raise Refused(Code.CONFLICT, "too late")

    cluster = given(item("w1"), item("w2"))
    before, events = rows_digest(cluster.state), list(cluster.state.events)
    monkeypatch.setitem(law.HANDLERS, CancelWork, late)
    cluster.refuses(CancelWork("w1"), Code.CONFLICT, "too late")
    monkeypatch.undo()
    assert (rows_digest(cluster.state), list(cluster.state.events)) == (before, events)
    check_indexes(cluster.state)
    assert cluster.do(item("w3")) == {"work": "w3", "status": "pending"}
    assert cluster.state.work["w3"].seq == cluster.state.work["w2"].seq + 1


@pytest.mark.parametrize("error", [MemoryError, OSError])
def test_a_machine_that_runs_out_of_resources_is_not_an_answer_of_the_law(monkeypatch, error):
    def exhausted(txn, cmd):
        raise error

    cluster = given(item("w1"))
    monkeypatch.setitem(law.HANDLERS, CancelWork, exhausted)
    with pytest.raises(error):
        cluster.apply(CancelWork("w1"))


def test_a_row_that_cannot_be_moved_does_not_hold_up_the_clock_for_all_the_others(monkeypatch):
    def picky(txn, row):
        if row.work == "poison":
            raise ValueError("cannot")
        real(txn, row)

    real = law.ON_DUE["work"]
    cluster = given(item("poison", ttl_ms=1_000), item("w1", ttl_ms=2_000))
    monkeypatch.setitem(law.ON_DUE, "work", picky)
    cluster.after(4_000)
    assert (cluster.status("poison"), cluster.status("w1")) == ("pending", "expired")
    assert cluster.machine.internal_errors == 2
    monkeypatch.undo()
    cluster.after(1_000)
    assert cluster.status("poison") == "expired"


def test_a_thousand_rows_move_at_once_and_the_rest_with_the_next_step(monkeypatch):
    monkeypatch.setattr(law, "MAX_DUE", 10)
    cluster = given(*(item(f"w{n}", ttl_ms=500) for n in range(25)))
    expired = []
    for _ in range(4):
        cluster.after(1_000)
        expired.append(cluster.state.index.work_by_status[WorkStatus.EXPIRED])
    assert expired == [10, 20, 25, 25]


def test_two_machines_with_one_log_have_one_chain_and_another_log_another():
    cluster = given(node("a"), item("w1"), claimed("c1"), completed("w1"))
    twin = Machine()
    for index, term, entry in cluster.log:
        twin.apply(index, term, entry)
    assert twin.chain == cluster.machine.chain
    assert (twin.index, twin.term) == (cluster.index, cluster.term)
    other = Machine()
    for index, term, entry in cluster.log[:-1]:
        other.apply(index, term, entry)
    assert other.chain != twin.chain


@pytest.mark.parametrize("other", [CancelWork("w1"), ChangeSetting("nothing", "{}")], ids=["done", "another code"])
def test_the_chain_covers_what_became_of_a_command_that_changed_nothing(other: Command):
    left, right = given(item("w1"), CancelWork("w1")), given(item("w1"), CancelWork("w1"))
    left.apply(CancelWork("w8"))
    right.apply(other)
    assert rows_digest(left.state) == rows_digest(right.state)
    assert left.machine.chain != right.machine.chain


def test_a_refusal_in_other_words_is_the_same_refusal():
    left, right = given(item("w1")), given(item("w1"))
    left.when(CancelWork("w8"))
    right.when(CancelWork("w9"))
    assert left.last != right.last
    assert left.machine.chain == right.machine.chain
