"""What must be true when all is over: a pure look at the marks of the programs and the rows of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Life:
    """From the first to the last mark that processes of one start left, in boot-time seconds."""

    work: str
    fence: int
    #: how often it had been started before under that fence
    restarts: int
    first_s: float
    last_s: float
    ended: bool


def lives(lines: Iterable[str]) -> list[Life]:
    """The starts that left marks. Raises ValueError for a line that is no mark: marks must not tear."""
    found: dict[tuple[str, str], Life] = {}
    for line in lines:
        parts = line.split()
        if len(parts) != 5:
            raise ValueError(f"no mark: {line!r}")
        work, start, _, text, word = parts
        at_s, key = float(text), (work, start)
        fence, _, restarts = start.partition(".")
        old = found.get(key) or Life(work, int(fence), int(restarts or 0), at_s, at_s, ended=False)
        found[key] = replace(
            old, first_s=min(old.first_s, at_s), last_s=max(old.last_s, at_s), ended=old.ended or word == "end"
        )
    return list(found.values())


def overlaps(found: Iterable[Life]) -> list[str]:
    """Starts of one item of which one had not ended when a later one began."""
    by_work: dict[str, list[Life]] = {}
    for life in found:
        by_work.setdefault(life.work, []).append(life)
    problems = []
    for work, starts in sorted(by_work.items()):
        starts.sort(key=lambda life: (life.fence, life.restarts))
        for at, earlier in enumerate(starts):
            problems += [
                f"{work}: fence {later.fence}.{later.restarts} ran at {later.first_s:.3f} s, and "
                f"{earlier.fence}.{earlier.restarts} until {earlier.last_s:.3f} s"
                for later in starts[at + 1 :]
                if later.first_s <= earlier.last_s
            ]
    return problems


def miscounted(works: Iterable[str], tables: Mapping[str, Mapping[str, Any]], found: Iterable[Life]) -> list[str]:
    """Items that are not counted exactly once, totals that differ from them, results that nobody made."""
    problems = []
    finished = {(life.work, life.fence) for life in found if life.ended}
    succeeded: dict[str, list[dict[str, Any]]] = {}
    for job in tables["jobs"].values():
        if job["actual"] in ("pending", "starting", "running"):
            problems.append(f"{job['job']} is still {job['actual']}")
        if job["actual"] == "succeeded":
            succeeded.setdefault(job["work"], []).append(job)
    games = 0
    expected = list(works)
    for work in expected:
        row = tables["work"].get(work)
        if row is None or row["status"] != "completed":
            problems.append(f"{work} is {row['status'] if row else 'unknown'}: {row['reason'] if row else ''}")
            continue
        games += row["counts"].get("games", 0)
        counted = succeeded.get(work, [])
        if len(counted) != 1:
            problems.append(f"{work} has {len(counted)} jobs that succeeded: {[job['job'] for job in counted]}")
        problems += [
            f"{job['job']} succeeded under fence {job['fence']}, and no program of that fence came to its end"
            for job in counted
            if (work, job["fence"]) not in finished
        ]
    total = sum(row["games"] for row in tables["totals"].values())
    files = sum(row["kind"] == "games" for row in tables["artifacts"].values())
    if not games == total == files == len(expected):
        problems.append(f"{len(expected)} items count {games} games, the totals {total}, and there are {files} files")
    return problems
