"""What the agent asks of the machine on which its attempts live.

    find -> has_ended                                                                  after a restart of the node
    claim                                                                              once for an agent
    furnish -> start -> (renew, stop, kill, put_down)* -> gone -> gather -> clear      one attempt

Folders are named by their path on this machine. A driver of another machine keeps that folder like the one over
there: logs and progress while the program runs, everything that counts once it has ended, so that nobody who reads
the folder need know where the program is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from executors import host
from executors.folder import Folder, Seat
from executors.processes import Identity, Order
from statemachine.settings import Template


class Driver(Protocol):
    """One machine. Orders (`stop`, `kill`, `put_down`, `renew`) return at once; the others may wait for the machine."""

    #: the machine's present boot
    boot_id: str

    def reached(self) -> bool:
        """Whether the machine answers; a peer whose machine does not gives no sign of life."""
        ...

    def room(self) -> int:
        """How many more attempts may be begun now, whatever the machine's own slots say."""
        ...

    def facts(self) -> host.Facts:
        """What does not change while the agent runs. Blocks."""
        ...

    def disks(self) -> tuple[host.Disk, ...]:
        """The disks that an attempt fills, the machine's own first. Blocks."""
        ...

    async def claim(self, incarnation: int, held: Collection[Path]) -> None:
        """Be the one agent that starts anything there, and end what it does not hold.

        Called once, when the cluster has taken the agent and nothing is furnished yet. Raises OSError.
        """
        ...

    def seat(self, folder: Folder) -> Seat:
        """Where an attempt's program finds its folder, and what it starts from."""
        ...

    async def furnish(
        self, folder: Folder, files: Mapping[str, Path], template: Template, checkpoint: Path | None
    ) -> None:
        """Bring the folder's content, the inputs and a packed checkpoint to where the program runs; may be cancelled.

        Raises NoTree and OSError.
        """
        ...

    async def start(self, folder: Path, order: Order, lease_ends_at_s: float) -> Identity:
        """Start the keeper. Raises OSError, and nothing runs then."""
        ...

    async def find(self, folder: Path, known: Identity) -> Identity | None:
        """The living keeper of an attempt, by its handle, or by its mark when the handle's pid is 0."""
        ...

    async def has_ended(self, folder: Path) -> bool:
        """Whether a keeper that does not live (any more) wrote how its program ended."""
        ...

    async def gone(self, folder: Path, process: Identity) -> None:
        """Return when the keeper does not run any more."""
        ...

    def stop(self, folder: Path, process: Identity) -> None:
        """Have the keeper end its program with grace."""
        ...

    def kill(self, folder: Path, process: Identity) -> None:
        """Have the keeper end its program at once."""
        ...

    def put_down(self, folder: Path, process: Identity) -> None:
        """End a keeper that did not obey, and its program."""
        ...

    def renew(self, folder: Path, ends_at_s: float) -> None:
        """Move the end of the lease, in seconds of this machine's boot-time clock. Raises OSError."""
        ...

    async def end(self, folder: Path, process: Identity) -> None:
        """End a keeper and its program, and return when they are gone."""
        ...

    async def end_leftovers(self, folder: Path) -> bool:
        """End what an attempt left behind whose keeper is gone; false when something survived that."""
        ...

    async def gather(self, folder: Path, template: Template) -> None:
        """Bring what the ended attempt left into its folder here; what its keeper could not end is ended.

        Raises OSError when something that counts cannot be had whole.
        """
        ...

    async def checkpoint(self, folder: Folder) -> Path | None:
        """What an ended attempt has in its checkpoint, packed; None when it lies here as it is. Raises OSError."""
        ...

    def ask(self, folder: Path, template: Template) -> bytes:
        """What the template's result command prints; blocks. Raises NothingLeft."""
        ...

    async def clear(self, folder: Folder, *, checkpoint: str = "") -> None:
        """Drop what takes room; with a work id its checkpoint as well."""
        ...
