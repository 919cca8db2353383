"""One sitting: the figures that its parts took down, and the table that compares them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A figure of ours against an anchor's (or, without one, against a bound)."""

    text: str
    ours: str
    anchor: str
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""

    def line(self, figures: Figures) -> tuple[str, ...]:
        ours, anchor = figures.get(self.ours), figures.get(self.anchor)
        goal = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        goal += " x" if self.anchor else f" {self.unit}"
        if ours is None or (self.anchor and not anchor):
            return self.text, shown(ours, self.unit), shown(anchor, self.unit) if self.anchor else "", "", goal, "-"
        compared = ours / anchor if anchor else ours
        reached = compared <= self.at_most if self.at_most is not None else compared >= (self.at_least or 0.0)
        ratio = f"{compared:.2f} x" if anchor else ""
        return self.text, shown(ours, self.unit), shown(anchor, self.unit), ratio, goal, "yes" if reached else "no"


def shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"


ROWS = (
    Row("in process, one client, p50", "propose.1.p50_ms", "etcd.1.p50_ms", at_most=1.0, unit="ms"),
    Row("in process, 64 in flight", "propose.64.per_s", "etcd.64.per_s", at_least=1.5, unit="/s"),
    Row("in process, 512 in flight", "propose.512.per_s", "etcd.512.per_s", at_least=4.0, unit="/s"),
    Row("HTTP, one client, one add, p50", "http.1.p50_ms", "etcd.1.p50_ms", at_most=2.0, unit="ms"),
    Row("HTTP, 64 clients, single adds", "http.64.per_s", "etcd.64.per_s", at_least=0.5, unit="/s"),
    Row("HTTP, batches of 100, operations", "http.batch.ops_per_s", "etcd.512.per_s", at_least=6.0, unit="/s"),
    Row("full cycles, batches of 100", "http.batch.cycles_per_s", "postgres.cycles_per_s", at_least=5.0, unit="/s"),
    Row("failover after kill -9, median", "failover.kill.median_s", "etcd.kill.median_s", at_most=0.4, unit="s"),
    Row("failover after kill -9, worst", "failover.kill.worst_s", "etcd.kill.median_s", at_most=1.0, unit="s"),
    Row("a silent leader, median", "failover.silent.median_s", "etcd.silent.median_s", at_most=1.0, unit="s"),
    Row("feed, 1,000 followers: commands taken", "feed.per_s", "", at_least=195.0, unit="/s"),
    Row("feed: arrival p99", "feed.arrival_p99_ms", "", at_most=500.0, unit="ms"),
    Row("feed: add p99, with against without", "feed.add_p99_ms", "feed.alone_add_p99_ms", at_most=2.0, unit="ms"),
    Row("feed: idle voter", "feed.idle_cpu_percent", "", at_most=30.0, unit="% of a core"),
    Row("heartbeats of 10,000 peers: busiest voter", "heartbeats.cpu_percent", "", at_most=25.0, unit="% of a core"),
    Row("longest stall of a consensus thread, fsync apart", "stall.consensus_ms", "", at_most=100.0, unit="ms"),
    Row("longest stall of an HTTP loop", "stall.http_ms", "", at_most=100.0, unit="ms"),
)


@dataclass
class Sitting:
    """What was measured, and what could not be."""

    figures: Figures = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def note(self, name: str, value: float) -> None:
        self.figures[name] = value

    def worst(self, name: str, value: float) -> None:
        self.figures[name] = max(self.figures.get(name, 0.0), value)

    def lacks(self, sentence: str) -> None:
        self.missing.append(sentence)
        print(sentence, flush=True)

    def load(self, name: str, in_flight: int, seconds: float, latencies: Sequence[float]) -> None:
        """Take down a closed loop's rate, p50 and p99, and print them."""
        cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
        self.note(f"{name}.{in_flight}.per_s", len(latencies) / seconds)
        self.note(f"{name}.{in_flight}.p50_ms", cuts[49] * 1000)
        self.note(f"{name}.{in_flight}.p99_ms", cuts[98] * 1000)
        print(
            f"{name}: {in_flight} in flight: {len(latencies) / seconds:,.0f}/s, "
            f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms",
            flush=True,
        )

    def table(self) -> str:
        """Markdown; rows of which neither side was measured are left out."""
        head = ("figure (3 voters, clients on the same machine)", "ours", "anchor", "ratio", "goal", "reached")
        rows = [row.line(self.figures) for row in ROWS if {row.ours, row.anchor} & set(self.figures)]
        lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
        return "\n".join([*lines, *(f"Not measured: {sentence}" for sentence in self.missing)])


def machine() -> str:
    """The machine, in one line."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    load_1m = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, {system}, Python {platform.python_version()}, load {load_1m:.1f} before"
