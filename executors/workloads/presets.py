"""Arguments that suit a purpose, as plain data: reading them needs neither torch nor numpy.

``PRESETS[purpose][config][workload]`` maps argument names to values; whoever starts the workload adds what
belongs to the one run: config, seed, model, data. ``demo`` is for two ordinary cores.
"""

from __future__ import annotations

from collections.abc import Mapping

Value = int | float | str
Preset = dict[str, dict[str, Value]]

# A drop-k game has one action per column, so 16 simulations look at each of 7 to 9 columns at least once.
# With foresight (every leaf tried for a win at once) that finds every threat, and the first generation
# already teaches winning and stopping. Openings of up to 4 random plies keep games from repeating.
_SEARCH: dict[str, Value] = {"engine": "gumbel-mcts", "simulations": 16, "opening-plies": 4}
# The evaluation asks the bare policy: it measures what was learnt, not what the search adds to it, an
# untrained net is exactly as strong as random play, and 200 games cost less than starting the process.
_BARE: dict[str, Value] = {"engine": "policy-only", "temperature": 0.1, "opening-plies": 4}
_NET: dict[str, Value] = {"channels": 32, "blocks": 1}
_LEARN: dict[str, Value] = {"batch-size": 64, "learning-rate": 0.01}

PRESETS: dict[str, dict[str, Preset]] = {
    "demo": {
        "connect4_2p": {
            "init": _NET,
            "selfplay": {**_SEARCH, "games": 192, "batch": 96, "foresight": "on"},
            "training": {**_LEARN, "steps": 400},
            "evaluation": {**_BARE, "groups": 100},
        },
        "square8_2p": {
            "init": _NET,
            "selfplay": {**_SEARCH, "games": 128, "batch": 64, "foresight": "on"},
            "training": {**_LEARN, "steps": 400},
            "evaluation": {**_BARE, "groups": 100},
        },
        "hex8_3p": {
            "init": _NET,
            # Three untrained players who see every threat stop each other: two games in three are drawn and
            # say nothing. Without foresight three in a hundred are.
            "selfplay": {**_SEARCH, "games": 256, "batch": 128, "foresight": "off", "score-scale": 0.2},
            "training": {**_LEARN, "steps": 400, "learning-rate": 0.005},
            # A group of three players is six games.
            "evaluation": {**_BARE, "temperature": 0.02, "groups": 34},
        },
    }
}

WINDOW_GENERATIONS = 4


def arguments(values: Mapping[str, Value]) -> list[str]:
    """Spell a mapping as command-line words."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
