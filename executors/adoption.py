"""What an earlier process of this node left: attempts to go on with, before anything new starts."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from executors.attempts import Attempt
from executors.bench import Bench

log = logging.getLogger(__name__)


async def adopt(bench: Bench) -> list[Attempt]:
    """The attempts of the ledger that are still of use; the others are ended and forgotten."""
    found = []
    for entry in bench.ledger.entries():
        if entry.process.boot_id != bench.boot_id:
            bench.ledger.forget(entry.job, entry.fence)  # the machine was started anew: nothing survived
            continue
        try:
            attempt = await Attempt.adopt(bench, entry)
        except msgspec.MsgspecError as error:
            # Written by another release. Its program must not run on beside the next attempt.
            log.error("event=not_adopted job=%s error=%s", entry.job, error)
            await bench.driver.end(Path(entry.folder), entry.process)
            attempt = None
        if attempt is None:
            bench.ledger.forget(entry.job, entry.fence)
        else:
            found.append(attempt)
    if found:
        log.info("event=adopted attempts=%d", len(found))
    return found
