"""Templates tried on a node, outside the queue."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from executors.logs import tail_of
from executors.outcome import Progress
from executors.trial import Report, Trial, TrialError
from ringrift_cluster.api.endpoint import BrokenOff, Call, Routes
from ringrift_cluster.api.passing import PassedOn, elsewhere, order_node
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from ringrift_cluster.api.streams import admit
from ringrift_cluster.api.writes import noted
from statemachine import settings as st
from statemachine.errors import UNDECODABLE, Code
from statemachine.values import Id, Scope

route = Routes("workload", "Programs and the templates that start them.")

#: what is shown of each stream of the program
LINES, TAIL_BYTES = 100, 32 * 1024
LOOK_S = 0.5
#: a silent program is told of this often: clients and proxies give up on a connection that says nothing
BEAT_S = 10.0


class Try(Struct, frozen=True, forbid_unknown_fields=True):
    #: as in the setting template/NAME
    template: Raw
    #: this node when left out
    node_id: Id | None = None
    params: dict[str, str] = {}
    #: name to path, on the node that tries it
    inputs: dict[str, str] = {}
    config: Annotated[str, Meta(max_length=64)] = ""
    #: it is ended then, as the cluster would; 0: it ends by itself
    stop_after_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    #: from SIGTERM to SIGKILL, when the template does not say
    grace_seconds: Annotated[float, Meta(ge=0, le=3_600)] = 60.0


class Started(Struct, frozen=True, tag="started"):
    node_id: str
    #: on that node; it stays until the next trial there
    folder: str
    argv: tuple[str, ...]


class Advanced(Struct, frozen=True, tag="progress"):
    progress: Progress


class Ended(Struct, frozen=True, tag="ended"):
    """What the executor saw, and the last lines of what the program printed."""

    report: Report
    stdout: str
    stderr: str


class NotTried(Struct, frozen=True, tag="not_tried"):
    """Nothing could be run."""

    detail: str


Seen = Started | Advanced | Ended | NotTried


@route(
    "POST",
    "/workload/try",
    "Run a template on a node, outside the queue",
    scope=Scope.ADMIN,
    example=Try(Raw(b'{"argv": ["true"]}'), stop_after_seconds=10.0),
    produces={"application/x-ndjson": "A line for its start, each progress, and its end."},
    errors=(Code.INVALID, Code.NOT_FOUND, "busy", "unreachable", "too_many_streams"),
    stream=True,
)
async def try_template(call: Call, body: Try) -> PassedOn:
    """The same folder, keeper and verdict as for a job of the queue, which it does not take a slot of.

    One at a time on each node. It is stopped, as the cluster would stop it, when nobody reads on.
    """
    services = call.services
    admit(services)
    if elsewhere(call, body.node_id):
        return await order_node(call, body.node_id, "/workload/try", body)
    if services.trials is None:
        raise Problem(Code.NOT_FOUND, "this node runs nothing")
    _refuse_a_second(services)
    node, template = services.replica.status().node_id, _template(body)
    await noted(call, "workload.try", node)
    # Another one may have begun meanwhile.
    _refuse_a_second(services)
    stop, seen = threading.Event(), asyncio.Queue[Seen]()
    attempt = Attempt(node, services.trials, template, body, stop)
    loop = asyncio.get_running_loop()
    # A thread of its own, which does not keep a node that leaves: the keeper ends the program then.
    services.trial = threading.Thread(
        target=attempt.run, args=(lambda one: _post(loop, seen, one),), name="trial", daemon=True
    )
    services.trial.start()

    async def leave() -> None:
        stop.set()

    return PassedOn(_lines(seen, services.trial.is_alive, services.closing), leave, "application/x-ndjson")


def _refuse_a_second(services: Services) -> None:
    if services.trial is not None and services.trial.is_alive():
        raise Problem("busy", "a template is being tried on this node; wait for its end")


async def _lines(
    seen: asyncio.Queue[Seen], alive: Callable[[], bool], closing: Callable[[], bool], beat_s: float = BEAT_S
) -> AsyncGenerator[bytes, None]:
    """A line for each thing that was seen; an empty one tells that a silent program is still there."""
    quiet_s = 0.0
    while not closing():
        living = alive()
        try:
            async with asyncio.timeout(LOOK_S):
                one = await seen.get()
        except TimeoutError:
            if not living:
                raise BrokenOff("the trial ended without a word; its node's log says why") from None
            quiet_s += LOOK_S
            if quiet_s >= beat_s:
                quiet_s = 0.0
            yield b"" if quiet_s else b"\n"
            continue
        quiet_s = 0.0
        yield msgspec.json.encode(one) + b"\n"
        if isinstance(one, Ended | NotTried):
            return
    raise BrokenOff("this node is leaving")


def _post(loop: asyncio.AbstractEventLoop, seen: asyncio.Queue[Seen], one: Seen) -> None:
    try:
        loop.call_soon_threadsafe(seen.put_nowait, one)
    except RuntimeError:
        return  # the loop is closed: nobody reads any more


def _template(body: Try) -> st.Template:
    """Raises Problem."""
    try:
        template = st.decode("template/tried", bytes(body.template).decode())
    except (ValueError, *UNDECODABLE) as error:
        raise Problem(Code.INVALID, f"the template: {error}") from None
    assert isinstance(template, st.Template)  # the group says so
    return template


@dataclass(frozen=True, slots=True)
class Attempt:
    """One trial, in a thread of its own."""

    node_id: str
    folder: Path
    template: st.Template
    body: Try
    stop: threading.Event

    def run(self, tell: Callable[[Seen], None]) -> None:
        body = self.body
        inputs = {name: Path(path) for name, path in body.inputs.items()}
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            trial = Trial(
                self.folder, self.template, body.params, inputs, config=body.config, grace_s=body.grace_seconds
            )
            tell(Started(self.node_id, str(trial.folder.path), trial.rendered.argv))
            report = trial.run(
                stop_after_s=body.stop_after_seconds,
                told=lambda progress: tell(Advanced(progress)),
                interrupted=self.stop.is_set,
            )
        except (TrialError, OSError) as error:
            tell(NotTried(str(error)))
            return
        said = {stream: tail_of(trial.folder.path, stream, LINES, TAIL_BYTES) for stream in ("stdout", "stderr")}
        tell(Ended(report, **said))
