from __future__ import annotations

import pytest

from executors.reconcile import OVERDUE_S, Action, Held, Kind, Phase, Room, Wanted, plan

NOW = 1000.0


def wanted(**more: object) -> Wanted:
    return Wanted("j", 7, "w", **more)  # type: ignore[arg-type]


def held(phase: Phase, **more: object) -> Held:
    return Held("j", 7, "w", phase, **more)  # type: ignore[arg-type]


def waits(**more: object) -> Held:
    at = {"due_s": NOW, "lease_ends_s": NOW + 60, "started_at_s": NOW - 9, "gpus": ("g",)}
    return held(Phase.WAITING, **(at | more))


STOP = wanted(run=False, reason="drained")
TABLE = [
    ("a grant is started", [wanted()], [], Room(), Kind.START),
    ("a start waits for a free process", [wanted()], [], Room(processes=0), None),
    ("a start waits for the spawn rate", [wanted()], [], Room(starts=0), None),
    ("a start waits while the lease is not fresh", [wanted()], [], Room(wait="no heartbeat"), None),
    ("a node that refuses work hands it back", [wanted()], [], Room(refusal="low disk"), Kind.RELEASE),
    ("a start waits for the memory of its GPU", [wanted(gpus=("g",))], [], Room(unsettled_gpus=frozenset("g")), None),
    (
        "a process that the cluster believes in and that is not here is lost",
        [wanted(started=True)],
        [],
        Room(),
        Kind.LOST,
    ),
    ("what never started is handed back on stop", [STOP], [], Room(), Kind.RELEASE),
    ("a stop of something running elsewhere in time is lost", [wanted(run=False, started=True)], [], Room(), Kind.LOST),
    ("preparing goes on", [wanted()], [held(Phase.PREPARING)], Room(), None),
    ("preparing is called off on stop", [STOP], [held(Phase.PREPARING)], Room(), Kind.RELEASE),
    ("preparing is called off once", [STOP], [held(Phase.PREPARING, told_at_s=NOW - 1)], Room(), None),
    ("running goes on", [wanted(started=True)], [held(Phase.RUNNING)], Room(), None),
    ("running goes on although the report is not applied yet", [wanted()], [held(Phase.RUNNING)], Room(), None),
    ("running is stopped on stop", [STOP], [held(Phase.RUNNING)], Room(), Kind.STOP),
    (
        "running within its limit goes on",
        [wanted(timeout_s=10)],
        [held(Phase.RUNNING, started_at_s=NOW - 9)],
        Room(),
        None,
    ),
    (
        "running over its limit is stopped",
        [wanted(timeout_s=10)],
        [held(Phase.RUNNING, started_at_s=NOW - 10)],
        Room(),
        Kind.STOP,
    ),
    ("stopping has its grace", [STOP], [held(Phase.STOPPING, stop_by_s=NOW)], Room(), None),
    (
        "stopping past its grace is killed",
        [STOP],
        [held(Phase.STOPPING, stop_by_s=NOW - OVERDUE_S - 1)],
        Room(),
        Kind.KILL,
    ),
    (
        "a kill is not repeated at once",
        [STOP],
        [held(Phase.STOPPING, stop_by_s=NOW - 60, told_at_s=NOW - 1)],
        Room(),
        None,
    ),
    (
        "a kill that did nothing is repeated",
        [STOP],
        [held(Phase.STOPPING, stop_by_s=NOW - 60, told_at_s=NOW - 6)],
        Room(),
        Kind.KILL,
    ),
    ("an end is reported in peace", [wanted(started=True)], [held(Phase.ENDED)], Room(), None),
    ("a stop comes too late for an end", [STOP], [held(Phase.ENDED)], Room(), None),
    ("a report is not repeated while the view lags", [wanted(started=True)], [held(Phase.REPORTED)], Room(), None),
    ("what waits is started again when it is time", [wanted(started=True)], [waits()], Room(), Kind.RESTART),
    ("what waits is left in peace before", [wanted(started=True)], [waits(due_s=NOW + 1)], Room(), None),
    ("what waits is told to stop", [STOP], [waits(due_s=NOW + 9)], Room(), Kind.GIVE_UP),
    (
        "what waits when its time is over",
        [wanted(timeout_s=10.0)],
        [waits(started_at_s=NOW - 10)],
        Room(),
        Kind.GIVE_UP,
    ),
    ("what waits when its lease is over", [wanted()], [waits(lease_ends_s=NOW)], Room(), Kind.GIVE_UP),
    ("what waits on a node that refuses work", [wanted()], [waits()], Room(refusal="low disk"), Kind.GIVE_UP),
    ("what waits on a node that is drained", [wanted()], [waits()], Room(elsewhere="drained"), Kind.GIVE_UP),
    ("what waits and whose GPU is drained", [wanted()], [waits()], Room(closed_gpus=frozenset("g")), Kind.GIVE_UP),
    ("what waits for the memory of its GPU", [wanted()], [waits()], Room(unsettled_gpus=frozenset("g")), None),
    ("what waits while the lease is not fresh", [wanted()], [waits()], Room(wait="no heartbeat"), None),
    ("what waits for the spawn rate", [wanted()], [waits()], Room(starts=0), None),
    ("what waits has its process already", [wanted()], [waits()], Room(processes=1, fresh=0), Kind.RESTART),
    ("what waits and is not ours is forgotten", [], [waits()], Room(), Kind.FORGET),
    ("what waits and is not ours is forgotten once", [], [waits(told_at_s=NOW - 1)], Room(), None),
    ("what runs and is not ours is killed", [], [held(Phase.RUNNING)], Room(), Kind.KILL),
    ("what stops and is not ours is killed", [], [held(Phase.STOPPING, stop_by_s=NOW + 50)], Room(), Kind.KILL),
    ("what prepares and is not ours is forgotten", [], [held(Phase.PREPARING)], Room(), Kind.FORGET),
    ("what ended and is not ours is forgotten", [], [held(Phase.ENDED)], Room(), Kind.FORGET),
    ("what is reported and not ours needs nothing", [], [held(Phase.REPORTED)], Room(), None),
]


