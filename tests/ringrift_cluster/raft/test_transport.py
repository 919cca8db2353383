"""Whoever is not a voter with the secret gets nothing, costs little, and is counted."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from ringrift_cluster.raft.counters import Counters
from ringrift_cluster.raft.handshake import Security
from ringrift_cluster.raft.messages import (
    MAX_FRAME_BYTES,
    AppendEntries,
    Forward,
    Hello,
    Message,
    Raft,
    RequestVote,
    Welcome,
    decode,
    encode,
)
from ringrift_cluster.raft.transport import Transport
from ringrift_cluster.raft.wire import split_address
from tests.ringrift_cluster.raft.loopback import free_ports, until


class House:
    """The voter behind a transport."""

    def __init__(self, name: str, refuse: str = "") -> None:
        self.name = name
        self.refuse = refuse
        self.seen: list[tuple[str, object]] = []

    def hello(self, nonce: bytes) -> Hello:
        return Hello(1, self.name, "", "log", True, ["a", "b"], nonce)

    def judge(self, hello: Hello) -> Welcome:
        return Welcome(self.refuse, self.refuse)

    def welcomed(self, hello: Hello, answer: Welcome) -> None:
        self.seen.append((hello.node_id, answer.reason))

    async def durable(self) -> None: ...

    def connected(self, peer: str) -> None:
        self.seen.append((peer, "up"))

    def disconnected(self, peer: str) -> None:
        self.seen.append((peer, "down"))

    def deliver(self, peer: str, message: Raft) -> None:
        self.seen.append((peer, message))


class Pair:
    def __init__(
        self, *, secrets: tuple[bytes | None, bytes | None] = (b"s", b"s"), refuse: str = "", cap: int = 1 << 24
    ):
        ports = free_ports(2)
        voters = self.voters = {"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"}
        self.port = ports[1]
        self.houses = (House("a"), House("b", refuse))
        self.counters = (Counters(), Counters())
        self.transports = tuple(
            Transport(house.name, voters[house.name], Security(secret), cap, counters, house)
            for house, secret, counters in zip(self.houses, secrets, self.counters, strict=True)
        )

    async def __aenter__(self) -> Pair:
        await self.start(0)
        await self.start(1)
        return self

    async def start(self, which: int) -> None:
        """Let one side listen and dial the other."""
        await self.transports[which].start()
        other = "ba"[which]
        self.transports[which].reach({other: self.voters[other]})

    async def __aexit__(self, *error: object) -> None:
        for transport in self.transports:
            await transport.stop()
            assert transport.failure is None

    async def up(self) -> None:
        await until(lambda: all(("a" if h.name == "b" else "b", "up") in h.seen for h in self.houses), "a link")


def run(story) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def test_messages_arrive_in_order(tmp_path):
    async def story():
        async with Pair() as pair:
            await pair.up()
            for term in range(100):
                pair.transports[0].send("b", RequestVote(term, 1, 1))
            pair.transports[1].send("a", AppendEntries(1, 2, 3, 4, [(b"\x00x", 5, 6)]))
            await until(lambda: len(pair.houses[1].seen) >= 102, "the messages")
            terms = [m.term for _, m in pair.houses[1].seen if isinstance(m, RequestVote)]
            assert terms == list(range(100))
            await until(lambda: isinstance(pair.houses[0].seen[-1][1], AppendEntries), "the append")
            assert pair.houses[0].seen[-1] == ("b", AppendEntries(1, 2, 3, 4, [(b"\x00x", 5, 6)]))

    run(story())


@pytest.mark.parametrize("secrets", [(b"s", b"t"), (None, b"s"), (b"s", None)], ids=["other", "none", "only one"])
def test_another_secret_is_refused(secrets):
    async def story():
        async with Pair(secrets=secrets) as pair:
            await until(lambda: sum(c.refusals["wrong_secret"] for c in pair.counters) > 0, "a refusal")
            assert not any(s[1] == "up" for h in pair.houses for s in h.seen)

    run(story())


def test_a_refused_voter_learns_why_and_is_not_connected():
    async def story():
        async with Pair(refuse="other_log") as pair:
            await until(lambda: ("b", "other_log") in pair.houses[0].seen, "the reason")
            assert not any(s[1] == "up" for h in pair.houses for s in h.seen)

    run(story())


@pytest.mark.parametrize(
    "bytes_in",
    [b"GET / HTTP/1.1\r\n\r\n", (2**31).to_bytes(4, "big"), framed(b"\xc1"), framed(encode(RequestVote(1, 1, 1)))],
    ids=["http", "two gibibytes", "no msgpack", "a message before the greeting"],
)
def test_a_stranger_is_cut_off_before_anything_large_is_read(bytes_in):
    async def story():
        async with Pair() as pair:
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(bytes_in)
            with contextlib.suppress(ConnectionError):
                await reader.read(-1)
            writer.close()
            assert not any(isinstance(m, Message) for _, m in pair.houses[1].seen)
            await pair.up()

    run(story())


def test_a_frame_above_the_limit_ends_the_connection():
    async def story():
        async with Pair() as pair:
            await pair.up()
            link = pair.transports[0]._links["b"]
            link.writer.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
            await until(lambda: ("a", "down") in pair.houses[1].seen, "the end")
            assert pair.counters[1].refusals["frame_too_large"] == 1

    run(story())


def test_a_peer_that_reads_nothing_is_dropped_at_the_cap():
    async def story():
        async with Pair(cap=1 << 20) as pair:
            await pair.up()
            pair.transports[1]._links["a"].writer.transport.pause_reading()
            big = Forward([(1, [b"x" * (1 << 20)], 1)])
            for _ in range(50):
                pair.transports[0].send("b", big)
            assert pair.counters[0].refusals["outbound_full"] == 1
            assert ("b", "down") in pair.houses[0].seen

    run(story())


def test_a_lost_connection_comes_back():
    async def story():
        async with Pair() as pair:
            await pair.up()
            pair.transports[1]._links["a"].writer.transport.abort()
            await until(lambda: pair.houses[0].seen.count(("b", "up")) == 2, "a second link")

    run(story())


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:x", "host:70000"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_a_bracketed_address_is_ipv6():
    assert split_address("[::1]:80") == ("::1", 80)


@pytest.mark.parametrize(
    "wrong",
    [
        ["append", -1, 0, 0, 0, []],
        ["append", 1, 0, 0, 0, [["text", 1, 1]]],
        ["append", 1, 0, 0, 0, [[b"x", 1]]],
        ["apply_command", b"x"],
        ["vote?", 2**63, 1, 1],
        {"type": "append"},
        [],
        7,
    ],
)
def test_what_is_no_message_does_not_decode(wrong):

    with pytest.raises(msgspec.MsgspecError):
        decode(msgspec.msgpack.encode(wrong))
