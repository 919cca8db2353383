"""Jobs on hosts that have only an SSH server: the whole agent over a real one, with connections that are cut."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from executors import shim
from executors.blobs import Blobs
from executors.drivers.link import Declined, Door, Link, Unreachable
from executors.gateway import Gateway, Keys
from executors.host import DiskFloor
from executors.ledger import LedgerError
from executors.logs import Logs
from executors.options import Options
from statemachine import settings
from statemachine.commands import JoinPeer, RegisterArtifact, StopJob
from statemachine.rows import Actual, PeerStatus, WorkStatus
from statemachine.settings import OutputRule, Template, Timing
from statemachine.values import Input, PeerFacts
from tests.executors.agents import GAMES, KEEPS_A_PART, STUBBORN, WAIT, program
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.support.sshd import KINDS, Proxy, Sshd, missing

OPTIONS = Options(
    tick_s=0.1,
    upkeep_every_s=0.1,
    progress_every_s=0.05,
    margin_s=0.5,
    disk_floor=DiskFloor(percent=0.0, free_bytes=0),
    starts_per_s=1000.0,
)


@pytest.fixture(params=KINDS, scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if why := missing(request.param):
        pytest.skip(why)
    made = Sshd(request.param, tmp_path_factory.mktemp("ssh") / "sshd")
    yield made
    made.kill()


class Site:
    """A gateway with one host behind a proxy, and the cluster that both are peers of."""

    def __init__(self, server: Sshd, proxy: Proxy, data_dir: Path, keys: Keys, timing: Timing) -> None:
        self.cluster = MemoryCluster()
        self.cluster.setting("timing", timing)
        self.cluster.must(JoinPeer("gate", 1, "boot", "follower", "http://gate:1", PeerFacts()))
        self.server = server
        self.proxy = proxy
        self.root = data_dir / "host"
        self.host = settings.Host(
            gateway="gate",
            address="127.0.0.1",
            port=proxy.port,
            user=server.user,
            host_key=server.host_key,
            root=str(self.root),
            python=sys.executable,
            slots=8,
        )
        self.data_dir = data_dir / "gate"
        self.keys = replace(keys, key_file=server.key_file)
        self.blobs = Blobs(self.data_dir / "artifacts")
        self.http = httpx.AsyncClient()
        self.begin()

    def begin(self, node: str = "gate") -> None:
        self.gateway = Gateway(
            self.cluster,
            node=node,
            address=f"http://{node}:1",
            data_dir=self.data_dir,
            blobs=self.blobs,
            http=self.http,
            options=OPTIONS,
            keys=self.keys,
            cluster_id=lambda: "c1",
            look_s=0.05,
        )
        self.task = asyncio.create_task(self.gateway.run())

    async def crash(self) -> None:
        """What a kill -9 of the node process leaves."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def joined(self) -> None:
        self.cluster.setting("host/h1", self.host)
        await eventually(lambda: "h1" in self.gateway.statuses() and self.gateway.statuses()["h1"].joined)

    @property
    def attempts(self) -> list[Any]:
        post = self.gateway.posts.get("h1")
        return list(post.agent.attempts.values()) if post and post.agent else []

    def folder(self, job: str) -> Path:
        return next((self.data_dir / "hosts/h1/jobs").glob(f"{job}-*"))

    async def says(self, job: str, text: str) -> None:
        await eventually(lambda: any(text in p.read_text() for p in self.folders(job)))

    def folders(self, job: str) -> list[Path]:
        return list((self.data_dir / "hosts/h1/jobs").glob(f"{job}-*/stdout.log"))

    def over_there(self) -> list[Path]:
        jobs = self.root / "c1/h1/jobs"
        return list(jobs.iterdir()) if jobs.is_dir() else []

    def living(self) -> list[int]:
        return [pid for folder in self.over_there() for pid in shim.strays(str(folder))]

    def place(self, work: str, template: Template, **more: Any) -> Any:
        self.cluster.setting("template/t", template)
        self.cluster.add(work, "t", **more)
        return self.cluster.place(work, "h1")

    async def ended(self, work: str, status: WorkStatus = WorkStatus.COMPLETED) -> None:
        await eventually(lambda: self.cluster.state.work[work].status is status)