@pytest.mark.parametrize(
    ("desired", "actual", "room", "kind"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_table_of_single_cases(desired: list[Wanted], actual: list[Held], room: Room, kind: Kind | None) -> None:
    actions = plan(desired, actual, NOW, room)
    assert [a.kind for a in actions] == ([kind] if kind else [])
    assert all(a.reason and (a.job, a.fence) == ("j", 7) for a in actions)


def test_a_new_fence_ends_the_old_attempt_and_the_new_one_waits_for_its_end() -> None:
    new = Wanted("w.2", 9, "w")
    old = Held("w.1", 7, "w", Phase.RUNNING)
    assert plan([new], [old], NOW, Room()) == [
        Action(Kind.KILL, "w.1", 7, "it is no longer assigned to this node under this fence")
    ]
    (start,) = plan([new], [Held("w.1", 7, "w", Phase.ENDED, told_at_s=NOW)], NOW, Room())
    assert (start.kind, start.job) == (Kind.START, "w.2")


def test_a_gpu_of_an_attempt_that_is_being_ended_is_not_granted_again_yet() -> None:
    new = Wanted("b.1", 9, "b", gpus=("g0",))
    stopping = Held("a.1", 7, "a", Phase.STOPPING, stop_by_s=NOW + 9, gpus=("g0",))
    assert plan([new, Wanted("a.1", 7, "a", run=False)], [stopping], NOW, Room()) == []


def test_a_gpu_shared_by_decision_of_the_cluster_is_no_obstacle() -> None:
    new = Wanted("b.1", 9, "b", gpus=("g0",))
    running = Held("a.1", 7, "a", Phase.RUNNING, gpus=("g0",))
    assert [a.kind for a in plan([new, Wanted("a.1", 7, "a", started=True)], [running], NOW, Room())] == [Kind.START]


def test_a_node_begins_no_more_than_it_may_whatever_waits_there() -> None:
    waiting = Held("a.1", 7, "a", Phase.WAITING, due_s=NOW, lease_ends_s=NOW + 60)
    desired = [Wanted("a.1", 7, "a", started=True), *(Wanted(f"w{i}.1", 20 + i, f"w{i}") for i in range(5))]
    assert [a.job for a in plan(desired, [waiting], NOW, Room(starts=3))] == ["a.1", "w0.1", "w1.1"]
    assert [a.job for a in plan(desired, [waiting], NOW, Room(processes=3))] == ["a.1", "w0.1", "w1.1"]
    assert [a.job for a in plan(desired, [waiting], NOW, Room(fresh=1))] == ["a.1", "w0.1"]


def test_no_attempt_of_an_item_begins_while_another_one_waits() -> None:
    waiting = Held("w.1", 7, "w", Phase.WAITING, due_s=NOW, lease_ends_s=NOW + 60)
    assert [a.kind for a in plan([Wanted("w.2", 9, "w")], [waiting], NOW, Room())] == [Kind.FORGET]


def test_starts_come_in_the_order_of_their_grants_after_all_endings_and_within_the_caps() -> None:
    desired = [Wanted(f"w{i}.1", 20 - i, f"w{i}") for i in range(10)] + [Wanted("s.1", 1, "s", run=False)]
    actual = [Held("x.1", 2, "x", Phase.RUNNING), Held("s.1", 1, "s", Phase.RUNNING)]
    actions = plan(desired, actual, NOW, Room(processes=5, starts=9))
    assert [a.kind for a in actions] == [Kind.KILL, Kind.STOP, Kind.START, Kind.START, Kind.START]
    assert [a.job for a in actions[2:]] == ["w9.1", "w8.1", "w7.1"]


def test_a_plan_that_was_performed_leaves_nothing_to_do() -> None:
    desired = [Wanted(f"w{i}.1", i, f"w{i}", run=i % 2 == 0) for i in range(20)]
    first = plan(desired, [], NOW, Room())
    assert len(first) == 20
    after = [Held(a.job, a.fence, a.job[:-2], Phase.PREPARING if a.kind is Kind.START else Phase.ENDED) for a in first]
    assert plan(desired, after, NOW, Room()) == []
