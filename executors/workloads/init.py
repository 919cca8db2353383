"""Write the untrained network of a seed: ``python -m executors.workloads.init --config KEY --seed S``."""

from __future__ import annotations

from collections.abc import Sequence

from executors.workloads import games, net
from executors.workloads.contract import EXIT_OK, Arguments, Job, StopSignal, run, whole


def parser() -> Arguments:
    """The arguments of this program."""
    found = Arguments("init", "Write the untrained network of a seed.")
    found.add_argument("--config", required=True, help="such as connect4_2p")
    found.add_argument("--channels", type=whole(1, net.MAX_CHANNELS), default=32)
    found.add_argument("--blocks", type=whole(0, net.MAX_BLOCKS), default=1)
    return found


def main(arguments: Sequence[str], stop: StopSignal) -> int:
    """Write ``out/model.pt``; too short to be stopped half way."""
    chosen = parser().parse_args(arguments)
    game = games.load(chosen.config)
    job = Job.open(chosen.job_dir)
    spec = net.NetSpec(game.key, chosen.channels, chosen.blocks)
    net.save(job.out / "model.pt", net.untrained(game, spec, chosen.seed), 0)
    counts = {"steps": 0, "samples": 0}
    job.progress(counts, force=True)
    job.finish(
        {
            "counts": counts,
            "metrics": {},
            "outputs": [{"path": "model.pt", "kind": "model", "counts": counts}],
        }
    )
    return EXIT_OK


if __name__ == "__main__":
    run(main)
