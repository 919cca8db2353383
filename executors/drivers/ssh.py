"""A host that has only an SSH server: attempts run there under the same keeper, their folders are kept here as well.

    claim -> look, look, look ...        over one line, whose connection is made again when it is cut

What an attempt is lies on the host: its keeper in a session of its own, its lease in a file that is renewed by every
look. So a connection, this driver and its node may all end, and the attempt goes on until its lease is over. A look
passes on leases and signals, and brings what was added to logs and progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from executors import collect, host, shim, templates
from executors.collect import NothingLeft
from executors.drivers.bringing import Carrier, checked, found_by, named_outputs
from executors.drivers.dialling import Terms
from executors.drivers.line import Line
from executors.drivers.link import Declined, Door, Link, Unreachable
from executors.drivers.lives import Lives
from executors.drivers.outpost.checkpoints import PACKED
from executors.drivers.outpost.frames import MAX_BODY_BYTES
from executors.drivers.outpost.root import Superseded
from executors.drivers.remote_gpus import scan_of
from executors.folder import Folder, Seat, file_name
from executors.gpus import Scan
from executors.keepers import NoTree
from executors.outcome import MAX_RESULT_BYTES
from executors.processes import Identity, Order
from statemachine.settings import Template

log = logging.getLogger(__name__)
T = TypeVar("T")

#: how often the host is looked at while no attempts live there
IDLE_LOOK_S = 5.0
GPUS_S = 30.0
#: what may take minutes over there is answered within this time, which counts from the request
PACK_S = 600.0
TIDY_S = 3600.0


class Ssh:
    """The driver of one host, for one boot of it. `run` keeps the connection; everything belongs to its loop."""

    def __init__(self, line: Line, data_dir: Path, terms: Terms) -> None:
        self.name = line.name
        self.boot_id = line.boot_id
        self._line = line
        self._data_dir = data_dir
        self._terms = terms
        self._hello = line.hello
        self._root = Path(str(line.hello["root"]))
        self._loop = asyncio.get_running_loop()
        self._gpus = str(line.hello["gpus"])
        self._gpus_s = self._tidied_s = terms.clock.boot_s()
        self._carrier = Carrier(line.call, terms.disk, terms.moving, terms.pace, line.name)
        self._lives = Lives(line, self._carrier)
        self._errands: set[asyncio.Task[None]] = set()
        self._superseded: Declined | None = None

    @classmethod
    async def open(cls, name: str, door: Door, data_dir: Path, terms: Terms) -> Ssh:
        """Make the first connection, however long it takes."""
        return cls(await Line.open(name, door, terms), data_dir, terms)

    # --- looks ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at the host and keep the connection, until cancelled. Raises Rebooted, and Declined when superseded."""
        try:
            while True:
                if self._superseded is not None:
                    raise self._superseded
                try:
                    link = await self._line.up()
                    more = await self._lives.look(link)
                    self._terms.book.answered(self.name)
                    await self._now_and_then(link)
                except Unreachable as error:
                    await self._line.lost(error)
                    continue
                pause_s = 0.0 if more else self._terms.look_s if self._lives else IDLE_LOOK_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._line.wake.wait()
                self._line.wake.clear()
        finally:
            self._line.end()
            for errand in self._errands:
                errand.cancel()
            await asyncio.gather(*self._errands, return_exceptions=True)
            await self._line.close()

    async def hang_up(self) -> None:
        """End the connection of a driver that does not run."""
        await self._line.close()

    async def _now_and_then(self, link: Link) -> None:
        now = self._terms.clock.boot_s()
        if now - self._gpus_s >= GPUS_S and self._gpus:
            self._gpus_s = now
            self._gpus = str((await link.call("gpus"))["gpus"])
        if now - self._tidied_s >= TIDY_S:
            self._tidied_s = now
            self._errand(self._tidy(link))  # looks do not wait for it

    async def _tidy(self, link: Link) -> None:
        terms = self._terms
        await link.call(
            "tidy", within_s=PACK_S, files_bytes=terms.files_kept_bytes, checkpoints_s=terms.checkpoints_kept_s
        )

    # --- what the agent asks of the machine -----------------------------------------------------------

    def reached(self) -> bool:
        return self._line.reached()

    def room(self) -> int:
        return self._terms.room()

    def facts(self) -> host.Facts:
        said = self._hello
        return host.Facts(
            hostname=str(said["hostname"])[:256],
            platform=str(said["platform"])[:256],
            cpu_cores=int(said["cores"]),
            ram_bytes=int(said["ram_bytes"]),
            disk_bytes=self._line.disk.total_bytes,
        )

    def disks(self) -> tuple[host.Disk, ...]:
        here = shutil.disk_usage(self._data_dir)
        return self._line.disk, host.Disk(here.free, here.total)

    def scan(self) -> Scan:
        """The host's GPUs as of the last time it was asked; in the place of this machine's own."""
        return scan_of(self._gpus)

    def close(self) -> None:
        """Nothing to let go of: `scan` opens nothing."""

    async def claim(self, incarnation: int, held: Collection[Path]) -> None:
        self._line.incarnation = incarnation
        await self._line.call("claim", within_s=PACK_S, incarnation=incarnation, held=[folder.name for folder in held])

    def seat(self, folder: Folder) -> Seat:
        environ = {str(k): str(v) for k, v in self._hello["environ"].items()}
        return Seat(self._root / "jobs" / folder.path.name, str(self._hello["python"]), environ)

    # --- before -----------------------------------------------------------------------------------

    async def furnish(
        self, folder: Folder, files: Mapping[str, Path], template: Template, checkpoint: Path | None
    ) -> None:
        sent = [*files.values(), *([checkpoint] if checkpoint else [])]
        for path in {path.name: path for path in sent}.values():
            await self._carrier.send(path)
        seat = self.seat(folder)
        try:
            await self._line.call(
                "furnish",
                within_s=PACK_S,
                name=folder.path.name,
                private=list(templates.private_dirs(seat.folder).values()) if template.private else [],
                tree=template.tree,
                checkpoint=file_name(folder.work),
                packed=checkpoint.name if checkpoint else "",
                texts=await self._on_disk(partial(_texts, folder.path)),
                links={name: path.name for name, path in files.items()},
            )
        except Declined as error:
            raise NoTree(str(error)) if error.kind == NoTree.__name__ else error from error

    async def start(self, folder: Path, order: Order, lease_ends_at_s: float) -> Identity:
        fields = msgspec.to_builtins(order)
        while True:
            try:
                async with asyncio.timeout(lease_ends_at_s - self._terms.clock.boot_s()):
                    link = await self._line.connected()
            except TimeoutError:
                raise Unreachable(f"{self.name} did not answer before the lease was over") from None
            try:
                lease = self._line.over_there(lease_ends_at_s)
                made = await link.call("start", name=folder.name, order=fields, lease=lease)
            except Unreachable:
                self._line.cut(link)
                continue
            except Declined as error:
                if error.kind != Superseded.__name__:
                    raise
                self._superseded = error
                self._line.wake.set()
                await self._loop.create_future()  # `run` ends, and so this agent; the next one starts the attempt
            return self._lives.note(folder, made)

    # --- while it runs ----------------------------------------------------------------------------

    async def find(self, folder: Path, known: Identity) -> Identity | None:
        seen = await self._line.call("find", name=folder.name, pid=known.pid, ticks=known.ticks)
        return self._lives.note(folder, seen) if seen["pid"] else None

    async def has_ended(self, folder: Path) -> bool:
        return bool((await self._line.call("find", name=folder.name, pid=0, ticks=0))["ended"])

    async def gone(self, folder: Path, process: Identity) -> None:
        await self._lives.gone(folder)

    def stop(self, folder: Path, process: Identity) -> None:
        self._lives.tell(folder, "stop")

    def kill(self, folder: Path, process: Identity) -> None:
        self._lives.tell(folder, "kill")

    def put_down(self, folder: Path, process: Identity) -> None:
        self._errand(self._end(folder, process, obey=False))

    def renew(self, folder: Path, ends_at_s: float) -> None:
        self._lives.renew(folder, ends_at_s)

    async def end(self, folder: Path, process: Identity) -> None:
        await self._end(folder, process, obey=True)

    async def _end(self, folder: Path, process: Identity, *, obey: bool) -> None:
        await self._line.call("end", name=folder.name, pid=process.pid, ticks=process.ticks, obey=obey)

    async def end_leftovers(self, folder: Path) -> bool:
        answer = await self._line.call("end_leftovers", name=folder.name)
        await self._last_words(folder)
        return bool(answer["ended"])

    def _errand(self, call: Coroutine[Any, Any, None]) -> None:
        """Something that is done when the host can be reached, and that nobody waits for."""
        task = asyncio.create_task(call)
        self._errands.add(task)
        task.add_done_callback(self._errand_done)

    def _errand_done(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("event=errand_failed host=%s error=%s", self.name, error)

    # --- after ------------------------------------------------------------------------------------

    async def gather(self, folder: Path, template: Template) -> None:
        name = folder.name
        ended = await self._last_words(folder)
        if ended is None or ended.get("error"):
            await self._line.call("end_leftovers", name=name)
        if ended is None:
            return
        result = await self._carrier.whole(name, "result.json", MAX_RESULT_BYTES + 1)
        if result is not None:
            await self._on_disk(partial((folder / "result.json").write_bytes, result))
        globs = named_outputs(result) if result is not None else [found_by(rule.glob) for rule in template.outputs]
        if globs:
            manifest = await self._line.call("manifest", name=name, globs=globs)
            for path, size in sorted(manifest["files"].items()):
                await self._carrier.fetch(folder, checked(path), int(size))

    async def _last_words(self, folder: Path) -> dict[str, Any] | None:
        """Bring the rest of the logs, then how it ended; None when its keeper did not say."""
        more = True
        while more:
            files = await self._carrier.brought(folder)
            one = {"pid": 0, "ticks": 0, "lease": 0.0, "signal": "", "files": files}
            answer = await self._line.call("look", jobs={folder.name: one})
            more = await self._carrier.mirror(folder, answer["body"], answer["jobs"][folder.name]["files"])
        record = await self._carrier.whole(folder.name, "exit.json", MAX_BODY_BYTES)
        if record is not None:
            await self._on_disk(partial(shim.write_whole, str(folder / "exit.json"), record.decode("utf-8", "replace")))
        return await self._on_disk(partial(shim.read_record, str(folder / "exit.json")))

    async def checkpoint(self, folder: Folder) -> Path | None:
        packed = await self._line.call("pack", name=folder.path.name, within_s=PACK_S)
        if not packed["size"]:
            return None
        await self._carrier.fetch(folder.path, PACKED, int(packed["size"]))
        return folder.path / PACKED

    def ask(self, folder: Path, template: Template) -> bytes:
        try:
            return asyncio.run_coroutine_threadsafe(self._ask(folder, template), self._loop).result()
        except Declined as error:
            raise NothingLeft(str(error)) from error

    async def _ask(self, folder: Path, template: Template) -> bytes:
        limit_s = collect.RESULT_S
        try:
            asked: dict[str, Any] = {"name": folder.name, "argv": list(template.result), "limit_s": limit_s}
            return bytes((await self._line.call("ask", within_s=limit_s + PACK_S, **asked))["body"])
        finally:
            words = await self._carrier.whole(folder.name, "result-command.log", MAX_BODY_BYTES)
            await self._on_disk(partial((folder / "result-command.log").write_bytes, words or b""))

    async def clear(self, folder: Folder, *, checkpoint: str = "") -> None:
        await self._on_disk(partial(folder.clear, checkpoint=checkpoint))
        self._lives.forget(folder.path)
        kept = file_name(checkpoint) if checkpoint else ""
        self._errand(self._drop(folder.path.name, kept))

    async def _drop(self, name: str, checkpoint: str) -> None:
        await self._line.call("drop", within_s=PACK_S, name=name, checkpoint=checkpoint)

    async def _on_disk(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._terms.disk, call)


def _texts(folder: Path) -> dict[str, str]:
    """What tells the program about its item."""
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.is_file()}
