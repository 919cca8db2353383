"""Events: a ring of what happened, numbered without a gap."""

from __future__ import annotations

from statemachine.commands import CancelWork
from statemachine.queries import events_after
from statemachine.settings import Limits
from tests.support.law import claimable, claimed, given, setting


def numbers(cluster) -> list[int]:
    return [e.seq for e in cluster.state.events.values()]


def test_an_event_says_when_where_and_what():
    cluster = given(claimable("w1", config="hex8_3p"))
    (event,) = cluster.state.events.values()
    assert (event.seq, event.index, event.at_ms, event.kind, event.key) == (1, cluster.index, 1_000, "WorkQueued", "w1")
    assert event.detail == {"type": "selfplay", "config": "hex8_3p"}


def test_what_says_nothing_is_left_out():
    cluster = given(claimable("w1", config=""))
    assert cluster.state.events["1"].detail == {"type": "selfplay"}


def test_a_refused_command_leaves_no_event():
    cluster = given(claimable("w1"))
    cluster.apply(CancelWork("w9"))
    assert numbers(cluster) == [1]


def test_only_the_newest_events_are_kept():
    cluster = given(setting("limits", Limits(events=3)), *(claimable(f"w{n}") for n in range(5)))
    assert numbers(cluster) == [4, 5, 6]
    assert [e.key for e in events_after(cluster.state, 0)] == ["w2", "w3", "w4"]


def test_a_smaller_ring_drops_what_is_too_many_at_the_next_event():
    cluster = given(*(claimable(f"w{n}") for n in range(9)), setting("limits", Limits(events=2)))
    cluster.do(claimable("last"))
    assert numbers(cluster) == [10, 11]


def test_a_ring_smaller_than_one_commands_events_keeps_the_newest():
    cluster = given(setting("limits", Limits(events=1)), claimable("w1"), claimable("w2"), claimed("c1", limit=2))
    assert [e.key for e in cluster.state.events.values()] == ["w2"]


def test_a_reader_resumes_after_the_last_number_it_saw():
    cluster = given(*(claimable(f"w{n}") for n in range(6)))
    assert [e.seq for e in events_after(cluster.state, 2)] == [3, 4, 5, 6]
    assert [e.seq for e in events_after(cluster.state, 2, limit=2)] == [3, 4]
    assert events_after(cluster.state, 6) == []
    assert events_after(cluster.state, 99) == []
