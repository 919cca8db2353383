"""One flow a route whose answer is a stream. The clients offer each under the same name, to be iterated over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import msgspec

from ringrift_cluster.api.workload import Ended, NotTried, Seen, Try
from ringrift_cluster.client.errors import Invalid, OutcomeUnknown, Unreachable
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Emit, Failed, Flow, Next, Pause
from ringrift_cluster.problem import Problem
from statemachine.errors import UNDECODABLE
from statemachine.rows import Event

T = TypeVar("T")

#: no line is nearly as long
MAX_LINE_BYTES = 1 << 20
#: before a stream that broke is asked for again
PAUSE_S = 0.2


class _Lines(Generic[T]):
    """The JSON lines of one stream."""

    def __init__(self, decoder: msgspec.json.Decoder[T], what: str) -> None:
        self._decoder = decoder
        self._what = what
        self._rest = b""

    def take(self, chunk: bytes) -> Iterator[T]:
        """What stands in the lines that `chunk` completes. Raises Invalid."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise Invalid(Problem("unexpected", f"{self._what} has no end after {MAX_LINE_BYTES} bytes"))
        for line in filter(None, lines):
            try:
                yield self._decoder.decode(line)
            except UNDECODABLE as error:
                raise Invalid(Problem("unexpected", f"{self._what} is not understood: {error}")) from error


def events(
    session: Session, *, since: int = 0, follow: bool = False, kinds: Sequence[str] = (), key: str = ""
) -> Flow[None]:
    """Emit events after the sequence number `since` (-1: from now on); a broken stream is resumed where it was."""
    seq = since
    params = {"kinds": ",".join(kinds), "key": key, "follow": "true" if follow else ""}
    while True:
        yield from session.open("/events", {k: v for k, v in {**params, "since": str(seq)}.items() if v})
        lines = _Lines(msgspec.json.Decoder(Event), "an event")
        while isinstance(chunk := (yield Next()), bytes):
            for event in lines.take(chunk):
                seq = event.seq
                yield Emit(event)
        if not follow and chunk is None:
            return
        yield Pause(PAUSE_S)


def job_log(
    session: Session, job_id: str, *, tail: int = 200, follow: bool = False, stream: str = "stdout"
) -> Flow[None]:
    """Emit text of a job's log: the last lines, or with `follow` the whole file and what is added to it."""
    had = 0
    params = {"tail": str(tail), "stream": stream, "follow": "true" if follow else "false"}
    while True:
        yield from session.open(f"/jobs/{job_id}/log", {**params, "offset": str(had)} if had else params)
        while isinstance(chunk := (yield Next()), bytes):
            had += len(chunk)
            yield Emit(chunk)
        if chunk is None or not follow:
            return
        yield Pause(PAUSE_S)


def try_template(session: Session, wanted: Try) -> Flow[None]:
    """Emit what a node sees of a trial, `workload.Seen` by `workload.Seen`; one that breaks off is not repeated."""
    yield from session.open("/workload/try", {}, body=msgspec.json.encode(wanted))
    lines = _Lines(msgspec.json.Decoder(Seen), "a line of the trial")
    while isinstance(chunk := (yield Next()), bytes):
        for seen in lines.take(chunk):
            yield Emit(seen)
            if isinstance(seen, Ended | NotTried):
                return
    raise OutcomeUnknown(Problem("outcome_unknown", "the trial broke off: the connection to its node was lost"))


def backup(session: Session) -> Flow[None]:
    """Emit the bytes of a snapshot that holds everything acknowledged before now. Raises ClientError."""
    yield from session.open("/feed/backup", {})
    while isinstance(chunk := (yield Next()), bytes):
        yield Emit(chunk)
    if isinstance(chunk, Failed):
        raise Unreachable(
            Problem("unreachable", f"the backup broke off: {chunk.reason}; take it again", 0, "No answer")
        )
