"""The HTTP server of a node: uvicorn with our limits, and without what the node decides itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.connections import Connections
from ringrift_cluster.api.door import Door
from ringrift_cluster.api.services import Services

BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers, since the node decides when to leave, and with our door under TLS."""

    def __init__(self, config: uvicorn.Config, connections: Connections, *, clear_too: bool = False) -> None:
        super().__init__(config)
        self._connections = connections
        self._clear_too = clear_too

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        tls, kind = self.config.ssl, self.config.http_protocol_class
        if tls is None:
            await super().startup(sockets)
            return

        def connection() -> asyncio.Protocol:
            return kind(config=self.config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

        refusals = self._connections.refusals
        self.servers = [
            Door(one, tls, connection, refusals, clear_too=self._clear_too)  # type: ignore[misc]
            for one in sockets or ()
        ]
        self.started = True


def http_server(
    services: Services, connections: Connections, tls: ssl.SSLContext | None, *, clear_too: bool = False
) -> Server:
    """A server that is loaded and not started; `should_exit` ends it. `clear_too`: TLS is offered, not asked for."""
    server = Server(
        uvicorn.Config(
            create_app(services),
            http=connections.protocol(),
            ws="none",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=3,
            backlog=BACKLOG,
        ),
        connections,
        clear_too=clear_too,
    )
    server.config.load()
    server.config.ssl = tls
    return server
