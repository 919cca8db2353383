"""The HTTP server of a node: uvicorn with our limits, and without what the node decides itself."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

import uvicorn

from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.connections import Connections
from ringrift_cluster.api.services import Services

BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the node decides when to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(services: Services, connections: Connections, tls: ssl.SSLContext | None) -> Server:
    """A server that is loaded and not started; `should_exit` ends it."""
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
        )
    )
    server.config.load()
    server.config.ssl = tls
    return server
