"""Checkpoints: an unfinished item keeps one file from attempt to attempt, until nobody needs it."""

from __future__ import annotations

from collections.abc import Callable

from statemachine import queries
from statemachine.commands import CancelWork, Command, RegisterArtifact, SaveCheckpoint
from statemachine.errors import Code
from statemachine.settings import Retention
from statemachine.values import Output
from tests.support.law import (
    Cluster,
    bound,
    completed,
    digest_of,
    failed,
    given,
    item,
    node,
    setting,
    started,
    template,
)

ONE, TWO = digest_of("one"), digest_of("two")


def saved(work: str, digest: str = ONE) -> Callable[[Cluster], Command]:
    def build(cluster: Cluster) -> Command:
        job = cluster.job(work)
        return SaveCheckpoint(job.job, job.fence, digest, 500)

    return build


def running(*more: object) -> Cluster:
    steps = (template(), node("a"), node("b"), item("w"), bound("w", "a"), started("w"), *more)
    return given(*steps)  # type: ignore[arg-type]


def test_the_next_attempt_on_another_node_is_given_the_checkpoint_and_who_has_it() -> None:
    cluster = running(saved("w"), failed("w", "preempted"), bound("w", "b"))
    (assignment,) = queries.assignments(cluster.state, "b")
    assert assignment.checkpoint is not None
    assert (assignment.checkpoint.digest, assignment.checkpoint.size_bytes) == (ONE, 500)
    assert [peer for peer, _ in assignment.checkpoint.holders] == ["a"]
    assert cluster.state.artifacts[ONE].kind == "checkpoint"


def test_a_first_attempt_has_none() -> None:
    (assignment,) = queries.assignments(running().state, "a")
    assert assignment.checkpoint is None


def test_a_newer_checkpoint_takes_the_place_of_the_one_before() -> None:
    cluster = running(saved("w"), failed("w", "preempted"), bound("w", "b"), started("w"), saved("w", TWO))
    assert list(cluster.state.artifacts) == [TWO]
    assert cluster.state.artifacts[TWO].holders == ("b",)
    cluster.when(failed("w", "preempted"), bound("w", "a"))
    (assignment,) = queries.assignments(cluster.state, "a")
    assert assignment.checkpoint is not None
    assert assignment.checkpoint.digest == TWO


def test_the_same_checkpoint_again_changes_nothing() -> None:
    cluster = running(saved("w"))
    assert cluster.do(saved("w")) is False


def test_a_completed_item_needs_no_checkpoint_and_what_it_publishes_is_left_alone() -> None:
    mine = Output("net.ckpt", TWO, 7, "checkpoint")
    cluster = running(saved("w"), completed("w", outputs=(mine,)))
    assert list(cluster.state.artifacts) == [TWO]
    cluster.do(setting("retention", Retention(work_ms=1_000)))
    cluster.after(5_000)
    assert "w" not in cluster.state.work
    assert list(cluster.state.artifacts) == [TWO]


def test_a_checkpoint_goes_with_the_row_of_its_item() -> None:
    cluster = running(saved("w"), failed("w", "preempted"), CancelWork("w", "a test"))
    assert list(cluster.state.artifacts) == [ONE], "a retry would go on from it"
    cluster.do(setting("retention", Retention(work_ms=1_000)))
    cluster.after(5_000)
    assert not cluster.state.artifacts


def test_a_checkpoint_that_was_forgotten_by_an_operator_is_missed_by_nobody() -> None:
    cluster = running(saved("w"))
    cluster.machine.state.artifacts.pop(ONE)
    assert cluster.do(completed("w"))["published"]


def test_a_checkpoint_under_a_fence_that_is_over_is_refused() -> None:
    cluster = running(failed("w", "preempted"), bound("w", "b"))
    cluster.refuses(SaveCheckpoint("w.1", 1, ONE, 5), Code.ILLEGAL_TRANSITION, "too late")
    cluster.refuses(SaveCheckpoint("w.2", 1, ONE, 5), Code.STALE_FENCE)


def test_an_item_that_was_cancelled_takes_no_checkpoint() -> None:
    cluster = running(CancelWork("w", "a test"))
    assert cluster.do(SaveCheckpoint("w.1", 1, ONE, 5)) is False
    assert not cluster.state.artifacts


def test_a_job_that_completes_after_its_item_was_cancelled_leaves_no_checkpoint_behind() -> None:
    cluster = running(saved("w"), CancelWork("w", "a test"))
    assert cluster.do(completed("w"))["published"] is False
    assert not cluster.state.artifacts


def test_a_file_of_another_kind_is_no_checkpoint() -> None:
    cluster = running(RegisterArtifact(ONE, 500, "games", "hex8_2p", "a"))
    cluster.refuses(saved("w"), Code.CONFLICT, "games")
