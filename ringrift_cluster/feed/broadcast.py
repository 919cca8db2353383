"""All followers of one node stand at one position, and what comes after it is encoded once and written to each.

    a follower's request --> alone: messages from its own position on, at its own pace
                                |  has everything                ^  reads too slowly
                                v                                |
                             together: one task writes the same bytes to all of them

Whoever does not read as fast as the others goes on alone: for nobody more is held than what its connection holds
anyway, and one message. Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ringrift_cluster.feed import wire
from ringrift_cluster.feed.changes import Changes
from ringrift_cluster.feed.source import FeedEntry, LogFeed
from ringrift_cluster.feed.wire import Batch, Frame, Standing
from ringrift_cluster.replica import ReplicaStatus

log = logging.getLogger(__name__)

Send = Callable[[dict[str, Any]], Awaitable[None]]

#: what the scope's extensions hold: the way to the follower, and whether its token is still good
OUTLET, ADMITTED = "ringrift.outlet", "ringrift.admitted"

#: followers that are written to before other tasks of the loop get their turn
_SLICE = 64
#: after writing, at least so many times as long goes to others
_SHARE = 4
#: read of the source at once
_ENTRIES = 1000


class Outlet(Protocol):
    """The connection of one follower, to write to without waiting."""

    def pour(self, body: bytes) -> None:
        """The next part of the answer's body."""

    @property
    def full(self) -> bool:
        """Whether the follower has not read what was poured before."""

    @property
    def closed(self) -> bool: ...


class Lost(Exception):  # noqa: N818 - an answer
    """The source cannot go on from a follower's position; `code` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(slots=True, eq=False)
class Listener:
    """One follower's stream, and the position up to which it was written."""

    outlet: Outlet
    #: whether its token is still good
    admitted: Callable[[], bool]
    ends_at_s: float
    cluster: str
    index: int
    chain: bytes
    #: while together: done when it stands alone again
    released: asyncio.Future[None] | None = None


