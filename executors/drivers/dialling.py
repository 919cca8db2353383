"""What all hosts of one gateway share, and how one of them is called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from executors import host
from executors.book import Book
from executors.drivers.link import Declined, Door, Link, Unreachable
from executors.pace import Pace
from executors.ports import Clock

log = logging.getLogger(__name__)

#: how often a host is looked at while attempts live there
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What all hosts of one gateway share, and what one of them may take."""

    clock: Clock
    #: threads for the files here
    disk: Executor
    #: connections that are being made, and files that are being sent or fetched, at a time
    dialling: asyncio.Semaphore
    moving: asyncio.Semaphore
    book: Book
    pace: Pace
    #: how many more attempts may be begun on any host
    room: Callable[[], int]
    #: inputs that a host keeps for later attempts
    files_kept_bytes: int = 20 * host.GIB
    checkpoints_kept_s: float = 7 * 86_400.0
    look_s: float = LOOK_S


async def dial(name: str, door: Door, terms: Terms) -> tuple[Link, dict[str, Any]]:
    """One try to connect, when it is this host's time; the connection and the host's answer to hello.

    Raises Unreachable.
    """
    link = None
    async with terms.dialling:
        try:
            link = await Link.open(door)
            hello = await link.call("hello")
        except (Unreachable, Declined) as error:
            if link is not None:
                await link.close()
            terms.book.failed(name)
            log.warning("event=host_unreachable host=%s retry_s=%.1f error=%s", name, terms.book.wait_s(name), error)
            raise error if isinstance(error, Unreachable) else Unreachable(str(error)) from error
    if not hello["boot_id"]:
        await link.close()
        terms.book.failed(name)
        raise Unreachable(f"{name} is {hello['platform']}; hosts without an agent run Linux")
    log.info("event=host_reached host=%s python=%s", name, hello["version"])
    return link, hello
