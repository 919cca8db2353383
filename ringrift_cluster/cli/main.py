"""The command `ringrift-node`, up to the point where it is certain whose packages it imports."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

#: packages of this project whose names other distributions use too
SIBLINGS = ("statemachine", "executors")


def stranger(home: Path, name: str) -> str | None:
    """Where a sibling package would be imported from when that is not beside this one, else None."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return "nowhere"
    found = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    return None if Path(found).resolve().is_relative_to(home.resolve() / name) else found


def main() -> None:
    """Check that `statemachine` and `executors` are ours, then run the command line."""
    home = Path(__file__).parents[2]
    for name in SIBLINGS:
        where = stranger(home, name)
        if where is not None:
            sys.stderr.write(
                f"ringrift-node: the package {name!r} comes from {where} and not from {home / name}: another"
                f" distribution of that name is in the way; uninstall it, or install ringrift-cluster into its own"
                " virtual environment.\n"
            )
            raise SystemExit(2)
    from ringrift_cluster.cli.app import run

    run()
