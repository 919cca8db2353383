"""Arguments that suit a purpose, as plain data: reading them needs neither torch nor numpy.

``PRESETS[purpose][config][workload]`` maps argument names to values; whoever starts the workload adds what
belongs to the one run: config, seed, model, data. ``demo`` is for two ordinary cores.
"""

from __future__ import annotations

from collections.abc import Mapping

Value = int | float | str
Preset = dict[str, dict[str, Value]]

# Few simulations: a drop-k game has one column per action, and 16 to 24 looks at 7 to 9 columns already see
# every win at once and every threat. Openings of up to 4 random plies keep games from repeating.
_SEARCH: dict[str, Value] = {"engine": "gumbel-mcts", "simulations": 24, "opening-plies": 4}
# The evaluation asks the bare policy: it measures what was learnt, not what the search adds to it, an
# untrained net starts at the strength of random play, and 100 games cost less than starting the process.
_BARE: dict[str, Value] = {"engine": "policy-only", "temperature": 0.2, "opening-plies": 4}
_NET: dict[str, Value] = {"channels": 32, "blocks": 1}
_LEARN: dict[str, Value] = {"steps": 250, "batch-size": 64, "learning-rate": 0.004}

PRESETS: dict[str, dict[str, Preset]] = {
    "demo": {
        "connect4_2p": {
            "init": _NET,
            "selfplay": {**_SEARCH, "games": 192, "batch": 96},
            "training": _LEARN,
            "evaluation": {**_BARE, "groups": 100},
        },
        "square8_2p": {
            "init": _NET,
            "selfplay": {**_SEARCH, "games": 96, "batch": 96},
            "training": _LEARN,
            "evaluation": {**_BARE, "groups": 100},
        },
        "hex8_3p": {
            "init": _NET,
            "selfplay": {**_SEARCH, "games": 96, "batch": 96},
            "training": _LEARN,
            # A group of three players is six games.
            "evaluation": {**_BARE, "groups": 34},
        },
    }
}

WINDOW_GENERATIONS = 4


def arguments(values: Mapping[str, Value]) -> list[str]:
    """Spell a mapping as command-line words."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