@asynccontextmanager
async def site(server: Sshd, tmp_path: Path, keys: Keys | None = None, timing: Timing = QUICK) -> Any:
    proxy = await Proxy(server.port).start()
    one = Site(server, proxy, tmp_path, keys or Keys(), timing)
    try:
        await one.joined()
        yield one
        for attempt in one.attempts:
            attempt.disown()
        await eventually(lambda: not any(a.is_alive for a in one.attempts))
    finally:
        await one.crash()
        await one.http.aclose()
        await proxy.stop()
    assert not one.living()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_job_on_a_host_completes_and_its_files_are_here_under_the_gateways_name(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            peer = one.cluster.state.peers["h1"]
            assert (peer.role, peer.facts.labels, peer.facts.cpu_slots) == ("ssh", ("ssh",), 8)
            digest = one.blobs.add(b"an input" * 100_000)
            one.cluster.must(RegisterArtifact(digest, 800_000, "data", "", "gate"))
            code = "import sys; print(len(open('inputs/model').read()), flush=True)\n" + GAMES
            job = one.place("w1", program(code), inputs=(Input("model", digest),))
            await one.ended("w1")
            assert "800000" in Logs(one.data_dir).tail(job.job)
            (output,) = one.cluster.state.jobs[job.job].outputs
            assert one.blobs.path(output.digest).read_bytes() == b"five games of " + job.job.encode()
            await eventually(lambda: one.cluster.state.artifacts[output.digest].holders == ("gate",))
            await eventually(lambda: one.over_there() == [])
            assert (one.root / "c1/h1/files" / digest).is_file()

    run(go)


def test_a_failure_over_there_has_its_class_and_last_words(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program("import sys; sys.exit('no board of that name')"))
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            row = one.cluster.state.jobs[job.job]
            assert (row.error_class, row.exit_code) == ("user", 1)
            assert "no board of that name" in row.error
            two = one.place("w2", replace_tree(program(WAIT), "/nowhere/at/all"))
            await eventually(lambda: one.cluster.state.jobs[two.job].actual is Actual.FAILED)
            assert "no directory on" in one.cluster.state.jobs[two.job].error

    run(go)


def replace_tree(template: Template, tree: str) -> Template:
    return Template(argv=template.argv, tree=tree)


def test_a_job_that_is_told_to_stop_keeps_its_part_and_a_stubborn_one_is_killed(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        timing = settings.Timing(**{**{f: getattr(QUICK, f) for f in QUICK.__struct_fields__}, "grace_ms": 500})
        async with site(server, tmp_path, timing=timing) as one:
            kind = one.place("w1", program(KEEPS_A_PART))
            await one.says(kind.job, "up")
            one.cluster.must(StopJob(kind.job, kind.fence, "by hand"))
            await eventually(lambda: one.cluster.state.jobs[kind.job].actual is Actual.STOPPED)
            assert one.cluster.state.jobs[kind.job].counts == {"games": 2}
            stubborn = one.place("w2", program(STUBBORN))
            await one.says(stubborn.job, "up")
            one.cluster.must(StopJob(stubborn.job, stubborn.fence, "by hand"))
            await eventually(lambda: one.cluster.state.jobs[stubborn.job].actual is Actual.STOPPED)
            assert one.cluster.state.jobs[stubborn.job].counts == {}

    run(go)


def test_outputs_are_found_by_rules_and_the_result_command_runs_over_there(server: Sshd, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "count.py").write_text("import json; print(json.dumps({'counts': {'matches': 3}}))")
    code = "open('out/a-17.jsonl', 'w').write('1\\n2\\n'); open('tree/b.txt', 'w').write('x'); open('out/no', 'w')"

    async def go() -> None:
        async with site(server, tmp_path) as one:
            rules = (OutputRule("a-*.jsonl", "games", "lines", "games"), OutputRule("tree/b.txt", "report"))
            argv = ("{python}", "{tree}/count.py")
            template = Template(program(code).argv, tree=str(tree), outputs=rules, result=argv, private=True)
            job = one.place("w1", template)
            await one.ended("w1")
            row = one.cluster.state.jobs[job.job]
            assert row.counts == {"games": 2, "matches": 3}
            assert sorted(output.path for output in row.outputs) == ["a-17.jsonl", "tree/b.txt"]

    run(go)


def test_a_checkpoint_goes_with_its_item_from_host_to_host(server: Sshd, tmp_path: Path) -> None:
    code = """
import json, os, sys
if not os.path.exists("checkpoint/half"):
    open("checkpoint/half", "w").write("half")
    sys.exit(1)
open("result.json", "w").write(json.dumps({"counts": {"games": 1}}))
"""

    async def go() -> None:
        async with site(server, tmp_path) as one:
            one.place("w1", program(code))
            await eventually(lambda: one.cluster.state.work["w1"].status is WorkStatus.PENDING)
            (row,) = [row for row in one.cluster.state.artifacts.values() if row.kind == "checkpoint"]
            await eventually(lambda: one.cluster.state.artifacts[row.digest].holders == ("gate",))
            shutil.rmtree(one.root / "c1/h1/checkpoints/w1")  # as if it had been another host
            await eventually(lambda: ready(one.cluster, "w1"))
            one.cluster.place("w1", "h1")
            await one.ended("w1")
            await eventually(lambda: list((one.root / "c1/h1/checkpoints").iterdir()) == [])

    run(go)


def ready(cluster: MemoryCluster, work: str) -> bool:
    """Whether an item's backoff is over; lets the cluster clock go on."""
    cluster.apply()
    return cluster.state.work[work].ready_at_ms <= cluster.state.now_ms


PULSE = """
import json, os, time
for beat in range(1, 400):
    with open("progress.jsonl", "a") as file:
        file.write(json.dumps({"counts": {"games": beat}}) + chr(10))
    print("beat", beat, os.getpid(), flush=True)
    if os.path.exists(os.path.expanduser(GO)):
        break
    time.sleep(0.02)
open("result.json", "w").write(json.dumps({"counts": {"games": 1}, "metrics": {"pid": os.getpid()}}))
"""


def pulse(go: Path) -> Template:
    return program(PULSE.replace("GO", repr(str(go))))


def test_a_connection_that_is_cut_while_a_job_runs_is_made_again_and_the_job_never_knew(
    server: Sshd, tmp_path: Path
) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            (process,) = one.gateway.posts["h1"].driver._lives.processes
            one.proxy.closed = True
            one.proxy.cut()
            driver = one.gateway.posts["h1"].driver
            await eventually(lambda: not driver.reached())
            beats = len(one.cluster.beats)
            await asyncio.sleep(0.5)
            assert [b.peer for b in one.cluster.beats[beats + 1 :]] == []
            one.proxy.closed = False
            await eventually(driver.reached)
            assert driver._lives.processes == {process}
            (tmp_path / "go").touch()
            await one.ended("w1")
            text = one.folder(job.job).joinpath("stdout.log").read_text()
            assert [int(line.split()[1]) for line in text.splitlines()] == list(range(1, text.count("\n") + 1))
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_an_upload_that_is_cut_goes_on_over_the_next_connection(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            data = os.urandom(6_000_000)
            digest = one.blobs.add(data)
            one.cluster.must(RegisterArtifact(digest, len(data), "data", "", "gate"))
            one.proxy.cut_after_up = 4_000_000
            code = "import hashlib; print(hashlib.sha256(open('inputs/model','rb').read()).hexdigest())\n" + GAMES
            job = one.place("w1", program(code), inputs=(Input("model", digest),))
            await one.ended("w1")
            assert digest in Logs(one.data_dir).tail(job.job)
            assert one.proxy.cuts == 1

    run(go)


def test_a_fetch_that_is_cut_goes_on_and_the_bytes_are_those_over_there(server: Sshd, tmp_path: Path) -> None:
    code = """
import hashlib, json, os
data = os.urandom(6_000_000)
open("out/big", "wb").write(data)
print(hashlib.sha256(data).hexdigest())
open("result.json", "w").write(json.dumps({"counts": {"games": 1}, "outputs": [{"path": "big", "kind": "games"}]}))
"""

    async def go() -> None:
        async with site(server, tmp_path) as one:
            one.proxy.cut_after_down = 4_000_000
            job = one.place("w1", program(code))
            await one.ended("w1")
            (output,) = one.cluster.state.jobs[job.job].outputs
            assert output.digest in Logs(one.data_dir).tail(job.job)
            assert hashlib.sha256(one.blobs.path(output.digest).read_bytes()).hexdigest() == output.digest
            assert one.proxy.cuts == 1

    run(go)


def test_a_gateway_that_is_killed_adopts_the_job_by_its_identity(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            (before,) = one.attempts
            await one.crash()
            one.begin()
            await one.joined()
            await eventually(lambda: one.attempts)
            (after,) = one.attempts
            assert after.process == before.process
            (tmp_path / "go").touch()
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_an_ssh_server_that_is_killed_and_started_again_finds_the_job_running(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", pulse(tmp_path / "go"))
            await one.says(job.job, "beat")
            await asyncio.to_thread(server.kill)
            driver = one.gateway.posts["h1"].driver
            await eventually(lambda: not driver.reached())
            await asyncio.to_thread(server.start)
            await eventually(driver.reached)
            (tmp_path / "go").touch()
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1

    run(go)


def test_a_lease_that_lapses_ends_the_job_though_gateway_and_connection_are_gone(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        short = settings.Timing(
            heartbeat_ms=500, suspect_after_ms=1_000, dead_after_ms=2_000, lease_ms={"default": 6_500}, grace_ms=1_000
        )
        async with site(server, tmp_path, timing=short) as one:
            job = one.place("w1", program(STUBBORN))
            await one.says(job.job, "up")
            assert one.living()
            await one.crash()
            one.proxy.closed = True
            one.proxy.cut()
            await eventually(lambda: not one.living(), 15)

    run(go)


def test_a_host_given_to_another_gateway_is_cleared_before_its_jobs_are_given_up(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(WAIT))
            await one.says(job.job, "up")
            await one.crash()
            one.data_dir = tmp_path / "other"
            one.cluster.must(JoinPeer("other", 1, "boot-2", "follower", "http://other:1", PeerFacts()))
            one.cluster.setting("host/h1", replace_gateway(one.host, "other"))
            one.begin("other")
            await eventually(lambda: one.cluster.state.peers["h1"].address == "http://other:1")
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert not one.living()
            assert one.cluster.state.jobs[job.job].error_class == "lost"

    run(go)


async def taken_by_another(one: Site) -> int:
    """Have another agent claim the host; returns its incarnation."""
    incarnation = one.cluster.state.peers["h1"].incarnation + 1
    fields = {"root": f"{one.root}/c1/h1"}
    other = await Link.open(replace(door(one.server, one.root), **fields))
    await other.call("claim", incarnation=incarnation, held=None)
    await other.close()
    return incarnation


def owner(one: Site) -> int:
    return (shim.read_record(f"{one.root}/c1/h1/owner") or {})["incarnation"]


def test_a_gateway_that_the_cluster_does_not_hear_takes_no_host_back(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)

    async def go() -> None:
        async with site(server, tmp_path) as one:
            other, before = await taken_by_another(one), one.gateway.posts["h1"].agent
            one.cluster.cut = True
            one.proxy.cut()

            def anew() -> bool:
                agent = one.gateway.posts["h1"].agent
                return agent not in (None, before) and agent._adopted.is_set()

            await eventually(anew)
            assert one.gateway.posts["h1"].agent.heartbeat.incarnation > other
            assert owner(one) == other
            one.cluster.cut = False
            await eventually(lambda: owner(one) > other)

    run(go)


def test_an_agent_that_lost_the_host_is_followed_by_another_and_the_job_did_not_fail(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)

    async def go() -> None:
        async with site(server, tmp_path) as one:
            other = await taken_by_another(one)
            one.place("w1", program(GAMES))
            await one.ended("w1")
            assert one.cluster.state.work["w1"].attempts == 1
            assert owner(one) > other

    run(go)


def replace_gateway(host: settings.Host, gateway: str) -> settings.Host:
    return settings.Host(**{**{f: getattr(host, f) for f in host.__struct_fields__}, "gateway": gateway})


def test_a_host_that_was_started_anew_has_nothing_of_before(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(WAIT))
            await one.says(job.job, "up")
            post = one.gateway.posts["h1"]
            post.agent.bench.ledger._write("update attempt set boot_id = 'before'")
            post.driver._line.boot_id = "before"
            one.proxy.cut()
            await eventually(lambda: one.cluster.state.jobs[job.job].actual is Actual.FAILED)
            assert one.cluster.state.jobs[job.job].error_class == "lost"
            assert not one.living()

    run(go)


def test_a_host_that_is_not_enabled_any_more_says_goodbye_with_its_jobs_stopped(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(KEEPS_A_PART))
            await one.says(job.job, "up")
            fields = {f: getattr(one.host, f) for f in one.host.__struct_fields__}
            one.cluster.setting("host/h1", settings.Host(**{**fields, "enabled": False}))
            await eventually(lambda: one.cluster.state.peers["h1"].left)
            assert one.cluster.state.peers["h1"].status is PeerStatus.DEAD
            assert one.cluster.state.jobs[job.job].counts == {"games": 2}
            assert not one.living()
            one.cluster.setting("host/h1", one.host)
            await eventually(lambda: not one.cluster.state.peers["h1"].left)

    run(go)


def test_no_goodbye_is_said_for_a_host_whose_jobs_could_not_be_stopped(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path) as one:
            job = one.place("w1", program(STUBBORN))
            await one.says(job.job, "up")
            driver = one.gateway.posts["h1"].driver
            one.proxy.closed = True
            one.proxy.cut()
            await eventually(lambda: not driver.reached())
            fields = {f: getattr(one.host, f) for f in one.host.__struct_fields__}
            one.cluster.setting("host/h1", settings.Host(**{**fields, "enabled": False}))
            await eventually(lambda: "h1" not in one.gateway.posts)
            assert one.living()
            assert not one.cluster.state.peers["h1"].left
            assert one.cluster.state.jobs[job.job].actual is Actual.RUNNING
            one.proxy.closed = False
            await one.joined()
            assert len(one.attempts) == 1

    run(go)


def test_a_host_whose_agent_cannot_be_made_keeps_no_connection(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executors.gateway.REST_S", 0.1)
    drivers: list[Any] = []
    made = Gateway._agent

    def fails(gateway: Gateway, name: str, setting: settings.Host, data_dir: Path, driver: Any) -> Any:
        drivers.append(driver)
        if len(drivers) == 1:
            raise LedgerError("the disk is full")
        return made(gateway, name, setting, data_dir, driver)

    monkeypatch.setattr(Gateway, "_agent", fails)

    async def go() -> None:
        async with site(server, tmp_path):
            assert [driver._line._link.broken for driver in drivers] == ["it was closed", ""]

    run(go)


def test_all_hosts_together_run_no_more_than_the_gateway_may(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        async with site(server, tmp_path, Keys(jobs=1)) as one:
            first = one.place("w1", pulse(tmp_path / "go"))
            await one.says(first.job, "beat")
            second = one.place("w2", program(GAMES))
            await asyncio.sleep(0.5)
            assert one.cluster.state.jobs[second.job].actual is Actual.PENDING
            (tmp_path / "go").touch()
            await one.ended("w2")

    run(go)


def door(server: Sshd, tmp_path: Path) -> Door:
    root = str(tmp_path / "root")
    return Door("127.0.0.1", server.port, server.user, server.key_file, server.host_key, None, root, sys.executable)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d, s: replace(d, host_key=(s.directory / "authorized").read_text()), "host key is not the one"),
        (lambda d, s: replace(d, host_key="", known_hosts=s.directory / "known"), "host key is not in"),
        (lambda d, s: replace(d, key_file=s.directory / "host"), "ermission denied"),
        (lambda d, s: replace(d, key_file=s.directory / "authorized"), "others can read"),
        (lambda d, s: replace(d, key_file=s.directory / "nothing"), "cannot be read"),
        (lambda d, s: replace(d, python="/no/python"), "did not start the outpost"),
        (lambda d, s: replace(d, port=1), "refused|failed"),
    ],
)
def test_a_host_that_cannot_be_trusted_or_used_is_unreachable_with_the_reason(
    server: Sshd, tmp_path: Path, change: Callable[[Door, Sshd], Door], sentence: str
) -> None:
    (server.directory / "known").write_text("")
    (server.directory / "authorized").chmod(0o644)

    async def go() -> None:
        with pytest.raises(Unreachable, match=sentence):
            await Link.open(change(door(server, tmp_path), server))

    run(go)


def test_a_host_key_of_the_known_hosts_file_is_taken(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")

    async def go() -> None:
        link = await Link.open(replace(door(server, tmp_path), host_key="", known_hosts=known))
        assert (await link.call("hello"))["boot_id"]
        with pytest.raises(Declined, match="nothing"):
            await link.call("nothing")
        await link.close()
        with pytest.raises(Unreachable, match="closed"):
            await link.call("hello")

    run(go)


def test_an_agent_that_lost_the_host_to_another_starts_nothing_there(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        old, new = await Link.open(door(server, tmp_path)), await Link.open(door(server, tmp_path))
        await old.call("claim", incarnation=1, held=[])
        await new.call("claim", incarnation=2, held=[])
        order = {"argv": ["true"], "env": {}, "cwd": "/", "nice": 0, "grace_s": 1, "margin_s": 1, "max_log_bytes": 9}
        with pytest.raises(Declined, match="another agent has this host now"):
            await old.call("start", name="w1-1", order=order, lease=1e12)
        with pytest.raises(Declined, match="newer than 1"):
            await old.call("claim", incarnation=1, held=[])
        await old.close()
        await new.close()

    run(go)
