"""A drain that is watched: what is shown, and when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest
import typer
from msgspec.structs import replace

from ringrift_cluster.api import examples
from ringrift_cluster.api.peers import PeerView
from ringrift_cluster.cli.drains import OVERDUE_S, Watched, seconds, watch
from ringrift_cluster.client import Client, Unavailable
from ringrift_cluster.client.errors import Problem


class Script:
    """A cluster that shows one look after the other; None is a moment without a leader."""

    def __init__(self, looks: Iterable[tuple[str, ...] | None], draining: bool = True) -> None:
        self._looks = iter(looks)
        self._draining = draining
        self.now_s = 0.0

    def peer(self, node: str) -> PeerView:
        jobs = next(self._looks)
        if jobs is None:
            raise Unavailable(Problem("no_leader", "nobody leads", 503))
        row = replace(examples.PEER, peer=node, draining=self._draining)
        return PeerView(row, [replace(examples.JOB, job=job) for job in jobs])

    def watched(self, deadline_s: float = 0.0) -> list[Watched]:
        def sleep(span_s: float) -> None:
            self.now_s += span_s * 1000

        client: Any = self
        return list(watch(cast("Client", client), "gpu-1", deadline_s, lambda: self.now_s, sleep))


def test_each_change_is_shown_until_the_node_is_empty() -> None:
    seen = Script([("a", "b"), ("a", "b"), None, ("a",), ()]).watched()
    assert [(w.ended, w.running, w.problem) for w in seen] == [((), 2, ""), (("b",), 1, ""), (("a",), 0, "")]


def test_an_empty_node_is_drained_at_once() -> None:
    assert Script([()]).watched() == [Watched("gpu-1", (), 0)]


def test_a_node_that_somebody_puts_back_is_no_longer_watched() -> None:
    (last,) = Script([("a",)], draining=False).watched()
    assert "put back" in last.problem


def test_jobs_that_run_long_after_the_deadline_are_a_problem() -> None:
    looks: list[tuple[str, ...]] = [("a",)] * 10
    last = Script(looks).watched(deadline_s=OVERDUE_S)[-1]
    assert "long after the deadline" in last.problem


@pytest.mark.parametrize(
    ("text", "found"), [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400)]
)
def test_a_deadline_is_said_as_people_say_it(text: str, found: float) -> None:
    assert seconds(text) == found


def test_a_deadline_that_is_no_span_is_refused() -> None:
    with pytest.raises(typer.Exit):
        seconds("soon")
