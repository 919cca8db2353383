"""A stand-in workload: takes its time, tells its progress, makes a file and a result, as any program could."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--games", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--name", default="")
    arguments = parser.parse_args()
    folder = Path(os.environ["RINGRIFT_JOB_DIR"])
    began = time.monotonic()
    done = 0
    with (folder / "progress.jsonl").open("a") as progress:
        while done < arguments.games:
            share = (time.monotonic() - began) / max(arguments.seconds, 1e-9)
            now = min(int(share * arguments.games), arguments.games)
            if now > done:
                done = now
                line = {"counts": {"games": done}, "total": {"games": arguments.games}}
                progress.write(json.dumps(line) + "\n")
                progress.flush()
            time.sleep(0.02)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out" / "games.txt").write_text(f"{arguments.name} {arguments.games}\n")
    counts = {"games": done, "positions": 7 * done}
    result = {"counts": counts, "outputs": [{"path": "games.txt", "kind": "games", "counts": counts}]}
    draft = folder / "result.tmp"
    draft.write_text(json.dumps(result))
    draft.rename(folder / "result.json")


if __name__ == "__main__":
    main()
