"""Seeds that once broke, with what it was. Each runs with every test run."""

from __future__ import annotations

from tests.simulation.run import Options

KEPT: dict[str, tuple[int, Options]] = {
    "a follower without a state waited 30 s for a voter behind a partition to accept its connection": (1007, Options()),
    "a voter that joined while entries were counted was sent what it lacked, too": (10075, Options()),
    "a leader counted by one list of voters and appended the next one in the same turn": (10281, Options()),
    "a suspect answered a leader's probe when that no longer led, and was vouched for all the same": (10300, Options()),
}
