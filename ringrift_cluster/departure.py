"""How a node leaves: the first reason counts, with its exit code, the jobs it stops and the seat that follows."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from ringrift_cluster.api.services import ShutdownOrder
from ringrift_cluster.seat import Seat

log = logging.getLogger("ringrift.node")

EXIT_SETUP = 2
#: the replica stopped by itself (damaged file, divergence, full disk): restarting alone does not mend it
EXIT_HALTED = 70
#: start it again: its voters are of another cluster now, or it could not begin anew since its disk hung
EXIT_AGAIN = 75


class Departure:
    """Of one node. Nothing has happened while it has not `begun`."""

    def __init__(self, *, stop_jobs: bool) -> None:
        """`stop_jobs`: whether a signal stops the jobs too."""
        self._stop_jobs = stop_jobs
        self._begun = asyncio.Event()
        self._signalled = False
        self.order = ShutdownOrder(reason="", stop_jobs=stop_jobs)
        self.exit_code = 0
        #: what the node is composed for next, once this composition has ended
        self.next_seat: Seat | None = None

    def begun(self) -> bool:
        return self._begun.is_set()

    async def wait(self) -> ShutdownOrder:
        """Return when it has begun."""
        await self._begun.wait()
        return self.order

    @property
    def restarts(self) -> bool:
        """Whether the node's process is to begin anew."""
        return self.order.restart and not self.exit_code and not self._signalled

    @property
    def code_when_stuck(self) -> int:
        """The exit code of a process that cannot go on by itself, in its next seat or anew.

        That is left to whoever looks after it, who takes code 0 for a wish to be gone.
        """
        return self.exit_code or (EXIT_AGAIN if self.restarts or self.next_seat is not None else 0)

    def begin(self, order: ShutdownOrder) -> None:
        if not self.begun():
            self.order = order
            self._begun.set()

    def obey_signal(self, number: int) -> None:
        """The first one is an orderly leave; a second one does not wait for it. Jobs stay under their keepers."""
        if self._signalled:
            log.error("event=node_cut_short signal=%d", number)
            os._exit(128 + number)
        self._signalled = True
        self.next_seat = None
        self.begin(ShutdownOrder(signal.Signals(number).name, self._stop_jobs))

    def change_seat(self, seat: Seat, reason: str) -> None:
        """Leave to be composed anew for another seat."""
        if not self.begun():
            self.next_seat = seat
            self.begin(ShutdownOrder(reason, stop_jobs=False))

    def halt(self, sentence: str) -> None:
        """Leave because the replica stopped by itself."""
        self.fall("replica_halted", sentence, EXIT_HALTED)

    def fall(self, event: str, sentence: str, code: int) -> None:
        """Leave because of a fault, with a sentence for whoever looks."""
        log.critical("event=%s detail=%s", event, sentence)
        sys.stderr.write(f"ringrift-node: {sentence}\n")
        self.exit_code = self.exit_code or code
        self.begin(ShutdownOrder(event, stop_jobs=False))
