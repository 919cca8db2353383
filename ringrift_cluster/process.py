"""The process around a node: its data directory, its HTTP socket, its exit code.

node = Node(config, socket, seat)       again for each seat that the cluster gives it
await node.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ringrift_cluster import interpreter, observability
from ringrift_cluster.api.server import BACKLOG
from ringrift_cluster.departure import EXIT_SETUP
from ringrift_cluster.members import SettingsError
from ringrift_cluster.node import Node, SetupError
from ringrift_cluster.raft.errors import RaftError, Removed
from ringrift_cluster.seat import Seat, seat_of, set_aside
from ringrift_cluster.settings import NodeConfig

log = logging.getLogger("ringrift.node")


def serve(config: NodeConfig) -> int:
    """Run a node until it is told to leave; returns the process's exit code."""
    observability.configure(config.node_id, config.log_level)
    interpreter.tune()
    try:
        with _data_dir(config.data_dir), _listener(config) as listener:
            left = asyncio.run(_serve(config, listener))
    except (SetupError, SettingsError, RaftError) as error:
        sys.stderr.write(f"ringrift-node: {error}\n")
        return EXIT_SETUP
    return _begin_anew() if left.restart else left.code


class Left(NamedTuple):
    """How a node left: its exit code, or that its process is to begin anew."""

    code: int
    restart: bool


def _begin_anew() -> int:
    """Become a new process under the same pid, so that nobody who looks after this one notices; its exit code if not.

    Whatever was opened here closes with it; the keepers of jobs stay its children and are adopted.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    log.info("event=node_begins_anew pid=%d", os.getpid())
    try:
        os.execv(sys.executable, command)  # noqa: S606 - the very command this process was started with
    except OSError as error:
        sys.stderr.write(f"ringrift-node: {sys.executable} cannot be started again: {error.strerror}\n")
        return EXIT_SETUP


@contextlib.contextmanager
def _data_dir(path: Path) -> Iterator[None]:
    """Hold the data directory for this process. Raises SetupError."""
    lock: BinaryIO | None = None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
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


async def _serve(config: NodeConfig, listener: socket.socket) -> Left:
    """Compose the node for the seat it has, and again when the cluster gives it another one. Raises SetupError."""
    seat, log_beside = seat_of(config), None
    while True:
        # A server closes the socket it is given; connections that come in between wait for the next one.
        node = Node(config, listener.dup(), seat, log_beside)
        try:
            code = await node.run()
        except Removed as removed:
            # It was removed just before it was started.
            node.departure.next_seat, code = Seat.FOLLOWER, 0
            log.warning("event=voter_removed detail=%s", removed)
        left = node.departure
        if left.next_seat is None:
            return Left(code, left.restarts)
        log.warning("event=seat_changed from=%s to=%s reason=%s", seat, left.next_seat, left.order.reason)
        seat, log_beside = left.next_seat, node.beside.log
        if seat is Seat.FOLLOWER:
            aside = set_aside(config.data_dir)
            log.warning("event=log_set_aside path=%s", aside)
