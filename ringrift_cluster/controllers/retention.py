"""Retention: forget selfplay files that fell out of every window, oldest first."""

from __future__ import annotations

from statemachine import queries
from statemachine.commands import Command, ForgetArtifact
from statemachine.state import State

#: files dropped in one pass
MAX_FORGOTTEN = 50


def forget(state: State) -> list[Command]:
    """Files older than a multiple of the config's training window that no open item reads."""
    commands: list[Command] = []
    for key, config in state.configs().items():
        keep = config.training.window_games * state.retention.window_multiple
        kept = {a.digest for a in queries.window(state, key, keep)}
        for _, digest in state.index.artifacts.get(("games", key), ()):
            if len(commands) >= MAX_FORGOTTEN:
                return commands
            if digest in kept:
                break
            if digest not in state.index.readers:
                commands.append(ForgetArtifact(digest=digest, reason="older than every training window"))
    return commands
