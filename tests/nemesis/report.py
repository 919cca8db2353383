"""How long the cluster took no write, and the table that a run ends with."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.nemesis.faults import Mark
from tests.nemesis.history import History, Outcome


def longest_gap(history: History, began_at: float, ended_at: float) -> float:
    """Seconds of the longest time within a span in which no write was acknowledged."""
    times = sorted(op.returned_at for op in history.acknowledged() if began_at < op.returned_at < ended_at)
    edges = [began_at, *times, ended_at]
    return max(later - earlier for earlier, later in itertools.pairwise(edges))


def recoveries(history: History, marks: Sequence[Mark], ended_at: float) -> dict[str, list[float]]:
    """By fault: seconds from each to the answer of the first write that began after it."""
    writes = sorted((op.returned_at, op.invoked_at) for op in history.acknowledged())
    found: dict[str, list[float]] = {}
    for mark in marks:
        back = next((answer for answer, asked in writes if asked >= mark.began_at), ended_at)
        found.setdefault(mark.fault, []).append(back - mark.began_at)
    return found


@dataclass(slots=True)
class Result:
    """One scenario's outcome; `violations` is empty when all is well."""

    scenario: str
    seed: int
    operations: int = 0
    acknowledged: int = 0
    ambiguous: int = 0
    gap_s: float = math.nan
    by_fault: dict[str, list[float]] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    skipped: str = ""
    kept: str = ""

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else f"{len(self.violations)} violations" if self.violations else "ok"


def summed_up(
    name: str, seed: int, history: History, marks: Sequence[Mark], began_at: float, ended_at: float
) -> Result:
    """The figures of a run; violations are added by whoever checked it."""
    outcomes = [op.outcome for op in history.ops if op.client != "end"]
    gaps: dict[str, float] = {}
    for mark in marks:
        # What a fault costs may show after its end; the next fault's start bounds it.
        following = min((m.began_at for m in marks if m.began_at > mark.began_at), default=ended_at)
        gap = longest_gap(history, mark.began_at, max(following, mark.began_at + 0.001))
        gaps[mark.fault] = max(gap, gaps.get(mark.fault, 0.0))
    return Result(
        name,
        seed,
        operations=len(outcomes),
        acknowledged=outcomes.count(Outcome.OK),
        ambiguous=outcomes.count(Outcome.INFO),
        gap_s=longest_gap(history, began_at, ended_at),
        by_fault=recoveries(history, marks, ended_at),
        gaps=gaps,
    )


def table(results: Sequence[Result]) -> str:
    """One line a scenario, then one line a fault."""
    lines = [f"{'scenario':<18} {'ops':>6} {'acked':>6} {'unsure':>6} {'gap s':>6}  verdict"]
    for r in results:
        if r.skipped:
            lines.append(f"{r.scenario:<18} {'':>6} {'':>6} {'':>6} {'':>6}  skipped: {r.skipped}")
        else:
            figures = f"{r.operations:>6} {r.acknowledged:>6} {r.ambiguous:>6} {r.gap_s:>6.2f}"
            lines.append(f"{r.scenario:<18} {figures}  {r.verdict}")
    lines += ["", f"{'fault':<18} {'times':>6} {'gap s':>6} {'median':>7} {'worst':>7}  seconds to the next write"]
    faults = sorted({fault for r in results for fault in r.by_fault})
    for fault in faults:
        times = [t for r in results for t in r.by_fault.get(fault, ())]
        gap = max(r.gaps.get(fault, 0.0) for r in results)
        lines.append(f"{fault:<18} {len(times):>6} {gap:>6.2f} {statistics.median(times):>7.2f} {max(times):>7.2f}")
    return "\n".join(lines)
