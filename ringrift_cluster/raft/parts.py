"""Snapshot files on their way between voters: parts given to others, and parts taken until a file is whole."""

from __future__ import annotations

from collections.abc import Callable

from ringrift_cluster.raft.compaction import Compaction, Job
from ringrift_cluster.raft.fetch import Fetch, verified
from ringrift_cluster.raft.messages import FetchPart, Message, OfferSnapshot, Part
from ringrift_cluster.raft.snapshots import SnapshotDir, SnapshotFile
from statemachine.machine import Machine
from statemachine.snapshot import Header

Install = Callable[[SnapshotFile, Header, Machine], None]


class Parts:
    """`install` gets a file that was verified."""

    def __init__(
        self,
        snapshots: SnapshotDir,
        compaction: Compaction,
        part_bytes: int,
        send: Callable[[str, Message], None],
        clock: Callable[[], float],
        install: Install,
    ) -> None:
        self._snapshots = snapshots
        self._compaction = compaction
        self._part_bytes = part_bytes
        self._send = send
        self._clock = clock
        self._install = install
        self._fetch = Fetch(snapshots.directory, send)

    def offered(self, peer: str, offer: OfferSnapshot) -> None:
        """The leader offers a file that is needed here."""
        self._fetch.want(peer, offer, self._clock())

    def give(self, peer: str, request: FetchPart, machine: Callable[[], Machine]) -> None:
        """Send one part of a file to a voter that fetches it."""
        data = self._snapshots.part(
            request.index, request.snapshot_term, request.offset, self._part_bytes, self._clock()
        )
        self._send(peer, Part(request.index, request.snapshot_term, request.offset, data))
        if data:
            self._compaction.reads(peer, request.index)
        if request.offset == 0:
            self._compaction.asked_again(peer, request.index, request.snapshot_term, machine)

    def take(self, peer: str, part: Part) -> None:
        """Keep one part; a file that is whole is verified by another thread and then installed."""
        file = self._fetch.take(peer, part, self._clock())
        if file is None:
            return
        loaded: list[tuple[Header, Machine]] = []

        def run() -> None:
            found = verified(file)
            if found is not None:
                loaded.append(found)

        def finish() -> None:
            if not loaded:
                self._fetch.drop()
                return
            self._install(file, *loaded[0])

        self._compaction.jobs.append(Job(run, finish))

    def done(self) -> None:
        """The file was taken over, or is no longer needed."""
        self._fetch.drop()
