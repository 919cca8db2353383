"""The way to one boot of a host: one connection, and when it is cut the next one.

Every call may be repeated: one that was cut off is sent again over the next connection. Leases are seconds of the
host's own boot-time clock: an answer says what that clock showed at some moment before the answer arrived here, so an
end that is reckoned from the arrival comes sooner there, never later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from executors import host
from executors.drivers.dialling import Terms, dial
from executors.drivers.link import Door, Link, Unreachable

log = logging.getLogger(__name__)

#: a host that answered within this time is there
REACHED_S = 15.0


class Rebooted(Exception):  # noqa: N818
    """The host was started anew: nothing of before lives there."""


class Line:
    """Belongs to one event loop. Whoever keeps it up calls `up` and, when that or a call of its own fails, `lost`."""

    def __init__(self, name: str, door: Door, terms: Terms, link: Link, hello: Mapping[str, Any]) -> None:
        """`hello` is the host's answer to it over `link`."""
        self.name = name
        self.boot_id = str(hello["boot_id"])
        self.hello = hello
        #: claims the host again over every further connection, once the agent has its incarnation
        self.incarnation: int | None = None
        self._door = door
        self._terms = terms
        self._link: Link | None = link
        self._ready = asyncio.Event()
        self._ready.set()
        self._over = False
        #: set when there is something to do for whoever keeps the line up
        self.wake = asyncio.Event()
        self.heard(hello)

    @classmethod
    async def open(cls, name: str, door: Door, terms: Terms) -> Line:
        """Make the first connection, however long it takes."""
        while True:
            try:
                link, hello = await dial(name, door, terms)
            except Unreachable:
                await asyncio.sleep(terms.book.wait_s(name))
                continue
            return cls(name, door, terms, link, hello)

    async def up(self) -> Link:
        """The connection, made again when there is none. Raises Unreachable, Rebooted and Declined."""
        if self._link is not None:
            return self._link
        link, hello = await dial(self.name, self._door, self._terms)
        try:
            self.heard(hello)
            if self.incarnation is not None:
                await link.call("claim", incarnation=self.incarnation, held=None)
        except BaseException:
            await link.close()
            raise
        self._link = link
        self._ready.set()
        return link

    async def lost(self, error: Unreachable) -> None:
        """End a connection that failed; returns when it is time for another one."""
        link, self._link = self._link, None
        self._ready.clear()
        if link is not None:
            log.warning("event=host_lost host=%s error=%s", self.name, error)
            self._terms.book.failed(self.name)
            await link.close()
        await asyncio.sleep(self._terms.book.wait_s(self.name))

    def end(self) -> None:
        """Whoever waits for the next connection learns that there will be none."""
        self._over = True
        self._ready.set()

    async def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            await self._link.close()

    def heard(self, answer: Mapping[str, Any]) -> None:
        """Note what every answer says of the host. Raises Rebooted."""
        if answer["boot_id"] != self.boot_id:
            raise Rebooted(f"{self.name} was started anew")
        now = self._terms.clock.boot_s()
        self._answered_s = now
        #: the host's clock less this machine's, never more than it is
        self._ahead_s = float(answer["boot_s"]) - now
        self.disk = host.Disk(*answer["disk"])

    def reached(self) -> bool:
        return self._link is not None and self._terms.clock.boot_s() - self._answered_s < REACHED_S

    def over_there(self, at_s: float) -> float:
        """A second of this machine's clock on the host's, at the latest."""
        return at_s + self._ahead_s

    async def call(self, op: str, body: bytes = b"", **fields: Any) -> Any:
        """A call that is repeated over the next connection when this one is cut.

        Raises Declined, and Unreachable when there will be no other connection.
        """
        while True:
            link = await self.connected()
            try:
                return await link.call(op, body, **fields)
            except Unreachable:
                self.cut(link)

    async def connected(self) -> Link:
        """The connection, once somebody keeps one up. Raises Unreachable when nobody does any more."""
        while True:
            await self._ready.wait()
            if self._over:
                raise Unreachable(f"nobody keeps the connection to {self.name} any more")
            if self._link is not None:
                return self._link
            self._ready.clear()

    def cut(self, link: Link) -> None:
        """A call over `link` failed; whoever keeps the line up finds it broken and makes another."""
        if self._link is link and not self._over:
            self._ready.clear()
            self.wake.set()
