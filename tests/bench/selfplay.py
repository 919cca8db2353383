"""Games per second and core of the demo's selfplay, by config, as its own process with one thread.

python -m tests.bench.selfplay [--games 192]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ringrift_cluster.bootstrap import DEMO_SIZES


def program(folder: Path, module: str, *words: str) -> float:
    """CPU seconds that a workload program took; its result is in `folder`."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", f"executors.workloads.{module}", *words],
        check=True,
        env={**os.environ, "RINGRIFT_JOB_DIR": str(folder)},
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=192)
    games = parser.parse_args().games
    print(f"{platform.processor() or platform.machine()}, one core, {games} games, process start included")
    print(f"{'config':<14} {'games/s/core':>13} {'positions/s':>12} {'seconds':>8}")
    for config, sizes in DEMO_SIZES.items():
        with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as played:
            program(
                Path(made),
                *("init", "--config", config, "--seed", "1"),
                *("--channels", str(sizes.channels), "--blocks", str(sizes.blocks)),
            )
            model = next(Path(made).glob("out/*.pt"))
            began = time.perf_counter()
            cpu = program(
                Path(played),
                *("selfplay", "--config", config, "--seed", "1", "--games", str(games), "--model", str(model)),
                *("--simulations", str(sizes.simulations), "--batch", str(sizes.batch)),
                *("--engine", "gumbel-mcts", "--opening-plies", str(sizes.opening_plies)),
                *("--foresight", sizes.foresight, "--score-scale", sizes.score_scale),
            )
            took = time.perf_counter() - began
            counts = json.loads((Path(played) / "result.json").read_text())["counts"]
            print(f"{config:<14} {counts['games'] / cpu:>13.1f} {counts['positions'] / cpu:>12.0f} {took:>8.1f}")


if __name__ == "__main__":
    main()
