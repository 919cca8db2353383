"""The process around a node: its data directory, its HTTP socket, its exit code.

node = Node(config, socket, seat)       again for each seat that the cluster gives it
await node.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ringrift_cluster import interpreter, observability
from ringrift_cluster.api.server import BACKLOG
from ringrift_cluster.node import EXIT_SETUP, Node, SetupError
from ringrift_cluster.raft.errors import RaftError, Removed
from ringrift_cluster.seat import Seat, seat_of, set_aside
from ringrift_cluster.settings import NodeConfig, SettingsError

log = logging.getLogger("ringrift.node")


def serve(config: NodeConfig) -> int:
    """Run a node until it is told to leave; returns the process's exit code."""
    observability.configure(config.node_id, config.log_level)
    interpreter.tune()
    try:
        with _data_dir(config.data_dir), _listener(config) as listener:
            return asyncio.run(_serve(config, listener))
    except (SetupError, SettingsError, RaftError) as error:
        sys.stderr.write(f"ringrift-node: {error}\n")
        return EXIT_SETUP


@contextlib.contextmanager
def _data_dir(path: Path) -> Iterator[None]:
    """Hold the data directory for this process. Raises SetupError."""
    lock: BinaryIO | None = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a+b")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SetupError(
            f"the data directory {path} is in use by another node process; stop it, or give another --data-dir"
        ) from error
    except OSError as error:
        raise SetupError(
            f"the data directory {path} cannot be used ({error.strerror}); give another --data-dir"
        ) from error
    with lock:
        yield


@contextlib.contextmanager
def _listener(config: NodeConfig) -> Iterator[socket.socket]:
    """The HTTP socket, taken before anything else starts. Raises SetupError."""
    family = socket.AF_INET6 if ":" in config.bind else socket.AF_INET
    # TCP is named outright: asyncio turns Nagle's algorithm off only on sockets that say so, and with it on each
    # small answer waits 40 ms for the client's delayed acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.bind, config.port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise SetupError(
                f"port {config.port} on {config.bind} cannot be listened on ({error.strerror}); "
                "end what uses it, or give another --port"
            ) from error
        listener.setblocking(False)
        yield listener


async def _serve(config: NodeConfig, listener: socket.socket) -> int:
    """Compose the node for the seat it has, and again when the cluster gives it another one. Raises SetupError."""
    seat, log_beside = seat_of(config), None
    while True:
        # A server closes the socket it is given; connections that come in between wait for the next one.
        node = Node(config, listener.dup(), seat, log_beside)
        try:
            code = await node.run()
        except Removed as removed:
            # It was removed just before it was started.
            node.next_seat, code = Seat.FOLLOWER, 0
            log.warning('event=voter_removed detail="%s"', removed)
        if node.next_seat is None:
            return code
        log.warning('event=seat_changed from=%s to=%s reason="%s"', seat, node.next_seat, node.reason)
        seat, log_beside = node.next_seat, node.log_beside
        if seat is Seat.FOLLOWER:
            aside = set_aside(config.data_dir)
            log.warning('event=log_set_aside path="%s"', aside)
