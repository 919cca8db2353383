"""The program of the chaos test: marks its life with its start, then leaves its games.

    python -I -S program.py MARKS WORK SECONDS HABIT

A mark is one line `WORK START PID BOOT_S WORD`, appended every few milliseconds for as long as the process runs, so a
process that was killed has left the time of its last breath. START is the end of its directory's name: its fence, and
after a dot how often it was started again under it. HABIT is `plain`, `deaf` (ignores SIGTERM) or `parent`
(leaves a child with a session of its own behind, which marks like the parent).
"""

# pathlib and argparse would double the start-up time.
# ruff: noqa: PTH104, PTH123

import json
import os
import signal
import sys
import time

EVERY_S = 0.02


def main(path: str, work: str, seconds: float, habit: str) -> None:
    folder = os.environ["RINGRIFT_JOB_DIR"]
    start = folder.rpartition("-")[2]
    marks = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def mark(word: str) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.write(marks, f"{work} {start} {os.getpid()} {now:.4f} {word}\n".encode())

    if habit == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark("start")
    if habit == "parent" and os.fork() == 0:
        os.setsid()
        while True:
            mark("child")
            time.sleep(EVERY_S)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        mark("runs")
        time.sleep(EVERY_S)
    with open(f"{folder}/out/games.txt", "w") as file:
        file.write(f"{work} {start}\n")
    result = {
        "counts": {"games": 1, "positions": 7},
        "outputs": [{"path": "games.txt", "kind": "games", "counts": {"games": 1}}],
    }
    with open(f"{folder}/result.tmp", "w") as file:
        json.dump(result, file)
    os.rename(f"{folder}/result.tmp", f"{folder}/result.json")
    mark("end")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4])
