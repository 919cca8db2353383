"""The hosts without an agent that this node speaks for: an agent each, whose attempts live over there.

setting host/NAME  ->  connect  ->  an agent that joins as peer NAME  ->  it goes on as any agent does
the host cannot be reached      the agent gives no sign of life, so the law suspects the peer
the host was started anew       another agent, which joins with the new boot
another gateway took the host   another agent, which has it again when the cluster takes that agent
the setting changed             another agent, which adopts what runs
it is not enabled any more      jobs are stopped with their grace, the peer says goodbye if all of them ended
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from executors import host
from executors.agent import Agent
from executors.blobs import Blobs
from executors.book import Book
from executors.drivers.dialling import LOOK_S as HOST_LOOK_S
from executors.drivers.dialling import Terms
from executors.drivers.line import Rebooted
from executors.drivers.link import Declined, Door
from executors.drivers.ssh import Ssh
from executors.heartbeat import AgentRefused
from executors.ledger import LedgerError
from executors.notice import Notice
from executors.options import Options
from executors.pace import Pace
from executors.ports import Cluster, ClusterError
from executors.reconcile import Phase
from statemachine.commands import LeavePeer
from statemachine.rows import SSH
from statemachine.settings import Host

log = logging.getLogger(__name__)

LOOK_S = 2.0
#: shortest pause between two looks at the settings
BREATH_S = 0.25
#: connections that are being made at a time
DIALLING = 8
#: an agent that failed is followed by another after this long
REST_S = 5.0
#: stopping a host's jobs may take this much longer than their grace
STOP_S = 15.0
#: attempts of which something runs, or may
BEGUN = (Phase.PREPARING, Phase.RUNNING, Phase.STOPPING, Phase.WAITING)


@dataclass(frozen=True, slots=True)
class Keys:
    """How this node proves itself to hosts, and how it knows them."""

    key_file: Path | None = None
    known_hosts: Path | None = None
    #: attempts on all hosts together; 0 is no bound
    jobs: int = 0
    #: files that are sent or fetched at a time
    transfers: int = 4


@dataclass(slots=True)
class Post:
    """One host that is spoken for. `agent` is None while the host has not been reached."""

    setting: Host
    task: asyncio.Task[None]
    agent: Agent | None = None
    driver: Ssh | None = None


class Gateway:
    """Everything belongs to the loop that calls `run`."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        node: str,
        address: str,
        data_dir: Path,
        blobs: Blobs,
        http: httpx.AsyncClient,
        options: Options,
        keys: Keys,
        cluster_id: Callable[[], str],
        look_s: float = HOST_LOOK_S,
    ) -> None:
        """`cluster_id` is empty until the node knows its cluster. The options are those of this node."""
        self._cluster = cluster
        self._node = node
        self._address = address
        self._data_dir = data_dir
        self._blobs = blobs
        self._http = http
        self._options = options
        self._keys = keys
        self._cluster_id = cluster_id
        self.posts: dict[str, Post] = {}
        self._look_s = look_s

    async def run(self) -> None:
        """Follow the settings, until cancelled; jobs go on under their keepers then. Run again, it goes on."""
        with ThreadPoolExecutor(4, "hosts-disk") as disk:
            terms = self._shared(disk)
            try:
                while True:
                    if self._cluster_id():
                        try:
                            wanted, index = await self._cluster.read(lambda state: state.hosts_of(self._node))
                            await self._follow(wanted, terms)
                            await self._cluster.wait_for(index + 1, LOOK_S)
                        except ClusterError as error:
                            log.info("event=hosts_wait error=%s", error)
                    await asyncio.sleep(BREATH_S)
            finally:
                await self._end(list(self.posts))

    def _shared(self, disk: Executor) -> Terms:
        return Terms(
            clock=host.HostClock(),
            disk=disk,
            dialling=asyncio.Semaphore(DIALLING),
            moving=asyncio.Semaphore(self._keys.transfers),
            book=Book(time.monotonic, random.Random()),
            pace=Pace(self._options.transfer_bytes_per_s),
            room=self._room,
            checkpoints_kept_s=self._options.checkpoints_kept_s,
            look_s=self._look_s,
        )

    async def stop(self) -> None:
        """Stop the jobs of all hosts that can be reached, with their grace."""
        await asyncio.gather(*(self._stop_jobs(post) for post in self.posts.values()))

    def numbers(self) -> dict[str, float]:
        """For the metrics of its node."""
        reached = sum(post.driver is not None and post.driver.reached() for post in self.posts.values())
        return {"hosts_spoken_for": len(self.posts), "hosts_reached": reached}

    async def _follow(self, wanted: dict[str, Host], terms: Terms) -> None:
        for name, post in list(self.posts.items()):
            setting = wanted.get(name)
            if setting == post.setting and not post.task.done():
                continue
            if setting is not None and not setting.enabled:
                await self._bid_farewell(name, post)
            await self._end([name])
        for name, setting in wanted.items():
            if setting.enabled and name not in self.posts:
                self.posts[name] = Post(
                    setting, asyncio.create_task(self._serve(name, setting, terms), name=f"host {name}")
                )

    async def _end(self, names: list[str]) -> None:
        tasks = [self.posts.pop(name).task for name in names]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bid_farewell(self, name: str, post: Post) -> None:
        if post.agent is None or not post.agent.status().joined:
            return
        incarnation = post.agent.status().incarnation
        if not await self._stop_jobs(post):
            # What a goodbye gives up is granted again at once, so nothing of it may run.
            log.warning("event=goodbye_not_said host=%s error=%s", name, "its jobs may run until their leases are over")
            return
        try:
            await self._cluster.propose([LeavePeer(name, incarnation, "its host is not enabled any more")])
        except ClusterError as error:
            log.warning("event=goodbye_not_said host=%s error=%s", name, error)

    async def _stop_jobs(self, post: Post) -> bool:
        """End the agent and, if they can be reached, its jobs; whether all of that is known to have ended."""
        agent, driver = post.agent, post.driver
        if agent is None or driver is None:
            return False
        grace_s = max((a.grace_s for a in agent.attempts.values()), default=0.0)
        try:
            async with asyncio.timeout(grace_s + STOP_S):
                await agent.stop(stop_jobs=driver.reached())
        except TimeoutError:
            log.error("event=jobs_not_stopped host=%s detail=%s", driver.name, "their leases will end them")
            return False
        return not any(a.phase in BEGUN for a in agent.attempts.values())

    def _room(self) -> int:
        """How many more attempts may be begun on all hosts together."""
        if not self._keys.jobs:
            return 1_000_000
        agents = [post.agent for post in self.posts.values() if post.agent is not None]
        return self._keys.jobs - sum(a.phase in BEGUN for agent in agents for a in agent.attempts.values())

    # --- one host ---------------------------------------------------------------------------------

    async def _serve(self, name: str, setting: Host, terms: Terms) -> None:
        """Speak for one host, until cancelled."""
        while True:
            try:
                await self._speak_for(name, setting, terms)
            except Rebooted as error:
                log.warning("event=host_rebooted host=%s detail=%s", name, error)
                continue
            except (AgentRefused, LedgerError, Declined, OSError) as error:
                log.error("event=host_given_up host=%s retry_s=%g error=%s", name, REST_S, error)
            await asyncio.sleep(REST_S)

    async def _speak_for(self, name: str, setting: Host, terms: Terms) -> None:
        """One agent's life. Raises Rebooted, AgentRefused, LedgerError, Declined and OSError."""
        data_dir = self._data_dir / "hosts" / name
        data_dir.mkdir(parents=True, exist_ok=True)
        post = self.posts[name]
        driver = await Ssh.open(name, self._door(name, setting), data_dir, terms)
        try:
            agent = self._agent(name, setting, data_dir, driver)
        except (LedgerError, OSError):
            await driver.hang_up()
            raise
        post.agent, post.driver = agent, driver
        life, looks = asyncio.create_task(agent.run()), asyncio.create_task(driver.run())
        try:
            await asyncio.wait({life, looks}, return_when=asyncio.FIRST_COMPLETED)
            if looks.done():
                looks.result()
            await life
        finally:
            post.agent = post.driver = None
            life.cancel()
            looks.cancel()
            await asyncio.gather(life, looks, return_exceptions=True)

    def _agent(self, name: str, setting: Host, data_dir: Path, driver: Ssh) -> Agent:
        return Agent(
            self._cluster,
            peer=name,
            address=self._address,
            role=SSH,
            data_dir=data_dir,
            cluster_id=self._cluster_id(),
            blobs=self._blobs,
            http=self._http,
            gpus=driver,
            driver=driver,
            keeper=self._node,
            options=replace(
                self._options, cpu_slots=setting.slots, labels=(SSH, *setting.labels), reserve_cpus=0, notice=Notice()
            ),
        )

    def _door(self, name: str, setting: Host) -> Door:
        key_file = Path(setting.key_file).expanduser() if setting.key_file else self._keys.key_file
        return Door(
            address=setting.address,
            port=setting.port,
            user=setting.user,
            key_file=key_file or Path("~/.ssh/id_ed25519").expanduser(),
            host_key=setting.host_key,
            known_hosts=self._keys.known_hosts,
            root=f"{setting.root}/{self._cluster_id()}/{name}",
            python=setting.python,
        )
