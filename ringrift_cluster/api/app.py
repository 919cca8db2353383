"""The application: every route of the table, bound to the services of one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ringrift_cluster.api import (
    admin,
    artifacts,
    dump,
    elo,
    events,
    feed,
    gauntlets,
    gone,
    gpus,
    jobs,
    metrics,
    models,
    openapi,
    peers,
    probes,
    propose,
    raft,
    relay,
    reports,
    settings,
    ssh_tournaments,
    status,
    sync,
    tokens,
    voters,
    work,
    workload,
)
from ringrift_cluster.api.endpoint import Bound, Call, Reply, position, problem_reply, send_reply
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.services import Services
from statemachine import values
from statemachine.errors import Code

TITLE = "ringrift-cluster"
DESCRIPTION = (
    "The control plane of a selfplay and training fleet: one replicated log, every node answers. Reads say how "
    "consistent they are (`consistency`, `index`, `wait`); every answer carries `Ringrift-Index`. Errors are "
    "problem documents (RFC 9457) with a stable `code`; GET /problems lists them."
)

#: in the order in which they are matched: the hot ones first, catch-all paths last within their file
GROUPS = (
    reports.route,
    feed.route,
    work.route,
    peers.route,
    gpus.route,
    propose.route,
    status.route,
    probes.route,
    metrics.route,
    jobs.route,
    elo.route,
    models.route,
    gauntlets.route,
    ssh_tournaments.route,
    raft.route,
    voters.route,
    events.route,
    settings.route,
    artifacts.route,
    sync.route,
    dump.route,
    relay.route,
    workload.route,
    admin.route,
    tokens.route,
)


class Api(FastAPI):
    """FastAPI with the document of our own table, and a short way to paths without a name in them.

    A fixed path is found in a dictionary and answered inside the error middleware alone; everything else takes
    the router and its stack. That saves two thirds of the time of a small request.
    """

    def __init__(self, document: dict[str, Any], fixed: Mapping[tuple[str, str], Bound], mistake: Any) -> None:
        super().__init__(title=TITLE, version=document["info"]["version"], openapi_url=None, redirect_slashes=False)
        self._document = document
        self._fixed = fixed
        self._short_way = ServerErrorMiddleware(self._answer_fixed, handler=mistake)

    def openapi(self) -> dict[str, Any]:
        return self._document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"], scope["path"]) in self._fixed:
            await self._short_way(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer_fixed(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._fixed[scope["method"], scope["path"]](scope, receive, send)


@cache
def _document(version: str) -> dict[str, Any]:
    return openapi.document(GROUPS, title=TITLE, version=version, description=DESCRIPTION)


def create_app(services: Services) -> FastAPI:
    """The HTTP face of one node."""
    document = _document(services.version)
    bound = [Bound(endpoint, services) for group in GROUPS for endpoint in group.endpoints]
    fixed = {(one.endpoint.method, one.endpoint.path): one for one in bound if not one.endpoint.path_arguments}
    mistake = _mistake(services)
    services.face = app = Api(document, fixed, mistake)
    app.add_exception_handler(HTTPException, _no_route(services))
    app.add_exception_handler(Exception, mistake)
    encoded = Reply(msgspec.json.encode(document))
    routes: list[Route] = [
        *(Route(one.endpoint.path, one, methods=[one.endpoint.method]) for one in bound),
        Route("/openapi.json", _Fixed(services, lambda _: encoded, guarded=True), methods=["GET"]),
        *(Route(path, _Fixed(services, partial(problem_reply, gone.problem(path), services))) for path in gone.GONE),
    ]
    # The first path that matches answers, so one with a name in it must not hide a fixed one.
    routes.sort(key=lambda route: "{" in route.path)
    app.router.routes.extend(routes)
    return app


class _Fixed:
    """Answers everything with what `make` gives for the path."""

    def __init__(self, services: Services, make: Callable[[str], Reply], *, guarded: bool = False) -> None:
        self._services = services
        self._make = make
        self._locks = services.locks if guarded else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            if self._locks is not None:
                self._locks.admit(Call(self._services, scope, receive), values.Scope.READ, scope["path"])
            made = self._make(scope["path"])
        except Problem as problem:
            made = problem_reply(problem, self._services, scope["path"])
        await send_reply(made, scope, send, position(self._services))


def _answer(services: Services, problem: Problem, request: Request) -> Response:
    made = problem_reply(problem, services, request.url.path)
    response = Response(made.body, made.status, media_type=made.media_type)
    response.raw_headers.extend([*position(services), *made.headers])
    return response


def _no_route(services: Services) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        wrong_method = isinstance(error, HTTPException) and error.status_code == 405
        if wrong_method:
            problem = Problem(
                "method_not_allowed", f"{request.url.path} does not take {request.method}; see /openapi.json"
            )
        else:
            problem = Problem(Code.NOT_FOUND, f"no path {request.url.path!r} is served; see /openapi.json")
        return _answer(services, problem, request)

    return answer


def _mistake(services: Services) -> Any:
    async def answer(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the client learns only where to look.
        text = f"{request.method} {request.url.path} failed with {type(error).__name__}; the node's log says more"
        return _answer(services, Problem("unexpected", text), request)

    return answer
