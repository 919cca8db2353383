"""Templates tried on this machine, outside the queue."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import typer
from rich.console import RenderableType
from typer import Argument, Option

from executors.outcome import Progress
from executors.trial import Report, Trial, TrialError
from ringrift_cluster.api.workload import Advanced, Ended, NotTried, Started, Try
from ringrift_cluster.cli.call import Call, asks
from ringrift_cluster.cli.cluster import read_text
from ringrift_cluster.cli.options import EXIT_REFUSED, EXIT_USAGE, Params, fail, named
from ringrift_cluster.cli.output import emit, emit_json, pairs, size, table
from statemachine import settings as st
from statemachine.settings import Template

app = typer.Typer(no_args_is_help=True, help="Programs and the templates that start them.")


class DryRun(msgspec.Struct, frozen=True):
    """What would be started."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    result: tuple[str, ...]


@app.command("try")
@asks
def try_template(
    call: Call,
    template: Annotated[str, Argument(help="A template of the cluster by its name, or @FILE with its JSON.")],
    param: Params = None,
    input_file: Annotated[list[str] | None, Option("--input", "-i", help="name=path of an input file.")] = None,
    config: Annotated[str, Option(help="Game config, such as hex8_2p.")] = "",
    stop_after: Annotated[float, Option(help="End it after so many seconds, as the cluster would.", min=0)] = 0,
    grace: Annotated[float, Option(help="Seconds from SIGTERM to SIGKILL when the template has none.", min=0)] = 60,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be started, and start nothing.")] = False,
    node: Annotated[str, Option(help="Run it on this node instead; inputs are files there.")] = "",
    folder: Annotated[Path | None, Option(help="Work here; else in a new directory, which is kept.")] = None,
) -> None:
    """Run one template here or on a node, outside the queue, and say what the executor saw: how it ended, what
    counts, why not."""
    wanted = _template(template, call)
    params = dict(named(text, "--param") for text in param or ())
    given = dict(named(text, "--input") for text in input_file or ())
    if node:
        if dry_run or folder is not None:
            raise fail("--dry-run and --folder are for a trial here, without --node.", EXIT_USAGE)
        wish = Try(msgspec.Raw(st.encode(wanted).encode()), node, params, given, config, stop_after, grace)
        _try_there(wish, call)
        return
    inputs = {name: Path(path).expanduser() for name, path in given.items()}
    for name, path in inputs.items():
        if not path.is_file():
            raise fail(f"--input {name}: {path} is no file.", EXIT_USAGE)
    place = (folder or Path(tempfile.mkdtemp(prefix="ringrift-try-"))).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        trial = Trial(place, wanted, params, inputs, config=config, grace_s=grace)
    except (TrialError, OSError) as error:
        raise fail(f"the template {template}: {error}.", EXIT_USAGE) from error
    if dry_run:
        made = trial.rendered
        call.emit(DryRun(made.argv, made.cwd, trial.env, made.result), _dry)
        return
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        if not call.as_json:
            sys.stderr.write(f"running in {trial.folder.path} (Ctrl-C stops it as the cluster would)\n")
        report = trial.run(stop_after_s=stop_after, told=_tell, interrupted=lambda: bool(interrupts))
    except TrialError as error:
        raise fail(f"{error}.", EXIT_USAGE) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if call.as_json:
        emit_json(report)
    else:
        emit(report, False, lambda said: [*_said(said), f"logs         {trial.folder.path}"])
    if report.verdict == "failed":
        raise typer.Exit(EXIT_REFUSED)


def _try_there(wish: Try, call: Call) -> None:
    """The same on a node of the cluster, which nobody need be able to dial. Ctrl-C stops it there."""
    with call.client() as client:
        for seen in client.try_template(wish):
            if call.as_json:
                emit_json(seen)
            match seen:
                case Started() if not call.as_json:
                    sys.stderr.write(f"running on {seen.node_id} in {seen.folder} (Ctrl-C stops it)\n")
                case Advanced() if not call.as_json:
                    _tell(seen.progress)
                case Ended():
                    if not call.as_json:
                        emit(seen, False, _said_there)
                    if seen.report.verdict == "failed":
                        raise typer.Exit(EXIT_REFUSED)
                case NotTried():
                    raise fail(f"{wish.node_id} could not try it: {seen.detail}.", EXIT_USAGE)


def _said_there(ended: Ended) -> Iterable[RenderableType]:
    for stream, text in (("stdout", ended.stdout), ("stderr", ended.stderr)):
        if text.strip():
            yield f"--- {stream}, its end"
            yield text.rstrip("\n")
    yield "---"
    yield from _said(ended.report)


def _tell(progress: Progress) -> None:
    aims = f" of {pairs(progress.total)}" if progress.total else ""
    sys.stderr.write(f"progress {pairs(progress.counts)}{aims}\n")


def _template(template: str, call: Call) -> Template:
    if template.startswith("@"):
        raw = read_text(template).encode()
    else:
        with call.client() as client:
            raw = bytes(client.setting(f"template/{template}").value)
    try:
        decoded = st.decode("template/tried", raw.decode())
    except ValueError as error:
        raise fail(f"the template {template.lstrip('@')}: {error}.", EXIT_USAGE) from error
    assert isinstance(decoded, Template)  # the group says so
    return decoded


def _dry(run: DryRun) -> Iterable[RenderableType]:
    yield f"argv   {msgspec.json.encode(run.argv).decode()}"
    yield f"cwd    {run.cwd}"
    if run.result:
        yield f"result {msgspec.json.encode(run.result).decode()}"
    yield table(["variable", "value"], run.env.items())


def _said(report: Report) -> Iterable[RenderableType]:
    yield f"program      {' '.join(report.argv)}"
    yield f"ended        by {report.ended_by}, exit code {report.exit_code}, after {report.seconds:g} s"
    if report.stop_seconds:
        yield f"stopped      {report.stop_seconds:g} s after it was told to"
    if report.progress:
        yield f"progress     {pairs(report.progress.counts)}"
    if report.verdict == "failed":
        yield f"verdict      failed ({report.error_class}): {report.error}"
        return
    yield f"verdict      {report.verdict}"
    yield f"counts       {pairs(report.counts) or '-'}"
    if report.metrics:
        yield f"metrics      {pairs(report.metrics)}"
    rows = [(o.path, o.kind, size(o.size_bytes), pairs(o.counts)) for o in report.outputs]
    if rows:
        yield table(["output", "kind", "size ", "counts"], rows)
