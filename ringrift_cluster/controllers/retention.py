"""Retention: forget selfplay files that fell out of every window and models nobody goes back to, oldest first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from statemachine import models, queries
from statemachine.commands import Command, ForgetArtifact
from statemachine.rows import ModelStatus
from statemachine.settings import Training
from statemachine.state import State

#: files dropped in one pass
MAX_FORGOTTEN = 50


def forget(state: State) -> list[Command]:
    """What no open item reads of: selfplay files older than a multiple of the config's training window, rejected
    models but the latest, former champions before those that a rollback may go back to."""
    if state.cluster.paused:
        return []
    found = (one for key, config in state.configs().items() for one in _of_config(state, key, config.training))
    return list(islice(found, MAX_FORGOTTEN))


def _of_config(state: State, key: str, training: Training) -> Iterator[Command]:
    kept = {a.digest for a in queries.window(state, key, training.window_games * state.retention.window_multiple)}
    for _, digest in state.index.artifacts.get(("games", key), ()):
        if digest in kept:
            break
        if digest not in state.index.readers:
            yield ForgetArtifact(digest=digest, reason="older than every training window")
    spare = models.spare(state, key)
    rejected = [row.digest for row in spare if row.status is ModelStatus.REJECTED]
    former = [row.digest for row in spare if row.status is ModelStatus.FORMER]
    most = state.retention.rejected_models
    reasons = dict.fromkeys(rejected[: max(len(rejected) - most, 0)], f"rejected, and {most} later ones are kept")
    reasons |= dict.fromkeys(former, f"{state.retention.former_models} later champions are kept")
    for digest, reason in reasons.items():
        if digest in state.artifacts and digest not in state.index.readers:
            yield ForgetArtifact(digest=digest, reason=reason)
