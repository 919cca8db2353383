"""Jobs on hosts that have only an SSH server: the whole agent over a real one."""

from __future__ import annotations

import shutil
from pathlib import Path

from executors.gateway import Keys
from executors.logs import Logs
from statemachine import settings
from statemachine.commands import RegisterArtifact, StopJob
from statemachine.rows import Actual, WorkStatus
from statemachine.settings import OutputRule, Template
from statemachine.values import Input
from tests.executors.agents import GAMES, KEEPS_A_PART, STUBBORN, WAIT, program
from tests.executors.hosts import run, site
from tests.executors.memory import QUICK, MemoryCluster, eventually
from tests.support.sshd import Sshd


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


def test_a_program_that_fails_over_there_is_started_again_over_there(server: Sshd, tmp_path: Path) -> None:
    code = """
import json, os, sys
starts = open("checkpoint/starts", "a+")
starts.write("x")
starts.seek(0)
number = len(starts.read())
assert not os.listdir("out")
open("out/games.txt", "w").write("of start " + str(number))
if number < 3:
    sys.exit("CUDA error: start " + str(number))
outputs = [{"path": "games.txt", "kind": "games", "counts": {"games": number}}]
open("result.json", "w").write(json.dumps({"counts": {"games": number}, "outputs": outputs}))
"""

    async def go() -> None:
        async with site(server, tmp_path, keys=Keys(jobs=1)) as one:
            restart = settings.Restart(attempts=2, delay_ms=300, cap_ms=300)
            job = one.place("w1", program(code, restart=restart))
            await eventually(lambda: one.cluster.state.jobs[job.job].times_restarted == 1)
            await one.crash()
            one.begin()
            await one.joined()
            await one.ended("w1")
            row = one.cluster.state.jobs[job.job]
            assert (row.counts, row.times_restarted, len(one.cluster.jobs_of("w1"))) == ({"games": 3}, 2, 1)
            (output,) = row.outputs
            assert one.blobs.path(output.digest).read_bytes() == b"of start 3"
            await eventually(lambda: one.over_there() == [])

    run(go)


def ready(cluster: MemoryCluster, work: str) -> bool:
    """Whether an item's backoff is over; lets the cluster clock go on."""
    cluster.apply()
    return cluster.state.work[work].ready_at_ms <= cluster.state.now_ms
