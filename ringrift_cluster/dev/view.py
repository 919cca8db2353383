"""The live terminal picture: one screen, from one look at the cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ringrift_cluster.dev.observer import Json, Picture

#: seconds over which the games per second are averaged
RATE_WINDOW_S = 30.0
#: ratings shown for each config
TOP = 4


class Rate:
    """Games per second from cumulative counts; a restart of a job may lower what is in play, never the rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, picture: Picture) -> None:
        games = picture.counted_games + picture.games_in_play
        best = max((g for _, g in self._seen), default=0)
        self._seen.append((picture.at_s, max(games, best)))
        while picture.at_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def per_second(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        (t0, g0), (t1, g1) = self._seen[0], self._seen[-1]
        return (g1 - g0) / (t1 - t0) if t1 > t0 else 0.0


def screen(picture: Picture, rate: float, elapsed_s: float, story: Sequence[str], pids: dict[str, int | None]) -> Group:
    """Everything a watcher wants to know, top to bottom."""
    parts: list[RenderableType] = [_headline(picture, rate, elapsed_s), _nodes(picture, pids), _running(picture)]
    if picture.rankings:
        parts.append(_ratings(picture))
    parts.append(_footer(picture, story))
    return Group(*parts)


def _headline(picture: Picture, rate: float, elapsed_s: float) -> RenderableType:
    status = picture.status
    if not status:
        return Panel(Text("no node answers yet", style="yellow"), title="ringrift-cluster")
    leader = status["leader_id"] or "nobody"
    queue = {k: v for k, v in status["work_queue"]["by_status"].items() if v}
    lines = Text()
    lines.append("leader ", style="dim")
    lines.append(leader, style="bold green" if status["leader_id"] else "bold red")
    lines.append(f"   term {status['term']}   index {status['applied']}   digest {status['digest'][:8]}\n")
    lines.append("queue  ", style="dim")
    lines.append("   ".join(f"{name} {count}" for name, count in queue.items()) or "empty")
    lines.append("\ngames  ", style="dim")
    lines.append(f"{picture.counted_games + picture.games_in_play:,}   {rate:.1f} per second   promotions ")
    lines.append(str(picture.promotions), style="bold magenta")
    lines.append(f"   up {int(elapsed_s) // 60}:{int(elapsed_s) % 60:02d}")
    if status.get("stalled"):
        lines.append(f"\nnothing runs: {status['stalled']['sentence']}", style="yellow")
    return Panel(lines, title="ringrift-cluster", subtitle=f"from {picture.source}")


def _nodes(picture: Picture, pids: dict[str, int | None]) -> RenderableType:
    table = Table(expand=True, box=None, padding=(0, 1))
    for name in ("node", "role", "state", "slots", "pid", "address"):
        table.add_column(name, style="cyan" if name == "node" else "")
    peers = {p["peer"]: p for p in picture.peers}
    leader = picture.status.get("leader_id")
    for name, pid in pids.items():
        peer: Json = peers.get(name, {})
        state = str(peer.get("status", "-")) if pid else "down"
        colour = {"alive": "green", "suspect": "yellow"}.get(state, "red" if state != "-" else "dim")
        role = "leader" if name == leader else str(peer.get("role", "-"))
        used = sum(1 for j in picture.jobs if j["peer"] == name)
        slots = f"{used}/{peer.get('facts', {}).get('cpu_slots', 0)}" if peer else "-"
        table.add_row(name, role, Text(state, style=colour), slots, str(pid or "-"), str(peer.get("address", "")))
    return Panel(table, title="nodes")


def _running(picture: Picture) -> RenderableType:
    table = Table(expand=True, box=None, padding=(0, 1))
    for name in ("job", "node", "state", "progress", ""):
        table.add_column(name, no_wrap=True)
    for job in picture.jobs:
        done, total, unit = _progress(job)
        bar = ProgressBar(total=max(total, 1), completed=min(done, total), width=24) if total else Text("")
        table.add_row(job["job"], job["peer"], job["actual"], bar, f"{done:,}/{total:,} {unit}" if total else "")
    if not picture.jobs:
        table.add_row(Text("nothing runs", style="dim"), "", "", "", "")
    return Panel(table, title="running jobs")


def _progress(job: Json) -> tuple[int, int, str]:
    for unit, total in job["total"].items():
        return int(job["counts"].get(unit, 0)), int(total), unit
    return 0, 0, ""


def _ratings(picture: Picture) -> RenderableType:
    table = Table(expand=True, box=None, padding=(0, 1))
    for name in ("config", "participant", "Elo", "+-", "games", "status"):
        table.add_column(name, justify="right" if name in ("Elo", "+-", "games") else "left")
    for config, rows in picture.rankings.items():
        for n, row in enumerate(rows[:TOP]):
            generation = f"generation {row['generation']}" if row["generation"] >= 0 else row["participant"]
            style = {"champion": "bold green", "baseline": "dim"}.get(row["status"], "")
            cells = (f"{row['elo']:.0f}", f"{row['stderr']:.0f}", str(row["games"]), row["status"])
            table.add_row(config if n == 0 else "", generation, *cells, style=style)
    return Panel(table, title="Elo (random is pinned at 400)")


def _footer(picture: Picture, story: Sequence[str]) -> RenderableType:
    text = Text(
        "try it: kill -9 the pid of the leader, of a follower or of a workload.   Ctrl-C ends everything", style="dim"
    )
    for line in list(story)[-3:]:
        text.append(f"\n{line}", style="yellow")
    return text
