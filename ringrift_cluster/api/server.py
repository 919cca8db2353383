"""The listening socket and the server that runs the application."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI

#: connections waiting to be accepted
BACKLOG = 1024
#: an idle connection is kept this long, a little longer than clients keep theirs
KEEP_ALIVE_S = 75
#: open streams and slow requests get this long when the node leaves
GRACE_S = 5


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 lets the kernel choose. Raises OSError when the port is taken.

    The protocol is named outright because asyncio turns Nagle's algorithm off only on sockets that say TCP;
    with it on, each small answer waits 40 ms for the peer's delayed acknowledgement.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for `await server.serve(sockets=[listener])` on the caller's event loop.

    Access logs are off: the meters in /metrics count every request for a fraction of the cost.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
