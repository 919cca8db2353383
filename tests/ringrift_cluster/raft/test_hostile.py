"""Hostile peers at the Raft port: a counted refusal, bounded memory, and the voters go on as if nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import hmac
import os
import resource
import socket
import ssl
import time
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs

from ringrift_cluster.raft import transport
from ringrift_cluster.raft.errors import RaftError
from ringrift_cluster.raft.guard import MAX_TERM_JUMP
from ringrift_cluster.raft.lobby import MAX_STRANGERS, Lobby, Stranger, origin_of
from ringrift_cluster.raft.messages import (
    AppendEntries,
    AppendReply,
    FetchPart,
    Forward,
    Hello,
    Message,
    OfferSnapshot,
    Part,
    PreVote,
    PreVoteReply,
    Proof,
    RequestVote,
    TimeoutNow,
    Vote,
    Welcome,
    decode_greeting,
    encode,
)
from ringrift_cluster.raft.seal import SEAL_BYTES, Seal
from ringrift_cluster.tls import Tls
from tests.ringrift_cluster.raft.alone import Guarded, entry
from tests.ringrift_cluster.raft.loopback import SECRET, Loopback, add, free_ports, until
from tests.ringrift_cluster.raft.test_tls import Certified
from tests.ringrift_cluster.raft.test_transport import Pair, framed, run

DEEP = b"\x91" * 60_000 + b"\xc0"


def greeting(name: str = "a", nonce: bytes = b"n" * 32, voters: tuple[str, ...] = ("a", "b")) -> Hello:
    return Hello(1, name, "", "log", True, list(voters), nonce)


async def frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


@dataclass
class Knock:
    """A dialler that keeps the protocol, except where a test wants it not to."""

    port: int
    secret: bytes = b"s"
    hello: Hello = field(default_factory=greeting)
    said: list[bytes] = field(default_factory=list)

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def say(self, message: Message) -> None:
        self.writer.write(framed(encode(message)))

    async def prove(self) -> None:
        """Greet and prove; afterwards both ends know each other."""
        mine = encode(self.hello)
        self.writer.write(framed(mine))
        theirs = await frame(self.reader)
        self.text = len(mine).to_bytes(4, "big") + mine + theirs
        self.say(Proof(hmac.digest(self.secret, b"ringrift voter dial" + self.text, hashlib.sha256)))
        assert isinstance(decode_greeting(await frame(self.reader)), Proof)

    async def enter(self) -> Seal:
        """Come in as a voter; returns the seal of what we send."""
        await self.prove()
        assert decode_greeting(await frame(self.reader)) == Welcome("", "")
        self.say(Welcome("", ""))
        return Seal(self.secret, b"dial", self.text)

    async def closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass
        self.writer.close()


@contextlib.asynccontextmanager
async def one_side() -> AsyncIterator[Pair]:
    """Voter b alone; the test is everybody else."""
    pair = Pair()
    await pair.start(1)
    yield pair
    await pair.transports[1].stop()
    assert pair.transports[1].failure is None


class TestBeforeTheProof:
    @pytest.mark.parametrize(
        "bytes_in",
        [
            framed(DEEP),
            framed(b"\x99" + msgspec.msgpack.encode(greeting())[1:] + DEEP),
            framed(b"\x98\xa5hello\x01\xa2\xff\xfe" + b"\xa0" * 5),
            framed(b"\xdd\xff\xff\xff\xff"),
            framed(msgspec.msgpack.encode(["hello", 1, "a", "", "", True, ["a"] * 65, b""])),
            framed(msgspec.msgpack.encode({"type": "hello"})),
            framed(b""),
            (64 * 1024 + 1).to_bytes(4, "big"),
            framed(encode(greeting("z"))) + framed(encode(greeting("z"))),
            framed(encode(Welcome("", ""))),
        ],
        ids=[
            "deep",
            "deep tail",
            "no utf-8",
            "4 G items",
            "65 voters",
            "map",
            "empty",
            "too large",
            "twice",
            "welcome",
        ],
    )
    def test_garbage_is_counted_and_stops_nobody(self, bytes_in):
        async def story():
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                knock.writer.write(bytes_in)
                await knock.closed()
                assert sum(pair.counters[1].refusals.values()) >= 1
                assert pair.houses[1].seen == []
                await pair.start(0)
                await pair.up()
                await pair.transports[0].stop()

        run(story())

    def test_a_greeting_byte_by_byte_does_not_hold_a_place_for_longer(self, monkeypatch):
        monkeypatch.setattr(transport, "HANDSHAKE_S", 0.3)

        async def story():
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                refusals = pair.counters[1].refusals
                for byte in framed(encode(greeting())):
                    with contextlib.suppress(ConnectionError):
                        knock.writer.write(bytes([byte]))
                        await knock.writer.drain()
                    if refusals["slow"]:
                        break
                    await asyncio.sleep(0.02)  # the slow sender itself
                assert refusals["slow"] == 1
                await knock.closed()

        run(story())

    def test_a_recorded_handshake_cannot_be_played_back(self):
        async def story():
            heard: list[bytes] = []

            def listen(data: bytes, dialling: bool) -> bytes:
                if dialling:
                    heard.append(data)
                return data

            async with Between(listen) as between:
                await between.pair.up()
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                knock.writer.write(b"".join(heard))
                await knock.closed()
                assert pair.counters[1].refusals["wrong_secret"] == 1
                assert pair.houses[1].seen == []

        run(story())

    def test_a_proof_cannot_be_sent_back(self):
        async def story():
            pair = Pair()

            async def mirror(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                theirs = decode_greeting(await frame(reader))
                assert isinstance(theirs, Hello)
                writer.write(framed(encode(greeting("b", theirs.nonce))))
                with contextlib.suppress(asyncio.IncompleteReadError):
                    writer.write(framed(await frame(reader)))
                    await reader.read()
                writer.close()

            server = await asyncio.start_server(mirror, "127.0.0.1", pair.port)
            await pair.start(0)
            await until(lambda: pair.counters[0].refusals["wrong_secret"] > 0, "the refusal")
            await pair.transports[0].stop()
            server.close()
            assert pair.houses[0].seen == []

        run(story())

    def test_nobody_gets_a_proof_to_guess_from_by_asking(self):
        async def story():
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                knock.say(greeting())
                await frame(knock.reader)
                knock.say(Proof(b"guess"))
                assert await knock.reader.read() == b""
                knock.writer.close()

        run(story())


class TestWithTheSecret:
    def test_who_is_no_voter_stays_out_and_cannot_tell_a_voter_that_its_disk_is_lost(self, tmp_path):
        async def story():
            async with Loopback(tmp_path, "ab") as cluster:
                await cluster.start("b")
                port = int(cluster.voters["b"].rpartition(":")[2])
                counters = cluster.running["b"].counters
                for count in range(40):
                    knock = Knock(port, SECRET, greeting(f"z{count}"))
                    await knock.open()
                    await knock.prove()
                    answer = decode_greeting(await frame(knock.reader))
                    assert isinstance(answer, Welcome)
                    assert answer.reason == "not_a_voter"
                    knock.say(Welcome("other_log", "you are not who you were"))
                    await knock.closed()
                await until(lambda: counters.refusals["not_a_voter"] == 40, "the refusals")
                assert len(cluster.running["b"].status().refused) <= 16
                await cluster.start("a")
                assert (await (await cluster.leader()).propose([add("w")])).index > 0
                assert cluster.halted == {}

        run(story())

    def test_the_reasons_a_peer_gives_do_not_become_names_of_counters(self):
        async def story():
            async with one_side() as pair:
                for count in range(5):
                    knock = Knock(pair.port)
                    await knock.open()
                    await knock.prove()
                    await frame(knock.reader)
                    knock.say(Welcome(f"reason {count}", ""))
                    await knock.closed()
                assert dict(pair.counters[1].refusals) == {"turned_away": 5, "handshake": 5}

        run(story())

    @pytest.mark.parametrize(
        "data",
        [DEEP, b"\xc1", b"\x92\xa6append\xff", msgspec.msgpack.encode(["append", "x"]), encode(greeting()), b""],
        ids=["deep", "no msgpack", "short", "wrong types", "a greeting again", "empty"],
    )
    def test_a_voter_that_talks_nonsense_loses_its_link(self, data):
        async def story():
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                seal = await knock.enter()
                knock.writer.write(framed(data) + seal.next(data))
                await until(lambda: ("a", "down") in pair.houses[1].seen, "the end of the link")
                await knock.closed()
                assert pair.counters[1].refusals["undecodable"] == 1

        run(story())

    def test_a_frame_in_many_pieces_is_one_frame(self):
        async def story():
            async with one_side() as pair:
                knock = Knock(pair.port)
                await knock.open()
                seal = await knock.enter()
                data = encode(RequestVote(7, 1, 1))
                for byte in framed(data) + seal.next(data):
                    knock.writer.write(bytes([byte]))
                    await knock.writer.drain()
                await until(lambda: ("a", RequestVote(7, 1, 1)) in pair.houses[1].seen, "the message")
                knock.writer.close()

        run(story())


class Between:
    """Voters a and b, and somebody on the line who sees and may change every chunk: `(bytes, from a) -> bytes`."""

    def __init__(self, meddle: Callable[[bytes, bool], bytes]) -> None:
        self.meddle = meddle
        self.pair = Pair()
        self._real = self.pair.port
        (self._front,) = free_ports(1)
        self.pair.voters["b"] = f"127.0.0.1:{self._front}"

    async def __aenter__(self) -> Between:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", self._front)
        await self.pair.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.pair.__aexit__()
        self._server.close()
        for task in list(self._tasks):
            await task

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._real)
        for source, target, dialling in ((reader, far_writer, True), (far_reader, writer, False)):
            task = asyncio.ensure_future(self._pump(source, target, dialling))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, dialling: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(self.meddle(data, dialling))
        target.close()


class TestOnTheLine:
    @pytest.mark.parametrize("deed", ["inject", "flip", "repeat", "drop"])
    def test_what_was_meddled_with_is_not_delivered(self, deed):
        async def story():
            active: list[bool] = []
            forged = encode(RequestVote(999, 1, 1))

            def meddle(data: bytes, dialling: bool) -> bytes:
                # The first message is 666; it is alone in its chunk.
                if not (active and dialling and encode(RequestVote(666, 1, 1)) in data):
                    return data
                match deed:
                    case "inject":
                        return framed(forged) + bytes(SEAL_BYTES) + data
                    case "flip":
                        return data[:-1] + bytes([data[-1] ^ 1])
                    case "repeat":
                        return data + data
                return b""

            async with Between(meddle) as between:
                pair = between.pair
                await pair.up()
                active.append(True)
                pair.transports[0].send("b", RequestVote(666, 1, 1))
                sent_first = asyncio.get_running_loop().time()
                await until(lambda: asyncio.get_running_loop().time() > sent_first + 0.05, "a chunk of its own")
                pair.transports[0].send("b", RequestVote(667, 1, 1))
                await until(lambda: ("a", "down") in pair.houses[1].seen, "the end of the link")
                assert pair.counters[1].refusals["broken_seal"] == 1
                got = [m.term for _, m in pair.houses[1].seen if isinstance(m, RequestVote)]
                assert got == ([666] if deed == "repeat" else [])
                active.clear()
                await until(lambda: pair.houses[1].seen.count(("a", "up")) == 2, "a new link")

        run(story())


def stranger(origin: str, *, greeted: bool = False) -> Stranger:
    return Stranger(origin, lambda: None, greeted)


class TestTheLobby:
    def test_nobody_leaves_while_there_are_places(self):
        lobby = Lobby(3)
        assert [lobby.enter(stranger("x")) for _ in range(3)] == [None] * 3

    def test_the_silent_ones_leave_before_those_that_named_a_voter(self):
        lobby = Lobby(2)
        voter, silent = stranger("x", greeted=True), stranger("y")
        lobby.enter(voter)
        lobby.enter(silent)
        assert lobby.enter(stranger("z")) is silent

    def test_an_address_that_voters_come_from_keeps_its_place(self):
        lobby = Lobby(2)
        known = stranger("v")
        lobby.enter(known)
        lobby.proven(known, "b")
        back, other = stranger("v"), stranger("y")
        lobby.enter(back)
        lobby.enter(other)
        assert lobby.enter(stranger("z")) is other

    def test_the_largest_crowd_gives_way_oldest_first(self):
        lobby = Lobby(4)
        alone = stranger("x")
        crowd = [stranger("y") for _ in range(3)]
        for one in (alone, *crowd):
            lobby.enter(one)
        assert lobby.enter(stranger("y")) is crowd[0]
        assert lobby.enter(stranger("z")) is crowd[1]
        assert len(lobby) == 4

    def test_a_newcomer_is_heard_before_it_is_judged(self):
        lobby = Lobby(1)
        first, second = stranger("x", greeted=True), stranger("y")
        lobby.enter(first)
        assert lobby.enter(second) is first

    def test_an_ipv6_network_counts_as_one_host(self):
        assert origin_of("2001:db8::1") == origin_of("2001:db8::ffff:1") != origin_of("2001:db8:0:1::1")
        assert origin_of("::ffff:10.0.0.1") == "10.0.0.1"
        assert origin_of("fe80::1%eth0") == origin_of("fe80::2%eth0")
        assert origin_of("a name") == "a name"


def shake(one: socket.socket, context: ssl.SSLContext) -> None:
    """A TLS handshake of which only the connection is kept: what is measured is the other end's memory."""
    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(inbound, outbound)
    # Whoever is evicted in the middle of it is a refusal too.
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                one.sendall(outbound.read())
                data = one.recv(1 << 16)
                if not data:
                    return
                inbound.write(data)
            else:
                one.sendall(outbound.read())
                return


