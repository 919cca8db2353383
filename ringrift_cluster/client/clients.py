"""The blocking and the awaiting client: two drivers of the same flows."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import update_wrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from ringrift_cluster.api.workload import Seen, Try
from ringrift_cluster.client import flows, streams
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Answer, Emit, Failed, Flow, Next, Open, Pause, Send, Step
from ringrift_cluster.tls import client_context
from statemachine.rows import Event

P = ParamSpec("P")
T = TypeVar("T")

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def _failed(error: httpx.HTTPError) -> Failed:
    return Failed(str(error) or type(error).__name__, sent=not isinstance(error, _UNSENT))


def _trust(addresses: str | Sequence[str], ca: Path | None) -> ssl.SSLContext:
    """Whom to trust: the cluster's authority, else the system's. Raises TlsError.

    Reading the system's bundle takes a while, so only where some address needs it.
    """
    if ca is not None:
        return client_context(ca)
    secure = any("https:" in address for address in ([addresses] if isinstance(addresses, str) else addresses))
    return httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _arguments(send: Send) -> dict[str, Any]:
    timeout = httpx.Timeout(send.timeout_s, connect=min(3.0, send.timeout_s))
    return {"params": send.params, "content": send.body, "headers": send.headers, "timeout": timeout}


def _stream_arguments(send: Send) -> dict[str, Any]:
    # A quiet log may say nothing for a long time; the server ends streams itself.
    return {**_arguments(send), "timeout": httpx.Timeout(send.timeout_s, read=90.0)}


def _taken(response: httpx.Response, body: bytes) -> Answer:
    return Answer(response.status_code, response.headers, body)


def _blocking(flow: Callable[Concatenate[Session, P], Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(flow(self.session, *args, **kwargs))

    update_wrapper(call, flow)
    return call


def _awaited(
    flow: Callable[Concatenate[Session, P], Flow[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run(flow(self.session, *args, **kwargs))

    update_wrapper(call, flow)
    return call


class Client:
    """A cluster, blocking.

        with Client("a:8770,b:8770,c:8770") as cluster:
            cluster.work_add(NewWork(work_type="selfplay", config="hex8_2p"))

    Addresses are URLs or host:port; `ca` is the file of the cluster's authority where it speaks TLS. Calls raise
    ClientError; `timeout_s` bounds a request, `retry_s` a call.
    Not to be shared between threads.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str | None = None,
        ca: Path | None = None,
        timeout_s: float = 10.0,
        retry_s: float = 30.0,
        contact_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.session = Session(addresses, token=token, timeout_s=timeout_s, retry_s=retry_s, contact_s=contact_s)
        self._http = httpx.Client(transport=transport, verify=_trust(addresses, ca))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its result."""
        try:
            step = next(flow)
            while True:
                step = flow.send(self._perform(step))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # a Flow[T] returns T

    def _perform(self, step: Step) -> object:
        match step:
            case Send():
                try:
                    response = self._http.request(step.method, step.url, **_arguments(step))
                except httpx.HTTPError as error:
                    return _failed(error)
                return _taken(response, response.content)
            case Pause():
                time.sleep(step.seconds)  # the back-off itself, in the blocking client; nothing is polled
                return None
        raise TypeError(f"{type(step).__name__} belongs into a stream")

    def stream(self, flow: Flow[None]) -> Iterator[Any]:
        """Drive a flow and yield what it emits."""
        response: httpx.Response | None = None
        chunks: Iterator[bytes] = iter(())
        reply: object = None
        try:
            while True:
                try:
                    step = flow.send(reply)
                except StopIteration:
                    return
                reply = None
                match step:
                    case Emit():
                        yield step.value
                    case Open(request):
                        if response is not None:
                            response.close()
                        try:
                            built = self._http.build_request(request.method, request.url, **_stream_arguments(request))
                            response = self._http.send(built, stream=True)
                            reply = _taken(response, b"" if response.status_code == 200 else response.read())
                            chunks = response.iter_bytes()
                        except httpx.HTTPError as error:
                            reply = _failed(error)
                    case Next():
                        try:
                            reply = next(chunks, None)
                        except httpx.HTTPError as error:
                            reply = _failed(error)
                    case _:
                        reply = self._perform(step)
        finally:
            if response is not None:
                response.close()

    status = _blocking(flows.status)
    raft_state = _blocking(flows.raft_state)
    leader = _blocking(flows.leader)
    peers = _blocking(flows.peers)
    peer = _blocking(flows.peer)
    work_list = _blocking(flows.work_list)
    work = _blocking(flows.work)
    why = _blocking(flows.why)
    pending = _blocking(flows.pending)
    jobs = _blocking(flows.jobs)
    job = _blocking(flows.job)
    elo = _blocking(flows.elo)
    models = _blocking(flows.models)
    model = _blocking(flows.model)
    gauntlet_results = _blocking(flows.gauntlet_results)
    settings = _blocking(flows.settings)
    setting = _blocking(flows.setting)
    dump = _blocking(flows.dump)
    work_add = _blocking(flows.work_add)
    work_add_many = _blocking(flows.work_add_many)
    work_claim = _blocking(flows.work_claim)
    work_start = _blocking(flows.work_start)
    work_renew = _blocking(flows.work_renew)
    work_complete = _blocking(flows.work_complete)
    work_fail = _blocking(flows.work_fail)
    work_cancel = _blocking(flows.work_cancel)
    work_retry = _blocking(flows.work_retry)
    promote = _blocking(flows.promote)
    rollback = _blocking(flows.rollback)
    void_match = _blocking(flows.void_match)
    gauntlet_run = _blocking(flows.gauntlet_run)
    ssh_tournament_run = _blocking(flows.ssh_tournament_run)
    ssh_tournament_cancel = _blocking(flows.ssh_tournament_cancel)
    ssh_tournament_status = _blocking(flows.ssh_tournament_status)
    change_setting = _blocking(flows.change_setting)
    drain = _blocking(flows.drain)
    undrain = _blocking(flows.undrain)
    artifacts = _blocking(flows.artifacts)
    manifest = _blocking(flows.manifest)
    node_files = _blocking(flows.node_files)
    sync_status = _blocking(flows.sync_status)
    sync = _blocking(flows.sync)
    gpus = _blocking(flows.gpus)
    drain_gpu = _blocking(flows.drain_gpu)
    undrain_gpu = _blocking(flows.undrain_gpu)
    voters = _blocking(flows.voters)
    add_voter = _blocking(flows.add_voter)
    remove_voter = _blocking(flows.remove_voter)
    remove_peer = _blocking(flows.remove_peer)
    pause = _blocking(flows.pause)
    tokens = _blocking(flows.tokens)
    token_create = _blocking(flows.token_create)
    token_revoke = _blocking(flows.token_revoke)
    transfer_leadership = _blocking(flows.transfer_leadership)
    shutdown = _blocking(flows.shutdown)
    restart = _blocking(flows.restart)
    channels = _blocking(flows.channels)

    def events(
        self, *, since: int = 0, follow: bool = False, kinds: Sequence[str] = (), key: str = ""
    ) -> Iterator[Event]:
        return self.stream(streams.events(self.session, since=since, follow=follow, kinds=kinds, key=key))

    def job_log(self, job_id: str, *, tail: int = 200, follow: bool = False, stream: str = "stdout") -> Iterator[bytes]:
        return self.stream(streams.job_log(self.session, job_id, tail=tail, follow=follow, stream=stream))

    def try_template(self, wanted: Try) -> Iterator[Seen]:
        return self.stream(streams.try_template(self.session, wanted))

    def backup(self) -> Iterator[bytes]:
        return self.stream(streams.backup(self.session))


class AsyncClient:
    """The same cluster, awaiting: every method of Client, to be awaited or iterated with `async for`."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        token: str | None = None,
        ca: Path | None = None,
        timeout_s: float = 10.0,
        retry_s: float = 30.0,
        contact_s: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.session = Session(addresses, token=token, timeout_s=timeout_s, retry_s=retry_s, contact_s=contact_s)
        self._http = httpx.AsyncClient(transport=transport, verify=_trust(addresses, ca))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, flow: Flow[T]) -> T:
        """Drive a flow to its result."""
        try:
            step = next(flow)
            while True:
                step = flow.send(await self._perform(step))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # a Flow[T] returns T

    async def _perform(self, step: Step) -> object:
        match step:
            case Send():
                try:
                    response = await self._http.request(step.method, step.url, **_arguments(step))
                except httpx.HTTPError as error:
                    return _failed(error)
                return _taken(response, response.content)
            case Pause():
                await asyncio.sleep(step.seconds)
                return None
        raise TypeError(f"{type(step).__name__} belongs into a stream")

    async def stream(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """Drive a flow and yield what it emits."""
        response: httpx.Response | None = None
        chunks: AsyncIterator[bytes] | None = None
        reply: object = None
        try:
            while True:
                try:
                    step = flow.send(reply)
                except StopIteration:
                    return
                reply = None
                match step:
                    case Emit():
                        yield step.value
                    case Open(request):
                        if response is not None:
                            await response.aclose()
                        try:
                            built = self._http.build_request(request.method, request.url, **_stream_arguments(request))
                            response = await self._http.send(built, stream=True)
                            reply = _taken(response, b"" if response.status_code == 200 else await response.aread())
                            chunks = response.aiter_bytes()
                        except httpx.HTTPError as error:
                            reply = _failed(error)
                    case Next():
                        try:
                            reply = await anext(chunks, None) if chunks is not None else None
                        except httpx.HTTPError as error:
                            reply = _failed(error)
                    case _:
                        reply = await self._perform(step)
        finally:
            if response is not None:
                await response.aclose()

    status = _awaited(flows.status)
    raft_state = _awaited(flows.raft_state)
    leader = _awaited(flows.leader)
    peers = _awaited(flows.peers)
    peer = _awaited(flows.peer)
    work_list = _awaited(flows.work_list)
    work = _awaited(flows.work)
    why = _awaited(flows.why)
    pending = _awaited(flows.pending)
    jobs = _awaited(flows.jobs)
    job = _awaited(flows.job)
    elo = _awaited(flows.elo)
    models = _awaited(flows.models)
    model = _awaited(flows.model)
    gauntlet_results = _awaited(flows.gauntlet_results)
    settings = _awaited(flows.settings)
    setting = _awaited(flows.setting)
    dump = _awaited(flows.dump)
    work_add = _awaited(flows.work_add)
    work_add_many = _awaited(flows.work_add_many)
    work_claim = _awaited(flows.work_claim)
    work_start = _awaited(flows.work_start)
    work_renew = _awaited(flows.work_renew)
    work_complete = _awaited(flows.work_complete)
    work_fail = _awaited(flows.work_fail)
    work_cancel = _awaited(flows.work_cancel)
    work_retry = _awaited(flows.work_retry)
    promote = _awaited(flows.promote)
    rollback = _awaited(flows.rollback)
    void_match = _awaited(flows.void_match)
    gauntlet_run = _awaited(flows.gauntlet_run)
    ssh_tournament_run = _awaited(flows.ssh_tournament_run)
    ssh_tournament_cancel = _awaited(flows.ssh_tournament_cancel)
    ssh_tournament_status = _awaited(flows.ssh_tournament_status)
    change_setting = _awaited(flows.change_setting)
    drain = _awaited(flows.drain)
    undrain = _awaited(flows.undrain)
    artifacts = _awaited(flows.artifacts)
    manifest = _awaited(flows.manifest)
    node_files = _awaited(flows.node_files)
    sync_status = _awaited(flows.sync_status)
    sync = _awaited(flows.sync)
    gpus = _awaited(flows.gpus)
    drain_gpu = _awaited(flows.drain_gpu)
    undrain_gpu = _awaited(flows.undrain_gpu)
    voters = _awaited(flows.voters)
    add_voter = _awaited(flows.add_voter)
    remove_voter = _awaited(flows.remove_voter)
    remove_peer = _awaited(flows.remove_peer)
    pause = _awaited(flows.pause)
    tokens = _awaited(flows.tokens)
    token_create = _awaited(flows.token_create)
    token_revoke = _awaited(flows.token_revoke)
    transfer_leadership = _awaited(flows.transfer_leadership)
    shutdown = _awaited(flows.shutdown)
    restart = _awaited(flows.restart)
    channels = _awaited(flows.channels)

    def events(
        self, *, since: int = 0, follow: bool = False, kinds: Sequence[str] = (), key: str = ""
    ) -> AsyncIterator[Event]:
        return self.stream(streams.events(self.session, since=since, follow=follow, kinds=kinds, key=key))

    def job_log(
        self, job_id: str, *, tail: int = 200, follow: bool = False, stream: str = "stdout"
    ) -> AsyncIterator[bytes]:
        return self.stream(streams.job_log(self.session, job_id, tail=tail, follow=follow, stream=stream))

    def try_template(self, wanted: Try) -> AsyncIterator[Seen]:
        return self.stream(streams.try_template(self.session, wanted))

    def backup(self) -> AsyncIterator[bytes]:
        return self.stream(streams.backup(self.session))
