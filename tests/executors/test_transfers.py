"""Fetching and sending between stores, through the real endpoints."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest

from executors.blobs import Blobs
from executors.book import CAP_S, Book
from executors.gate import SETTLE_S, WINDOW_S, Gate
from executors.pace import Pace
from executors.transfers import HoldersGone, Patience, Transfers
from statemachine.queries import ResolvedInput
from statemachine.settings import Artifacts
from tests.executors.holders import DATA, DIGEST, Holder

QUICK = Patience(unreachable_s=0.5, busy_s=20.0, pause_s=0.01)
X = "ab" * 32


class Node(Transfers):
    """Transfers that ask holders in the order of their names."""

    def _order(self, digest: str, holders: Any) -> list[tuple[str, str]]:
        return sorted(super()._order(digest, holders))


def fetch(transfers: Transfers, *addresses: str, size: int = len(DATA)) -> Path:
    item = ResolvedInput("net", DIGEST, size, tuple((f"n{i}", address) for i, address in enumerate(addresses)))

    async def again() -> ResolvedInput:
        return item

    async def go() -> Path:
        async with httpx.AsyncClient(timeout=5.0) as client:
            transfers.http = client
            return await transfers.fetch(item, again)

    return asyncio.run(go())


def node(root: Path, **more: Any) -> Node:
    return Node(Blobs(root), httpx.AsyncClient(), "me", patience=QUICK, **more)


# --- whom to believe --------------------------------------------------------------------------------------------


def test_a_holder_that_serves_wrong_bytes_is_left_and_reported(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    one, wrong, good = node(tmp_path), holder(DATA[:-1] + b"?"), holder()
    assert fetch(one, wrong.address, good.address).read_bytes() == DATA
    assert (one.wrong, one.arrived, one.news.is_set()) == ({(DIGEST, "n0")}, {DIGEST}, True)


def test_the_holder_that_completes_anothers_wrong_bytes_is_not_blamed(
    tmp_path: Path, holder: Callable[..., Holder]
) -> None:
    one, torn, good = node(tmp_path), holder(bytes(len(DATA)), break_after=120_000), holder()
    assert fetch(one, torn.address, good.address).read_bytes() == DATA
    assert one.wrong == set()
    assert good.ranges[-1] is None, "the whole file had to come from one that is right"


def test_what_an_earlier_process_left_unfinished_blames_nobody(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    one, good = node(tmp_path), holder()
    (tmp_path / "partial" / f"fetch-{DIGEST}").write_bytes(bytes(1000))
    assert fetch(one, good.address).read_bytes() == DATA
    assert (one.wrong, good.ranges) == (set(), ["bytes=1000-", None])


def test_a_holder_that_was_caught_is_not_asked_again(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    one, wrong = node(tmp_path), holder(DATA[:-1] + b"?")
    with pytest.raises(HoldersGone, match="delivered other bytes a while ago"):
        fetch(one, wrong.address)
    assert len(wrong.ranges) == 1


def test_two_that_fetch_one_file_into_one_store_ask_for_it_once(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    """The agents of a gateway's hosts share its store."""
    blobs, source = Blobs(tmp_path), holder()

    async def go() -> list[Path]:
        async with httpx.AsyncClient(timeout=5.0) as client:
            agents = [Transfers(blobs, client, name) for name in ("gateway", "host")]
            return await asyncio.gather(
                *(one.round(DIGEST, len(DATA), [("n0", source.address)]) for one in agents),
            )

    assert [path.read_bytes() for path in asyncio.run(go())] == [DATA, DATA]
    assert source.ranges == [None]


# --- when to come back ------------------------------------------------------------------------------------------


def test_a_node_that_does_not_answer_is_left_alone_longer_each_time_and_never_for_ever() -> None:
    now = [0.0]
    book = Book(lambda: now[0], random.Random(1))
    waits = []
    for _ in range(12):
        book.failed("a")
        waits.append(book.wait_s("a"))
        now[0] += waits[-1]
        assert book.wait_s("a") == 0.0
    assert waits[0] <= 1.0 < waits[3] < waits[6] <= CAP_S
    assert max(waits) <= CAP_S
    book.failed("a")
    book.answered("a")
    assert book.wait_s("a") == 0.0
    book.failed("a")
    book.clear()
    assert book.wait_s("a") == 0.0


