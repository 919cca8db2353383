"""One run of the development cluster, from preparing the directory to the last process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
from rich.console import Console
from rich.live import Live

from executors.host import usable_cores
from ringrift_cluster import bootstrap
from ringrift_cluster.cli.options import DEFAULT_API
from ringrift_cluster.dev import report
from ringrift_cluster.dev.observer import Observer, Picture
from ringrift_cluster.dev.processes import MARKER, DevError, Nodes, Plan, prepare
from ringrift_cluster.dev.view import Rate, screen

#: how long a cluster may take from its start to a leader
START_S = 60.0
LOOK_EVERY_S = 1.0
#: how long a reached goal waits for the last ratings
SETTLE_S = 45.0
NO_TORCH = (
    "the workloads of the demo need torch, which is not installed here; pip install 'ringrift-cluster[demo]'"
    " (with a checkout: make demo)"
)
#: every so many looks the slow tables are read too
SLOW_EVERY = 4


@dataclass(frozen=True)
class DevOptions:
    """The flags of `ringrift-node dev`."""

    data_dir: Path = Path(".demo")
    fresh: bool = False
    until_promotions: int | None = None
    minutes: float | None = None
    voters: int = 3
    followers: int = 2
    base_port: int = 8770
    headless: bool = False


@dataclass
class _Progress:
    """What a run has seen so far."""

    began_s: float = 0.0
    promotions_before: int | None = None
    promotion_times_s: list[float] = field(default_factory=list)

    def take(self, picture: Picture) -> None:
        if self.promotions_before is None:
            self.promotions_before = picture.promotions
        new = picture.promotions - self.promotions_before
        while len(self.promotion_times_s) < new:
            self.promotion_times_s.append(picture.at_s - self.began_s)


def main(options: DevOptions) -> int:
    """Run until the goal, the time limit or Ctrl-C; returns the exit code."""
    console = Console()
    if importlib.util.find_spec("torch") is None:
        sys.stderr.write(f"ringrift-node dev: {NO_TORCH}\n")
        return 2
    wanted = Plan(options.base_port, options.voters, options.followers)
    resumed = not options.fresh and (options.data_dir / MARKER).exists()
    try:
        plan = prepare(options.data_dir.absolute(), wanted, options.fresh)
    except DevError as error:
        sys.stderr.write(f"ringrift-node dev: {error}\n")
        return 2
    if plan != wanted:
        why = "that is how this directory's cluster was made; --fresh makes a new one" if resumed else "ports are taken"
        console.print(f"running {plan}, not {wanted}: {why}", highlight=False, soft_wrap=True)
    # Each follower gets its share of the cores, so that a small machine is not asked for more than it has.
    slots = max(usable_cores() // max(plan.followers, 1), 1)
    nodes = Nodes(plan, options.data_dir.absolute(), slots)
    return asyncio.run(_Session(options, nodes, console).run())


class _Session:
    def __init__(self, options: DevOptions, nodes: Nodes, console: Console) -> None:
        self._options = options
        self._nodes = nodes
        self._console = console
        self._stop = asyncio.Event()
        self._progress = _Progress()
        self._rate = Rate()
        self._picture = Picture()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        plan = self._nodes.plan
        self._say(f"starting {plan.voters} voters and {plan.followers} followers; data in {self._nodes.folder}")
        self._nodes.start()
        self._progress.began_s = loop.time()
        reason = ""
        try:
            async with httpx.AsyncClient(timeout=5.0) as http:
                self._observer = Observer([plan.url(name) for name in plan.names], http)
                await self._wait_for_leader()
                await self._bootstrap(http)
                api = plan.url(plan.names[0])
                self._say(f"API at {api}, for example: ringrift-node status")
                if api != DEFAULT_API:
                    self._say(f"for the commands in another terminal: export RINGRIFT_API={api}")
                reason = await self._watch()
        except DevError as error:
            reason = str(error)
        finally:
            elapsed = loop.time() - self._progress.began_s
            self._say("stopping: jobs first, then followers, then voters")
            killed = await asyncio.to_thread(self._nodes.stop)
            if killed:
                self._say(f"had to be killed: {', '.join(killed)}")
            left = await asyncio.to_thread(self._nodes.end_leftovers)
            if left:
                self._say(f"ended {left} processes of jobs whose node was not there to end them")
        self._console.print(
            report.summary(self._picture, elapsed, self._progress.promotion_times_s, self._nodes.story),
            highlight=False,
            soft_wrap=True,
        )
        path = report.chart(self._picture, self._nodes.folder)
        if path is not None:
            self._say(f"Elo chart: {path}")
        if reason:
            sys.stderr.write(f"ringrift-node dev: {reason}\n")
            return 1
        return 0

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, soft_wrap=True)

    async def _wait_for_leader(self) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() - self._progress.began_s < START_S:
            self._nodes.tend()
            picture = await self._observer.look(self._picture, everything=True)
            if picture and picture.status["leader_id"] and picture.status["ready"]:
                self._picture = picture
                return
            await self._pause(0.2)
            if self._stop.is_set():
                raise DevError("stopped before the cluster had a leader")
        first = self._nodes.plan.names[0]
        end = f"the end of {self._nodes.log_file(first)}:\n{self._nodes.last_words(first)}"
        raise DevError(f"no leader within {START_S:g} s; {end}")

    async def _bootstrap(self, http: httpx.AsyncClient) -> None:
        """Propose the demo's settings; those that exist are left as they are."""
        body = msgspec.msgpack.encode(bootstrap.commands(bootstrap.Profile.DEMO))
        for name in self._nodes.plan.names[: self._nodes.plan.voters]:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(
                    f"{self._nodes.plan.url(name)}/propose",
                    content=body,
                    headers={"content-type": "application/msgpack"},
                )
                if answer.is_success:
                    return
        raise DevError("no voter took the demo's settings; look at the voters' node.log")

    async def _watch(self) -> str:
        """Look, show and tend until something ends the run; returns why it failed, or an empty text."""
        options = self._options
        loop = asyncio.get_running_loop()
        looks = 0
        with self._live() as live:
            while not self._stop.is_set():
                self._nodes.tend()
                picture = await self._observer.look(self._picture, everything=looks % SLOW_EVERY == 0)
                looks += 1
                elapsed = loop.time() - self._progress.began_s
                if picture is not None:
                    self._picture = picture
                    self._progress.take(picture)
                    self._rate.add(picture)
                self._show(live, elapsed, looks)
                done = len(self._progress.promotion_times_s)
                if options.until_promotions is not None and done >= options.until_promotions:
                    await self._settle()
                    return ""
                if options.minutes is not None and elapsed > options.minutes * 60:
                    if options.until_promotions is None:
                        return ""
                    return f"{done} of {options.until_promotions} promotions within {options.minutes:g} minutes"
                await self._pause(LOOK_EVERY_S)
        if options.until_promotions is not None:
            return f"stopped after {len(self._progress.promotion_times_s)} of {options.until_promotions} promotions"
        return ""

    async def _settle(self) -> None:
        """Let the newest champion be rated, so that the summary can name its Elo."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + SETTLE_S
        while loop.time() < deadline and not self._stop.is_set():
            self._nodes.tend()
            picture = await self._observer.look(self._picture, everything=True)
            if picture is not None:
                self._picture = picture
                waiting = picture.status["work_queue"]["by_type"].get("evaluation", {}).get("pending", 0)
                rating = any(j["work"].startswith("rating-") for j in picture.jobs)
                if loop.time() - began > 4 * LOOK_EVERY_S and not rating and not waiting:
                    return
            await self._pause(LOOK_EVERY_S)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    @contextlib.contextmanager
    def _live(self) -> Iterator[Live | None]:
        if self._options.headless or not self._console.is_terminal:
            yield None
            return
        with Live(console=self._console, auto_refresh=False, screen=False, transient=True) as live:
            yield live

    def _show(self, live: Live | None, elapsed: float, looks: int) -> None:
        picture = self._picture
        if live is not None:
            pids = {name: self._nodes.pid(name) for name in self._nodes.plan.names}
            live.update(screen(picture, self._rate.per_second, elapsed, self._nodes.story, pids), refresh=True)
        elif looks % 10 == 1:
            status = picture.status
            self._say(
                f"{elapsed:6.0f} s  leader {status.get('leader_id')}  term {status.get('term')}  "
                f"games {picture.counted_games + picture.games_in_play:,} ({self._rate.per_second:.1f}/s)  "
                f"promotions {picture.promotions}  running "
                + (", ".join(f"{j['work_type']} {j['config']}" for j in picture.jobs) or "nothing")
            )
