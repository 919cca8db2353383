"""The log's own stream, for followers: documented here, answered by the feed's router."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.feed.broadcast import ADMITTED
from ringrift_cluster.relay.inside import Asgi
from statemachine.errors import Code
from statemachine.values import Scope

route = Routes("feed", "The committed log, for nodes that follow it without voting.")

MSGPACK = "application/msgpack"


class Passed(Response):
    """Lets another ASGI application answer, which may ask whether the caller is still let in."""

    def __init__(self, app: Asgi, admitted: Callable[[], bool]) -> None:
        super().__init__()
        self._app = app
        self._admitted = admitted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), ADMITTED: self._admitted}
        await self._app(scope, receive, send)


async def passed(call: Call) -> Passed:
    """Binary, and for nodes of the same release line; people read `GET /state/dump` and `GET /events`."""
    if call.services.feed is None:
        raise Problem(Code.NOT_FOUND, "this node serves no feed; ask a voter")
    return Passed(call.services.feed, call.admitted)


route(
    "GET",
    "/feed/snapshot",
    "The newest snapshot",
    scope=Scope.NODE,
    produces={"application/octet-stream": "A snapshot file, verified by its own digest."},
    errors=(Code.NOT_FOUND, "busy"),
)(passed)
route(
    "GET",
    "/feed/entries",
    "Committed entries after a position",
    scope=Scope.NODE,
    produces={MSGPACK: "Messages as they come: entries with the digest chain after each, and where this node stands."},
    errors=(Code.NOT_FOUND, Code.CONFLICT, Code.INVALID, "busy"),
)(passed)
route(
    "GET",
    "/feed/backup",
    "A snapshot of now",
    scope=Scope.NODE,
    produces={"application/octet-stream": "A snapshot file with all that was acknowledged before it was asked for."},
    errors=(Code.NOT_FOUND, "busy", "no_leader", "stale"),
)(passed)