class Broadcast:
    """Writes the log of one source to its followers.

    An entry after a quiet moment leaves at once; those of the next moment are held together and leave as one message.
    The moment grows with the followers, `each_s` for each up to `moment_s`.
    """

    def __init__(
        self, source: LogFeed, *, each_s: float, moment_s: float, beat_s: float, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._each_s = each_s
        self._moment_s = moment_s
        self._beat_s = beat_s
        self._clock = clock
        #: all of these stand at `_index`, or are being written to
        self._together: dict[Listener, None] = {}
        self._index = 0
        self._chain = b""
        self._through = 0
        self._spoke_s = self._looked_s = clock()
        self._pause_s = 0.0
        self._writer: asyncio.Task[None] | None = None
        self._changes = Changes()
        #: entries were applied since the writer last read
        self._moved = False
        self._ticket: int | None = None
        self._closed = False

    def open(self) -> None:
        """Hear of what the source applies, from the first stream on."""
        if self._ticket is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._ticket = self._source.subscribe(lambda: self._applied(loop))

    def close(self) -> None:
        """Let go of the source and of everyone who listens."""
        self._closed = True
        if self._ticket is not None:
            self._source.unsubscribe(self._ticket)
            self._ticket = None
        self._release_all()
        self._changes.happened()

    def _over(self, listener: Listener) -> bool:
        """Whether a stream has to end: its time or its token is over, or one end of it is."""
        return self._closed or listener.outlet.closed or self._clock() >= listener.ends_at_s or not listener.admitted()

    # One alone

    def next(self, listener: Listener) -> tuple[bytes, bool]:
        """The next message for one that stands alone, and whether it holds entries. Raises Lost."""
        status = self._source.status()
        if status.halted:
            raise Lost("halted", status.halted)
        if not _same(listener.cluster, status.cluster_id):
            raise Lost(wire.OTHER_CLUSTER, f"this is cluster {status.cluster_id}, not {listener.cluster}")
        found = following(self._source, listener.index, listener.chain)
        if self._together:
            # Up to where the others stand: from there on it is written to with them.
            found = [entry for entry in found if entry.index <= self._index]
        piece, index, chain = self._piece(found, listener.index, listener.chain)
        listener.index, listener.chain = index, chain
        return self._message(status, piece, index, chain), bool(piece)

    async def serve(self, listener: Listener, first: bytes, send: Send) -> None:
        """Write `first` and everything after it until the stream is over. The caller ends the answer."""
        try:
            message, news = first, True
            while True:
                if news:
                    await send(_part(message))
                # Once this returns, the follower has read nearly everything.
                await send(_part(b""))
                if self._over(listener):
                    return
                message, news = self.next(listener)
                if news:
                    continue
                if self._may_join(listener):
                    await self._join(listener)
                    continue
                # It is ahead of this node, or of the others for a moment; if that lasts it is told that we are here.
                news = not await self._changed(listener)
                if news:
                    message, _ = self.next(listener)
        except Lost as lost:
            log.info("event=stream_ended code=%s reason=%s", lost.code, lost)
        finally:
            self._together.pop(listener, None)

    async def _changed(self, listener: Listener) -> bool:
        """Wait for a reason to look again; False when there was none for a beat."""
        at = self._index
        if not self._together:
            self._moved = False
        return await self._changes.until(
            lambda: self._closed or self._index != at or self._may_join(listener), self._beat_s
        )

    def _may_join(self, listener: Listener) -> bool:
        if self._together:
            return (listener.index, listener.chain) == (self._index, self._chain)
        return listener.index <= self._source.status().applied

    def _join(self, listener: Listener) -> asyncio.Future[None]:
        """Let one that has everything stand with the others; done when it is alone again."""
        if not self._together:
            self._index, self._chain, self._through = listener.index, listener.chain, 0
            self._spoke_s = self._clock()
        released = listener.released = asyncio.get_running_loop().create_future()
        self._together[listener] = None
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="feed-writer")
            self._writer.add_done_callback(self._ended)
        return released

    # All together

    def _ended(self, writer: asyncio.Task[None]) -> None:
        """A fault of ours is never silent, and nobody waits for words that do not come."""
        failure = None if writer.cancelled() else writer.exception()
        if failure is not None:
            log.error("event=feed_writer_failed", exc_info=failure)
            self.close()

    def _applied(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called from the applying thread, which may outlive the loop."""
        if self._moved:
            return
        self._moved = True
        try:
            loop.call_soon_threadsafe(self._changes.happened)
        except RuntimeError:
            return  # the loop is closed: nobody listens any more

    async def _write(self) -> None:
        while self._together:
            await self._changes.until(lambda: self._moved or self._closed, self._spoke_s + self._beat_s - self._clock())
            if self._moved:
                await asyncio.sleep(max(0.0, self._spoke_s + self._pause_s - self._clock()))
            # Taken down before the source is read: what is applied from here on is told again.
            self._moved = False
            await self._look()
            await self._speak()
            self._changes.happened()

    async def _look(self) -> None:
        """Once in a while, let go of those whose time or token is over."""
        now = self._clock()
        if now - self._looked_s < self._beat_s:
            return
        self._looked_s = now
        for count, listener in enumerate(list(self._together), 1):
            if listener in self._together and self._over(listener):
                self._release(listener)
            if count % _SLICE == 0:
                await asyncio.sleep(0)

    async def _speak(self) -> None:
        """Write what is new, or once a beat that nothing is."""
        took_s = 0.0
        more = True
        while more and self._together:
            status = self._source.status()
            found = self._source.feed_since(self._index, _ENTRIES)
            cluster = next(iter(self._together)).cluster
            if found is None or status.halted or not _same(cluster, status.cluster_id):
                # Each one alone finds out what that means for it.
                self._release_all()
                return
            piece, index, chain = self._piece(found, self._index, self._chain)
            more = len(piece) < len(found) or len(found) == _ENTRIES
            if not piece and status.applied <= self._through and self._clock() < self._spoke_s + self._beat_s:
                break
            message = self._message(status, piece, index, chain)
            before, self._index, self._chain, self._through = self._index, index, chain, status.applied
            self._spoke_s = self._clock()
            took_s += await self._pour(message, before)
        self._pause_s = max(min(len(self._together) * self._each_s, self._moment_s), _SHARE * took_s)

    async def _pour(self, message: bytes, before: int) -> float:
        """One message to all who stand at `before`; returns the seconds that it took."""
        index, chain = self._index, self._chain
        took_s, began_s = 0.0, self._clock()
        for count, listener in enumerate(list(self._together), 1):
            outlet = listener.outlet
            if listener.index == before and listener in self._together:
                if outlet.full or outlet.closed:
                    self._release(listener)
                else:
                    outlet.pour(message)
                    listener.index, listener.chain = index, chain
            if count % _SLICE == 0:
                took_s += self._clock() - began_s
                await asyncio.sleep(0)
                began_s = self._clock()
        return took_s + self._clock() - began_s

    def _release(self, listener: Listener) -> None:
        del self._together[listener]
        if listener.released is not None and not listener.released.done():
            listener.released.set_result(None)

    def _release_all(self) -> None:
        for listener in list(self._together):
            self._release(listener)

    # Messages

    def _piece(self, found: Sequence[FeedEntry], index: int, chain: bytes) -> tuple[Sequence[FeedEntry], int, bytes]:
        """As many entries as one message takes, and the position they lead to."""
        size = 0
        for count, entry in enumerate(found):
            size += len(entry.entry)
            if count and size > wire.PIECE_BYTES:
                found = found[:count]
                break
        return found, *((found[-1].index, found[-1].chain) if found else (index, chain))

    def _message(self, status: ReplicaStatus, piece: Sequence[FeedEntry], index: int, chain: bytes) -> bytes:
        # The status was read first: what it calls applied is in the window by now.
        complete = not self._source.feed_since(index, 1)
        standing = Standing(
            cluster_id=status.cluster_id,
            node_id=status.node_id,
            leader_id=status.leader_id,
            term=status.term,
            commit=status.commit,
            through=max(index, status.applied) if complete else index,
            voters=status.voters,
            contact_age_ms=status.contact_age_ms,
            clock_ms=int(self._clock() * 1000),
            index=index,
            chain=chain,
        )
        return wire.message(Batch(standing, [Frame(e.index, e.term, e.entry, e.chain) for e in piece]))


def following(source: LogFeed, index: int, chain: bytes) -> Sequence[FeedEntry]:
    """Entries after a position, oldest first. Raises Lost when the position is gone or of another history."""
    found = source.feed_since(index - 1, _ENTRIES) if index > 0 else None
    if found and found[0].index == index:
        if found[0].chain != chain:
            raise Lost(wire.OTHER_HISTORY, f"entry {index} left another digest here; take a snapshot")
        found = found[1:] or source.feed_since(index, _ENTRIES)
    else:
        found = source.feed_since(index, _ENTRIES)
    if found is None:
        raise Lost(wire.FELL_OUT, f"what came after entry {index} is no longer kept; take a snapshot")
    return found


def _same(cluster: str, here: str) -> bool:
    """Whether two cluster ids may be of one cluster; a follower or a node without one says nothing."""
    return not cluster or not here or cluster == here


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