def crowd(port: int, count: int, held: list[socket.socket], context: ssl.SSLContext | None) -> None:
    """Open `count` connections that say nothing, or nothing but TLS."""
    for _ in range(count):
        held.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        if context is not None:
            shake(held[-1], context)


class TestAFlood:
    @pytest.mark.parametrize(
        ("cluster_kind", "known", "usual"),
        [(Loopback, False, 3000), (Certified, False, 1000), (Certified, True, 300)],
        ids=["plain", "TLS without a handshake", "a certificate of no voter"],
    )
    def test_voters_come_back_and_commit_while_thousands_of_idle_connections_knock(
        self, tmp_path, cluster_kind, known, usual
    ):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = min(int(os.environ.get("RINGRIFT_TEST_FLOOD", usual)), hard - 500)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held: list[socket.socket] = []

        async def story():
            async with cluster_kind(tmp_path) as cluster:
                context = Tls(cluster.authority.issue("gpu-1", voter=False)).link_client() if known else None
                await cluster.start()
                leader = await cluster.leader()
                name, target = next((n, r) for n, r in cluster.running.items() if r is not leader)
                port = int(cluster.voters[name].rpartition(":")[2])
                refusals, links = target.counters.refusals, target.counters.connections
                before = psutil.Process().memory_info().rss
                flood = asyncio.ensure_future(asyncio.to_thread(crowd, port, count, held, context))
                await until(lambda: refusals["too_many_strangers"] > min(200, count // 2), "a crowd", 60)

                def cut() -> None:
                    for link in list(target._thread._transport._links.values()):
                        link.writer.transport.abort()

                target._thread.call(cut)
                placed = [await leader.propose([add(f"w{n}")]) for n in range(20)]
                await until(lambda: target.counters.connections >= links + 2, "the voters to be back")
                seen = await target.read(lambda s: len(s.work), at_least=placed[-1].index, wait_s=10)
                assert seen.value == 20
                await flood
                await until(lambda: sum(refusals.values()) >= count - MAX_STRANGERS, "the rest to be refused")
                assert refusals["too_many_strangers"] >= (count - MAX_STRANGERS) * 0.9
                assert len(target._thread._transport._lobby) <= MAX_STRANGERS
                assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
                assert cluster.halted == {}

        try:
            asyncio.run(asyncio.wait_for(story(), 60 + count / 20))
        finally:
            for one in held:
                one.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_who_was_sent_away_during_its_handshake_leaves_nothing_for_the_collector(self, tmp_path):
        held: list[socket.socket] = []

        async def story():
            async with Certified(tmp_path) as cluster:
                await cluster.start("a")
                port, refusals = int(cluster.voters["a"].rpartition(":")[2]), cluster.running["a"].counters.refusals
                gc.collect()
                gc.disable()
                await asyncio.to_thread(crowd, port, 4 * MAX_STRANGERS, held, None)
                await until(lambda: refusals["too_many_strangers"] >= 3 * MAX_STRANGERS, "the crowd to be sent away")

                def left() -> int:
                    # Their types alone: what asks a stranger's lazy object for its class may wake it up.
                    return sum(type(one) is sslproto.SSLProtocol for one in gc.get_objects())

                # Those in the lobby, and a voter that is dialled; the last ones sent away take another moment.
                await until(lambda: left() <= MAX_STRANGERS + 8, "the others to be gone without the collector")

        try:
            run(story())
        finally:
            gc.enable()
            for one in held:
                one.close()


class TestABadVoter:
    @pytest.mark.parametrize(
        "message",
        [
            RequestVote(2**62, 1, 1),
            AppendEntries(2**62, 1, 1, 1, []),
            AppendReply(2**62, 1, False, 1),
            PreVoteReply(1, 2**62, False),
            OfferSnapshot(2**62, 9, 9, 9, "0" * 64),
            TimeoutNow(2**62),
            Vote(2**62),
        ],
        ids=lambda m: type(m).__name__,
    )
    def test_a_term_out_of_reach_is_refused_so_that_the_numbers_last(self, tmp_path, message):
        voter = Guarded(tmp_path)
        term = voter.inside.term
        voter.get("b", message)
        assert voter.inside.term == term
        assert voter.node.counters.refusals["term_too_far"] == 1

    def test_one_that_talks_faster_than_it_is_listened_to_is_read_no_faster(self, tmp_path):
        """Sockets are read between turns and by the same thread: what waits is never more than one reading of each."""
        frames, payload = 20_000, b"x" * 1000

        async def story():
            async with Loopback(tmp_path) as cluster:
                await cluster.start("a", "b")
                leader = await cluster.leader()
                name = next(n for n, r in cluster.running.items() if r is leader)
                most, node = 0, leader._thread.node
                gather = node.gather

                def slow_gather() -> bool:
                    nonlocal most
                    most = max(
                        most, sum(len(e[0]) for _, m in node._inbox if isinstance(m, AppendEntries) for e in m.entries)
                    )
                    time.sleep(0.002)  # the slow voter itself
                    return gather()

                node.gather = slow_gather
                knock = Knock(
                    int(cluster.voters[name].rpartition(":")[2]), SECRET, greeting("c", voters=("a", "b", "c"))
                )
                await knock.open()
                seal = await knock.enter()

                async def flood() -> None:
                    for number in range(frames):
                        data = encode(AppendEntries(0, 0, number, 0, [(payload, number + 1, 0)]))
                        knock.writer.write(framed(data) + seal.next(data))
                        await knock.writer.drain()

                async def listen() -> None:
                    while await knock.reader.read(1 << 16):
                        pass

                heard, said = asyncio.ensure_future(listen()), asyncio.ensure_future(flood())
                counters = leader.counters
                await until(lambda: counters.frames_in > 1000, "the flood")
                placed = [await leader.propose([add(f"w{n}")]) for n in range(10)]
                assert len({p.index for p in placed}) == 10
                await asyncio.wait_for(said, 60)
                await until(lambda: counters.frames_in > frames, "everything to be read in the end", 60)
                assert 0 < most < 1 << 20
                heard.cancel()
                knock.writer.transport.abort()
                assert cluster.halted == {}

        asyncio.run(asyncio.wait_for(story(), 120))

    def test_a_term_that_elections_can_reach_is_followed(self, tmp_path):
        voter = Guarded(tmp_path)
        term = voter.inside.term + MAX_TERM_JUMP
        voter.get("b", RequestVote(term, 1, 1))
        assert voter.inside.term == term

    natural = hs.one_of(hs.integers(0, 5), hs.integers(0, 2**62))
    blob = hs.one_of(hs.just(entry(3, 1)[0]), hs.binary(max_size=8))
    messages = hs.one_of(
        hs.builds(AppendEntries, natural, natural, natural, natural, hs.lists(hs.tuples(blob, natural, natural))),
        hs.builds(AppendReply, natural, natural, hs.booleans(), natural),
        hs.builds(RequestVote, natural, natural, natural),
        hs.builds(Vote, natural),
        hs.builds(PreVote, natural, natural, natural, natural),
        hs.builds(PreVoteReply, natural, natural, hs.booleans()),
        hs.builds(TimeoutNow, natural),
        hs.builds(OfferSnapshot, natural, natural, natural, natural, hs.just("0" * 64)),
        hs.builds(FetchPart, natural, natural, natural),
        hs.builds(Part, natural, natural, natural, hs.binary(max_size=8)),
        hs.builds(Forward, hs.lists(hs.tuples(natural, hs.lists(blob, max_size=3), natural), max_size=3)),
    )

    @settings(
        max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(sent=hs.lists(hs.tuples(hs.sampled_from(["b", "c"]), messages), max_size=6), leads=hs.booleans())
    def test_whatever_a_voter_says_is_taken_refused_or_answered_with_a_sentence(self, tmp_path, sent, leads):
        voter = Guarded(tmp_path)
        if leads:
            voter.lead()
        for peer, message in sent:
            # Anything else than a sentence of ours ends the test.
            with contextlib.suppress(RaftError):
                voter.get(peer, message)