def test_a_file_of_nodes_that_cannot_be_reached_is_tried_until_patience_ends(
    tmp_path: Path, holder: Callable[..., Holder]
) -> None:
    gone = holder()
    address = gone.address
    gone.close()
    with pytest.raises(HoldersGone) as error:
        fetch(node(tmp_path), address)
    assert error.value.unreachable
    # Which of the two the last round met depends on how long the node is left alone, which is drawn.
    assert re.search("left alone|attempts failed", str(error.value))


def test_the_library_reads_as_much_at_once_as_it_is_told() -> None:
    """Its name for that is no promise of it; when it changes, a fetch takes twice the CPU time and nothing else."""
    methods = [one for one in vars(httpcore.AsyncHTTP11Connection).values() if callable(one)]
    assert any("READ_NUM_BYTES" in one.__code__.co_names for one in methods)


def test_the_bytes_of_a_node_keep_to_its_pace() -> None:
    now = [100.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    async def go() -> None:
        pace = Pace(1_000.0, lambda: now[0], sleep)
        for _ in range(10):
            await pace.take(500)
        assert 104.9 <= now[0] <= 105.1
        free = Pace(0.0, lambda: now[0], sleep)
        await free.take(10**12)
        assert now[0] <= 105.1

    asyncio.run(go())


def test_a_fetch_keeps_to_the_pace_of_its_node(tmp_path: Path, holder: Callable[..., Holder]) -> None:
    data = os.urandom(5_000_000)
    digest = hashlib.sha256(data).hexdigest()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    one = node(tmp_path, pace=Pace(1_000_000.0, lambda: 0.0, sleep))
    source = holder(data)

    async def go() -> None:
        async with httpx.AsyncClient() as client:
            one.http = client
            await one.round(digest, len(data), [("n0", source.address)])

    asyncio.run(go())
    assert slept[-1] >= 4.0
    assert one.fetched_bytes == len(data)


# --- how much one holder sends ----------------------------------------------------------------------------------


def test_a_holder_sends_its_share_while_others_hold_the_file_or_are_about_to() -> None:
    now = [0.0]
    gate, rules = Gate(lambda: now[0]), Artifacts(copies_per_holder=2, uploads_per_holder=3)

    def sent() -> None:
        with gate.transfer(X) as one:
            one.sent_bytes = 100

    assert gate.admits(X, 100, 0, rules, spread=True)
    sent()
    assert gate.admits(X, 100, 1, rules, spread=True)
    sent()
    assert not gate.admits(X, 100, 1, rules, spread=True)
    assert not gate.admits(X, 100, 0, rules, spread=True), "those that have just got it are about to hold it"
    assert gate.admits(X, 100, 1, rules, spread=False), "who cannot go elsewhere gets it"
    assert gate.admits("cd" * 32, 100, 5, rules, spread=True)
    now[0] = SETTLE_S + 1
    assert gate.admits(X, 100, 0, rules, spread=True), "nobody else has it after all"
    assert not gate.admits(X, 100, 1, rules, spread=True)
    now[0] = WINDOW_S + 1
    assert gate.admits(X, 100, 1, rules, spread=True)
    assert gate.sent_bytes == 200


def test_transfers_at_a_time_are_bounded_for_everybody() -> None:
    gate, rules = Gate(), Artifacts(uploads_per_holder=2)
    with gate.transfer("a" * 64), gate.transfer("b" * 64):
        assert not gate.admits(X, 1, 0, rules, spread=False)
        assert gate.sending == 2
    assert gate.admits(X, 1, 0, rules, spread=False)
    assert gate.refused == 1


def test_a_rest_of_a_file_counts_by_its_bytes() -> None:
    gate, rules = Gate(), Artifacts(copies_per_holder=1)
    for _ in range(9):
        assert gate.admits(X, 100, 1, rules, spread=True) or gate.refused
        with gate.transfer(X) as one:
            one.sent_bytes = 1
    assert gate.refused
