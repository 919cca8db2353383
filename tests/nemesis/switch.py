"""The switch that all nodes are plugged into: passes, drops and delays their frames.

    python -m tests.nemesis.switch SEED NAME=INTERFACE=MAC ...

It runs in a network namespace of its own, takes one line of rules (see links.py) after another on stdin, confirms each
with a line, and leaves when stdin closes. A switch of our own instead of tc's netem and a packet filter: many kernels
have neither, and one place decides cuts, loss and delay for each direction of each pair.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import select
import socket
import sys
import time

from tests.nemesis.links import Link, Rule, begins_connection, decode

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
#: struct virtio_net_hdr: tells how a large or unfinished frame is to be cut and summed, and is passed on with it
VNET_BYTES = 10
FRAME_BYTES = 1 << 17
#: frames waiting for their delay
MAX_WAITING = 20_000


def port(interface: str) -> socket.socket:
    plug = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    plug.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    plug.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    plug.bind((interface, 0))
    plug.setblocking(False)
    return plug


class Switch:
    def __init__(self, seed: int, plugs: dict[str, tuple[socket.socket, bytes]]) -> None:
        self._rng = random.Random(seed)
        self._ports = {plug.fileno(): (name, plug) for name, (plug, _) in plugs.items()}
        self._by_mac = {mac: (name, plug) for name, (plug, mac) in plugs.items()}
        self._rules: dict[Link, Rule] = {}
        self._waiting: list[tuple[float, int, socket.socket, bytes]] = []
        self._order = itertools.count()

    def run(self) -> None:
        poll = select.epoll()
        poll.register(0, select.EPOLLIN)
        for number in self._ports:
            poll.register(number, select.EPOLLIN)
        rest = b""
        while True:
            pause = max(self._waiting[0][0] - time.monotonic(), 0.0) if self._waiting else -1
            for number, _ in poll.poll(pause):
                if number != 0:
                    self._drain(*self._ports[number])
                    continue
                said = os.read(0, 1 << 16)
                if not said:
                    return
                *lines, rest = (rest + said).split(b"\n")
                for line in lines:
                    self._rules = decode(line.decode())
                    os.write(1, b"ok\n")
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, _, plug, frame = heapq.heappop(self._waiting)
                _send(plug, frame)

    def _drain(self, source: str, plug: socket.socket) -> None:
        """Take what arrived at one port, but not so much that others starve."""
        for _ in range(64):
            try:
                frame = plug.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # The interface went down: its namespace is being taken away.
                return
            to = self._by_mac.get(frame[VNET_BYTES : VNET_BYTES + 6])
            if to is None:
                # Everybody knows everybody's hardware address, so nothing needs to be asked of all.
                continue
            target, out = to
            rule = self._rules.get((source, target))
            if rule is None:
                _send(out, frame)
            elif rule.shut and begins_connection(frame[VNET_BYTES:]):
                continue
            elif self._rng.random() >= rule.loss:
                self._later(rule, out, frame)

    def _later(self, rule: Rule, out: socket.socket, frame: bytes) -> None:
        wait_s = max(rule.delay_ms + self._rng.uniform(-rule.jitter_ms, rule.jitter_ms), 0.0) / 1000
        if wait_s == 0.0:
            _send(out, frame)
        elif len(self._waiting) < MAX_WAITING:
            heapq.heappush(self._waiting, (time.monotonic() + wait_s, next(self._order), out, frame))


def _send(plug: socket.socket, frame: bytes) -> None:
    try:
        plug.send(frame)
    except OSError:
        # A full queue, or an interface that is being taken away: a frame is lost, as on any network.
        return


def main() -> None:
    seed, *ports = sys.argv[1:]
    plugs = {}
    for spec in ports:
        name, interface, mac = spec.split("=")
        plugs[name] = (port(interface), bytes.fromhex(mac.replace(":", "")))
    os.write(1, b"ready\n")
    Switch(int(seed), plugs).run()


if __name__ == "__main__":
    main()
