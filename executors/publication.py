"""What a program made, on its way into the store and the log."""

from __future__ import annotations

from executors.blobs import Blobs
from executors.folder import Folder
from executors.outcome import Failure, Success
from statemachine.commands import CompleteJob, encode_command, unfit
from statemachine.rows import Job
from statemachine.values import Output


def publish(success: Success, job: Job, folder: Folder, blobs: Blobs, at_ms: int) -> CompleteJob | Failure:
    """Hash the outputs, move them into the store, and word the report that makes them count; blocks."""
    stored = _store(success, folder, blobs)
    if isinstance(stored, Failure):
        return stored
    command = CompleteJob(
        job.job,
        job.fence,
        counts=success.counts,
        metrics=success.metrics,
        outputs=stored,
        match=success.match,
        stopped=success.stopped,
        exit_code=success.exit_code,
        at_ms=at_ms,
    )
    problem = unfit(encode_command(command))
    if problem:
        return Failure("no_output", f"its result cannot be reported: {problem}", success.exit_code)
    return command


def _store(success: Success, folder: Folder, blobs: Blobs) -> tuple[Output, ...] | Failure:
    made = []
    for output in success.outputs:
        path = folder.output(output.path)
        if path is None:
            return Failure("no_output", f"its result.json names the output {output.path!r}, which is not in out/")
        try:
            digest, size = blobs.adopt(path)
        except OSError as error:
            return Failure("infrastructure", f"its output {output.path!r} could not be stored: {error}")
        made.append(Output(output.path, digest, size, output.kind, output.counts))
    return tuple(made)
