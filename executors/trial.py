"""One attempt of a template outside the queue: the same folder, keeper and verdict, and a report of what was seen."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from executors import collect, host, patterns, processes, shim, templates
from executors.folder import BadInputName, Folder, Seat
from executors.keepers import NoTree
from executors.outcome import Failure, Progress, Success, inside
from executors.printed import Printed
from executors.templates import Rendered, TemplateError
from statemachine.commands import AddWork
from statemachine.queries import Assignment, ResolvedInput
from statemachine.rows import Actual, Desired, Job, Work, WorkStatus
from statemachine.settings import Template
from statemachine.values import Needs

LOOK_S = 0.2
#: its keeper ends the program when nobody has looked after it for so long
LEASE_S = 300.0
RENEW_S = 30.0


class TrialError(Exception):
    """Why the template could not be tried, in a sentence."""


class Made(Struct, frozen=True):
    """A file that would be published."""

    path: str
    kind: str
    size_bytes: int
    counts: dict[str, int]


class Report(Struct, frozen=True):
    """What the executor saw. `verdict` is completed, stopped or failed."""

    argv: tuple[str, ...]
    cwd: str
    #: variables that differ from the caller's own
    env: dict[str, str]
    verdict: str
    exit_code: int
    ended_by: str
    seconds: float
    error_class: str = ""
    error: str = ""
    counts: dict[str, int] = {}
    metrics: dict[str, str] = {}
    outputs: tuple[Made, ...] = ()
    progress: Progress | None = None
    #: how long it took to end after it was told to
    stop_seconds: float = 0.0


class Trial:
    """One prepared attempt. `run` it once; the folder stays for looking at."""

    def __init__(
        self,
        data_dir: Path,
        template: Template,
        params: Mapping[str, str],
        inputs: Mapping[str, Path],
        *,
        config: str = "",
        grace_s: float = 60.0,
        inherited: Mapping[str, str] | None = None,
    ) -> None:
        """Raises TrialError."""
        if wrong := templates.validate(template) or patterns.slow(template):
            raise TrialError("; ".join(wrong))
        self._inherited = dict(os.environ if inherited is None else inherited)
        self._template = template
        self._grace_s = template.grace_ms / 1000 or grace_s
        spec = AddWork("trial", "trial", config=config, params=dict(params))
        self._work = Work(spec, WorkStatus.RUNNING, 1, 0, 0)
        job = Job(
            job="trial.1", work="trial", work_type="trial", config=config, peer="", incarnation=0, fence=1,
            desired=Desired.RUN, actual=Actual.RUNNING, granted_at_ms=0, lease_ms=int(LEASE_S * 1000),
            renewed_at_ms=0, needs=template.needs or Needs(), timeout_ms=0,
        )  # fmt: skip
        resolved = tuple(ResolvedInput(name, "", path.stat().st_size, ()) for name, path in inputs.items())
        self.folder = Folder(data_dir, job.job, job.fence, job.work)
        try:
            seat = Seat(self.folder.path, sys.executable, self._inherited)
            paths = self.folder.prepare(Assignment(job, self._work, template, resolved, 0), inputs, template, seat)
            self.rendered: Rendered = templates.render(template, spec, job, paths, seat.environ)
            self.folder.furnish(inputs, template)
        except (TemplateError, BadInputName, NoTree, OSError) as error:
            raise TrialError(str(error)) from error

    @property
    def env(self) -> dict[str, str]:
        """What the program's environment adds to or changes in the caller's."""
        return {k: v for k, v in sorted(self.rendered.env.items()) if self._inherited.get(k) != v}

    def run(
        self,
        *,
        stop_after_s: float = 0.0,
        told: Callable[[Progress], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Report:
        """Start the program and see it to its end; blocks.

        `stop_after_s` ends it as the cluster would: SIGTERM, grace, SIGKILL. `interrupted` asks for the same.
        Raises TrialError when its keeper could not be started.
        """
        made, boot_id = self.rendered, host.boot_id()
        order = processes.Order(made.argv, made.env, made.cwd, made.nice, self._grace_s, result=made.result)
        began = time.monotonic()
        try:
            keeper = processes.start(self.folder.path, order, shim.boot_s() + LEASE_S, boot_id)
        except OSError as error:
            raise TrialError(f"its keeper could not be started: {error}") from error
        renewed = began
        printed, last, cause, told_at = Printed(self.folder.path, self._template), None, "", 0.0
        while processes.alive(keeper, boot_id):
            now = time.monotonic()
            if now - renewed >= RENEW_S:
                processes.renew(self.folder.path, shim.boot_s() + LEASE_S)
                renewed = now
            if not cause and (interrupted() or (stop_after_s and now - began >= stop_after_s)):
                cause, told_at = "asked", now
                processes.stop(keeper, boot_id)
            if fresh := self.folder.progress() or printed.look():
                last = fresh
                told(fresh)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(keeper.pid, os.WNOHANG)
            time.sleep(LOOK_S)  # progress is what a file holds: only looking again tells that there is more
        ended_s = time.monotonic()
        last = self.folder.progress() or printed.look() or last
        return self._report(cause, ended_s - began, last, ended_s - told_at if told_at else 0.0)

    def _report(self, cause: str, seconds: float, progress: Progress | None, stop_seconds: float) -> Report:
        path, template = self.folder.path, self._template
        collect.end_the_rest(path, host.boot_id())
        verdict = collect.verdict(self.folder, self._work, template, cause, lambda: collect.ask(path, template.result))
        ended = processes.exit_record(self.folder.path)
        seen = Report(
            argv=self.rendered.argv,
            cwd=self.rendered.cwd,
            env=self.env,
            verdict="failed",
            exit_code=verdict.exit_code,
            ended_by=_ended_by(ended),
            seconds=round(seconds, 2),
            progress=progress,
            stop_seconds=round(stop_seconds, 2),
        )
        if isinstance(verdict, Success):
            outputs, missing = self._outputs(verdict)
            if not missing:
                word, counts = "stopped" if verdict.stopped else "completed", verdict.counts
                return replace(seen, verdict=word, counts=counts, metrics=verdict.metrics, outputs=outputs)
            verdict = Failure("no_output", missing, verdict.exit_code)
        return replace(seen, error_class=verdict.error_class, error=verdict.error)

    def _outputs(self, success: Success) -> tuple[tuple[Made, ...], str]:
        made = []
        for output in success.outputs:
            path = self.folder.output(output.path) if inside(output.path) else None
            if path is None:
                return (), f"its result.json names the output {output.path!r}, which is not in out/"
            made.append(Made(output.path, output.kind, path.stat().st_size, output.counts))
        return tuple(made), ""


def _ended_by(ended: processes.Exit | None) -> str:
    if ended is None:
        return "its keeper was ended by somebody else"
    if ended.signal:
        return f"signal {ended.signal}"
    return "itself" if ended.cause == "exited" else ended.cause
