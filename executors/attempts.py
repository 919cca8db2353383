"""One attempt from its grant to the answered report.

    PREPARING  fetch and verify inputs -> folder -> ledger: intent -> keeper -> ledger: handle
    RUNNING    report `running`, wait for the keeper's end      (an adopted attempt begins here)
    STOPPING   the same, with an end in sight
    WAITING    its program failed, and is started again in a folder of its own: back to PREPARING
    ENDED      judge, move outputs into the store, report until answered
    REPORTED   wait until the committed jobs show it

Nothing here decides whether an attempt should live; `reconcile` does.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import msgspec

from executors import collect, processes
from executors.bench import Bench
from executors.checkpoints import BadCheckpoint, Checkpoint
from executors.folder import Folder
from executors.ledger import Entry
from executors.outcome import Failure, Progress, Success
from executors.ports import ClusterError
from executors.preparation import Preparation
from executors.printed import Printed
from executors.publication import publish
from executors.reconcile import Held, Phase
from executors.steps import Steps
from executors.transfers import HoldersGone
from executors.tries import Tries
from statemachine.commands import (
    Command,
    CompleteJob,
    FailJob,
    ReleaseJob,
    ReportJob,
    SaveCheckpoint,
)
from statemachine.errors import Code, Done, Rejected, Result
from statemachine.queries import Assignment
from statemachine.rows import Actual
from statemachine.settings import Template

log = logging.getLogger(__name__)
_decode = msgspec.msgpack.Decoder(Assignment).decode


class Attempt:
    """One job under one fence on this machine."""

    def __init__(self, bench: Bench, assignment: Assignment) -> None:
        self.bench = bench
        self.assignment = assignment
        self.job = assignment.job
        self.tries = Tries(bench, self.job, self.report)
        self.sit_in(0)
        self.checkpoint = Checkpoint(bench.data_dir, self.job.work, bench.blobs)
        self.phase = Phase.PREPARING
        self.process: processes.Identity | None = None
        self.started_at_s = 0.0
        self.stop_by_s = 0.0
        self.stop_cause = ""
        #: it is not ours any more: whatever it makes stays unpublished
        self.unwanted = False
        #: when it was called off or killed
        self.told_at_s = 0.0
        #: its own life failed once, and that was reported
        self.at_fault = False
        #: how it failed; empty when it did not
        self.error_class = ""
        #: why it is handed back before it started
        self.release_reason = ""
        self._steps = Steps()
        self._said: asyncio.Future[Result | None] | None = None

    def sit_in(self, restarts: int) -> None:
        """Have the folder of one start of the program, and nothing that an earlier one said."""
        template = self.assignment.template
        self.folder = Folder(self.bench.data_dir, self.job.job, self.job.fence, self.job.work, restarts)
        self._printed = Printed(self.folder.path, template) if template and Printed.reads(template) else None
        self.progress: Progress | None = None
        self.progress_sent_s = 0.0

    @classmethod
    async def adopt(cls, bench: Bench, entry: Entry) -> Attempt | None:
        """An attempt that an earlier node process started; None when it never came to life.

        What is left of one that did not is ended. Raises msgspec.MsgspecError.
        """
        attempt = cls(bench, _decode(entry.assignment))
        attempt.started_at_s = entry.started_at_s
        attempt.stop_cause = entry.stop_cause
        attempt.tries.take_up(entry)
        attempt.sit_in(attempt.tries.folder)
        if entry.reported:
            attempt.phase = Phase.REPORTED
            return attempt
        if entry.due_s:
            attempt.phase = Phase.WAITING
            return attempt
        driver, folder = bench.driver, attempt.folder.path
        attempt.process = await driver.find(folder, entry.process)
        if attempt.process is None:
            if entry.process.pid == 0 and not await driver.has_ended(folder):
                await driver.end_leftovers(folder)
                if attempt.tries.failed is None:
                    return None
                # It ran before, so it cannot be handed back; its turn comes once more.
                attempt.phase = Phase.WAITING
                return attempt
            attempt.phase = Phase.ENDED
            return attempt
        if entry.process.pid == 0:
            bench.ledger.handle(entry.job, entry.fence, attempt.process)
        attempt.phase = Phase.RUNNING
        if entry.stop_cause:
            attempt.phase = Phase.STOPPING
            attempt.stop_by_s = bench.clock.boot_s() + attempt.grace_s
            driver.stop(folder, attempt.process)  # the earlier process may have died before it told
        return attempt

    @property
    def key(self) -> tuple[str, int]:
        return self.job.job, self.job.fence

    @property
    def grace_s(self) -> float:
        """SIGTERM to SIGKILL; at most half a lease, so that a fresh lease never calls for a stop."""
        template = self.assignment.template
        grace_ms = (template.grace_ms if template else 0) or self.bench.timing.grace_ms
        return min(grace_ms, self.job.lease_ms / 2) / 1000

    @property
    def is_alive(self) -> bool:
        return self.phase in (Phase.RUNNING, Phase.STOPPING)

    def held(self) -> Held:
        return Held(
            *self.key,
            work=self.job.work,
            phase=self.phase,
            started_at_s=self.started_at_s,
            stop_by_s=self.stop_by_s,
            gpus=self.job.gpus,
            told_at_s=self.told_at_s,
            due_s=self.tries.due_s,
            lease_ends_s=self.tries.lease_ends_s,
        )

    def look_for_progress(self) -> Progress | None:
        """New totals since the last look; None when there are none. Reads files."""
        return self.folder.progress() or (self._printed.look() if self._printed else None)

    # --- orders from the agent --------------------------------------------------------------------

    def stop(self, cause: str) -> None:
        """End the program with its grace. `cause` is `asked` or `timeout`."""
        self.stop_cause = cause
        self.phase = Phase.STOPPING
        self.stop_by_s = self.bench.clock.boot_s() + self.grace_s
        self.bench.note(lambda job, fence: self.bench.ledger.stopping(job, fence, cause), self.key)
        if self.process is not None:
            self.bench.driver.stop(self.folder.path, self.process)

    def kill(self) -> None:
        """End the program at once; when the keeper has not obeyed an earlier kill, without it."""
        again, self.told_at_s = self.is_alive and self.told_at_s > 0, self.bench.clock.boot_s()
        if self.process is None:
            return
        order = self.bench.driver.put_down if again else self.bench.driver.kill
        order(self.folder.path, self.process)

    def disown(self) -> None:
        """The job is not ours any more: end it, report nothing, publish nothing."""
        self.unwanted = True
        self._steps.call_off()
        self.kill()

    def release(self, reason: str) -> None:
        """Hand it back unless it has started meanwhile; one that waits to be started again reports its failure."""
        self.release_reason = reason
        self.told_at_s = self.bench.clock.boot_s()
        self._steps.call_off()

    def again(self) -> None:
        """Start the program of a waiting attempt again."""
        if not self._called_off():
            self.tries.turn()

    def renew(self, ends_at_s: float) -> None:
        """Let the keeper know the lease's new end."""
        try:
            self.bench.driver.renew(self.folder.path, ends_at_s)
        except OSError as error:
            # The attempt ends with the lease it has, which is what the cluster will believe as well.
            log.warning("event=lease_not_written job=%s error=%s", self.job.job, error)

    # --- the life ---------------------------------------------------------------------------------

    async def conduct(self) -> None:
        """See the attempt through to its answered report, from whatever phase it is in."""
        again = True
        while again:
            if self.phase is Phase.WAITING:
                await self._wait()
            if self.phase is Phase.PREPARING:
                command = await self._prepare()
                if command is not None:
                    self.phase = Phase.ENDED
                    await self._save_checkpoint(of=None if self.unwanted else self.tries.failed)
                    await self.close(command)
                    return
            if self.is_alive and not self.unwanted and self.tries.failed is None:
                await self.report(ReportJob(*self.key, Actual.RUNNING, self.bench.clock.wall_ms()))
            if self.is_alive and self.process is not None:
                await self.bench.driver.gone(self.folder.path, self.process)
            self.phase = Phase.ENDED
            self.bench.wake()
            again = await self._finish()

    async def close(self, command: Command | None) -> None:
        """Report the end (unless it is not ours any more) and become REPORTED."""
        self.phase = Phase.ENDED
        if self._said is not None:
            self._said.cancel()
        result = await self.report(command) if command is not None and not self.unwanted else None
        if isinstance(result, Rejected) and isinstance(command, CompleteJob) and result.code not in _OVER:
            # The cluster refuses the result itself. Said as a failure, it is not repeated for ever.
            kind = "infrastructure" if result.code == Code.INTERNAL else "no_output"
            refused = Failure(kind, f"its result was refused: {result.detail}", command.exit_code)
            await self.close(self._failed(refused))
            return
        if isinstance(result, Rejected):
            log.warning("event=report_refused job=%s code=%s detail=%s", self.job.job, result.code, result.detail)
        published = _published(command, result)
        outputs = [output.digest for output in command.outputs] if isinstance(command, CompleteJob) else []
        self.error_class = command.error_class if isinstance(command, FailJob) else "" if published else "unknown"
        if published:
            self.bench.completed += 1
            self.bench.made(outputs)
        elif isinstance(command, FailJob) and command.error_class != "stopped":
            self.bench.failed += 1
        self.bench.note(self.bench.ledger.reported, self.key)
        await self.bench.driver.clear(self.folder, checkpoint=self.job.work if published else "")
        self.phase = Phase.REPORTED
        self.bench.wake()

    async def report(self, command: Command) -> Result | None:
        """Propose until answered, the same command again and again; None when it became pointless."""
        pause_s = 0.1
        while not self.unwanted:
            try:
                (result,) = await self.bench.cluster.propose([command])
            except ClusterError as error:
                log.info("event=report_waits job=%s retry_s=%.1f error=%s", self.job.job, pause_s, error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)
                continue
            if isinstance(result, Rejected) and result.code == Code.STALE_FENCE:
                self.disown()
            return result
        return None

    # --- before -----------------------------------------------------------------------------------

    async def _prepare(self) -> Command | None:
        """Start the keeper. Returns the command that closes the attempt when it did not start."""
        work, template = self.assignment.work, self.assignment.template
        if template is None:
            text = f"the setting template/{work.spec.template} does not exist; set it and retry the item"
            return self._failed(Failure("user", text))
        if self._called_off():
            return self._given_back()
        saved = self.assignment.checkpoint
        with self.bench.blobs.pinned([item.digest for item in (*self.assignment.inputs, *([saved] if saved else []))]):
            return await self._begin(template)

    async def _begin(self, template: Template) -> Command | None:
        """Get the inputs and start the keeper; the inputs are pinned until it has them."""
        assignment = self.assignment
        if self.tries.failed is not None:
            # The last start went on from it, or without it; what that one left here is newer.
            assignment = msgspec.structs.replace(assignment, checkpoint=None)
        before = Preparation(self.bench, assignment, template, self._steps, self.grace_s)
        try:
            files = await before.inputs(self._say_starting)
            if not self._called_off():
                await before.take_up(self.checkpoint, self._say_starting)
            if self.tries.failed is not None and not self._called_off():
                self.release_reason = await self._steps.take(self.tries.hindrance()) or self.release_reason
            if self._called_off():
                return self._given_back()
            if self.tries.failed is not None:
                used = self.folder
                self.tries.begin()
                self.sit_in(self.tries.folder)
                await self.bench.driver.clear(used)
            started = await before.start(self.folder, files)
        except asyncio.CancelledError:
            if not self._called_off():
                raise  # the agent itself is being stopped
            return self._given_back()
        except HoldersGone as error:
            return self._failed(Failure("infrastructure", str(error)))
        except OSError as error:
            return self._failed(Failure("infrastructure", f"its inputs could not be stored: {error}"))
        if isinstance(started, Failure):
            return self._failed(started)
        self._runs(started, before.begun_s)
        self._heed()
        return None

    def _runs(self, keeper: processes.Identity, begun_s: float) -> None:
        self.process, self.phase = keeper, Phase.RUNNING
        if self.tries.failed is None:
            self.started_at_s = begun_s
            self.bench.started += 1
            log.debug("event=job_started job=%s fence=%d pid=%d", *self.key, keeper.pid)
        else:
            self.bench.restarted += 1
            log.info(
                "event=job_restarted job=%s fence=%d restart=%d pid=%d", *self.key, self.tries.restarts, keeper.pid
            )

    def _failed(self, failure: Failure) -> FailJob:
        """The report of a failure, with the restarts that came before it."""
        return self.tries.told(failure).command(self.job, self.bench.clock.wall_ms())

    def _given_back(self) -> Command:
        """The report of what was called off: it never ran, or what it failed of stands."""
        failed = self.tries.failed
        if failed is None:
            return ReleaseJob(*self.key, self._called_off())
        return self.tries.called_off(failed, self._called_off()).command(self.job, self.bench.clock.wall_ms())

    def _called_off(self) -> str:
        """Why it should not start after all; empty when it should."""
        return self.release_reason or ("it is not ours any more" if self.unwanted else "")

    def _heed(self) -> None:
        """Obey an order that came while the keeper was being started."""
        if self.unwanted:
            self.kill()
        elif self.release_reason:
            self.stop("asked")

    def _say_starting(self) -> None:
        """Nothing waits for the answer: a fence that is over calls the attempt off by itself."""
        if self._said is None:
            command = ReportJob(*self.key, Actual.STARTING, self.bench.clock.wall_ms())
            self._said = asyncio.ensure_future(self.report(command))

    async def _save_checkpoint(self, of: Failure | None) -> None:
        """Let the next attempt go on from what this one has, wherever that is; one that never ran has nothing."""
        bench = self.bench
        if of is None:
            return
        try:
            brought = await self._steps.take(bench.driver.checkpoint(self.folder))
            if brought is not None:
                await bench.on_disk(partial(self.checkpoint.unpack, brought, ""))
            packed = await bench.on_disk(self.checkpoint.pack)
        except asyncio.CancelledError:
            if not self.unwanted:
                raise  # the agent itself is being stopped
            return
        except (BadCheckpoint, OSError) as error:
            log.warning("event=checkpoint_not_saved job=%s error=%s", self.job.job, error)
            return
        if packed is None:
            return
        digest, size_bytes = packed
        if isinstance(await self.report(SaveCheckpoint(*self.key, digest, size_bytes)), Done):
            await bench.on_disk(partial(self.checkpoint.saved, digest))
            bench.made([digest])
            bench.saved()

    # --- between two starts -----------------------------------------------------------------------

    async def _waits(self, failure: Failure, template: Template) -> bool:
        """Whether its program is started again, in a while."""
        bench, path = self.bench, self.folder.path
        if template.restart is None:
            return False
        ended = await bench.on_disk(partial(processes.exit_record, path))
        try:
            gone = await self._steps.take(bench.driver.end_leftovers(path))
        except asyncio.CancelledError:
            if not self.unwanted:
                raise  # the agent itself is being stopped
            return False
        except OSError:
            gone = False  # its machine does not say
        if not await self.tries.another(
            template.restart, failure, ended, self.stop_cause, gone=gone, began_s=self.started_at_s
        ):
            return False
        self.phase, self.process = Phase.WAITING, None
        bench.freed(self.job.gpus)
        bench.wake()
        return True

    async def _wait(self) -> None:
        """Until its turn comes or it is called off."""
        try:
            if not self._called_off():
                await self.tries.wait(self._steps)
        except asyncio.CancelledError:
            if not self._called_off():
                raise  # the agent itself is being stopped
        self.phase = Phase.PREPARING

    # --- after ------------------------------------------------------------------------------------

    async def _finish(self) -> bool:
        """Judge and report how it ended. Answers whether its program is started again instead."""
        driver, path, template = self.bench.driver, self.folder.path, self.assignment.template
        assert template is not None  # nothing starts without one
        verdict: Success | Failure | None = None
        fetched = True
        if not self.unwanted:
            try:
                await self._steps.take(driver.gather(path, template))
            except asyncio.CancelledError:
                if not self.unwanted:
                    raise  # the agent itself is being stopped
            except OSError as error:
                fetched, verdict = False, Failure("infrastructure", f"what it left could not be fetched: {error}")
        if self.unwanted:
            await driver.end_leftovers(path)
            await self.close(None)
            return False
        if verdict is None:
            verdict = await self.bench.on_disk(partial(self._judge, template))
        if isinstance(verdict, Failure):
            if fetched and await self._waits(verdict, template):
                return True
            await self._save_checkpoint(of=verdict)
            await self.close(self._failed(verdict))
            return False
        made = partial(publish, verdict, self.job, self.folder, self.bench.blobs, self.bench.clock.wall_ms())
        command = await self.bench.on_disk(made)
        if isinstance(command, Failure):
            await self.close(self._failed(command))
            return False
        with self.bench.blobs.pinned([output.digest for output in command.outputs]):
            await self.close(command)
        return False

    def _judge(self, template: Template) -> Success | Failure:
        asking = partial(self.bench.driver.ask, self.folder.path, template)
        return collect.verdict(self.folder, self.assignment.work, template, self.stop_cause, asking)


def _published(command: Command | None, result: Result | None) -> bool:
    """Whether the cluster counted the attempt's result; it does not when the item was ended before."""
    if not isinstance(command, CompleteJob) or not isinstance(result, Done):
        return False
    return isinstance(result.value, dict) and bool(result.value.get("published"))


#: answers after which nothing is left to say about a job
_OVER = frozenset({Code.STALE_FENCE, Code.NOT_FOUND, Code.ILLEGAL_TRANSITION})
