"""Voters compare digests, and the one that stands alone says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from ringrift_cluster.agreement import Agreement, stands_alone
from ringrift_cluster.feed.router import FeedRouter
from statemachine.commands import PauseCluster, encode_command
from statemachine.entries import encode_entry
from tests.support.feeding import Network, Voter

PAUSE = encode_command(PauseCluster(paused=True))
RESUME = encode_command(PauseCluster(paused=False))


@pytest.mark.parametrize(
    ("refused", "voters", "alone"),
    [(0, 3, False), (1, 3, False), (2, 3, True), (2, 5, False), (3, 5, True), (1, 2, False), (0, 1, False)],
)
def test_only_a_majority_of_refusals_convicts_a_voter(refused: int, voters: int, alone: bool) -> None:
    assert stands_alone(refused, voters) is alone


def compared(tmp_path: Path, *, strays: int = 0, behind: bool = False, down: tuple[str, ...] = ()) -> list[list[str]]:
    """Three voters with one log, `strays` of which then took another entry; what each said after a round."""

    async def story() -> list[list[str]]:
        voters = {name: Voter(name, tmp_path) for name in "abc"}
        leader = voters["a"]
        if not behind:
            leader.followers = [voters["b"], voters["c"]]
        leader.commit([PAUSE])
        for n, voter in enumerate(voters.values()):
            if not behind:
                voter.take(2, encode_entry(1, 50, [PAUSE if n < strays else RESUME]))
        network = Network()
        network.down.update(down)
        for name, voter in voters.items():
            network.add(name, FeedRouter(voter))
        said: list[list[str]] = []
        async with httpx.AsyncClient(transport=network) as http:
            for name, voter in voters.items():
                own: list[str] = []
                others = {other: f"http://{other}" for other in voters if other != name}
                await Agreement(voter, lambda others=others: others, http, own.append).compare()
                said.append(own)
        return said

    return asyncio.run(story())


def test_voters_of_one_history_have_nothing_to_say(tmp_path: Path) -> None:
    assert compared(tmp_path) == [[], [], []]


def test_the_one_voter_with_another_state_stops_and_the_others_go_on(tmp_path: Path) -> None:
    first, second, third = compared(tmp_path, strays=1)
    assert len(first) == 1
    assert "the state of a at entry 2 is not the one that b and c have" in first[0]
    assert second == third == []


def test_a_voter_that_is_merely_ahead_is_not_convicted(tmp_path: Path) -> None:
    assert compared(tmp_path, behind=True) == [[], [], []]


def test_nobody_is_convicted_by_voters_that_do_not_answer(tmp_path: Path) -> None:
    assert compared(tmp_path, strays=1, down=("c",)) == [[], [], []]
