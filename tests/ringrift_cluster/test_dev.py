"""The development cluster's own parts: where it runs, what it shows, what it says at the end."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from executors.host import usable_cores
from ringrift_cluster.dev import DevOptions, main
from ringrift_cluster.dev.observer import Json, Picture
from ringrift_cluster.dev.processes import DevError, Nodes, Plan, prepare
from ringrift_cluster.dev.report import chart, gains, summary
from ringrift_cluster.dev.view import Rate, screen
from tests.support.cluster import free_ports


def plan(voters: int = 3, followers: int = 2) -> Plan:
    """A plan on ports that were free a moment ago, low enough that a block fits behind."""
    base = min(free_ports(5))
    return Plan(base if base < 60_000 else 50_000, voters, followers)


def ranking(generation: int, elo: float, status: str) -> Json:
    return {
        "participant": f"{generation}",
        "generation": generation,
        "elo": elo,
        "stderr": 30.0,
        "games": 100,
        "status": status,
    }


def picture(games: int = 0, in_play: int = 0, at_s: float = 0.0) -> Picture:
    totals = {"connect4_2p": {"games": games, "promotions": 1, "training_jobs": 2, "evaluation_games": 300}}
    status = {
        "leader_id": "voter-1",
        "term": 4,
        "applied": 99,
        "digest": "ab" * 32,
        "totals": totals,
        "work_queue": {"by_status": {"pending": 2, "failed": 1}},
        "stalled": None,
    }
    job = {
        "job": "selfplay-1.1",
        "work_type": "selfplay",
        "peer": "follower-1",
        "actual": "running",
        "counts": {"games": in_play},
        "total": {"games": 64},
    }
    peers = [{"peer": "voter-1", "role": "voter", "status": "alive", "address": "http://x", "facts": {"cpu_slots": 0}}]
    rankings = {
        "connect4_2p": [ranking(3, 900.0, "champion"), ranking(0, 410.0, "former"), ranking(-1, 400.0, "baseline")]
    }
    return Picture(status, peers, [job], [], rankings, at_s, "http://x")


def test_a_second_start_in_the_same_directory_keeps_the_ports(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = prepare(folder, plan(), fresh=False)
    again = prepare(folder, Plan(first.base_port + 1000, 5, 0), fresh=False)
    assert again == first


def test_taken_ports_move_a_new_cluster_to_the_next_block(tmp_path: Path) -> None:
    wanted = plan()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", wanted.base_port))
        made = prepare(tmp_path / "demo", wanted, fresh=False)
    assert made.base_port == wanted.base_port + 100


def test_the_end_finds_the_workload_of_a_node_that_died_just_before(tmp_path: Path) -> None:
    inside = tmp_path / "demo" / "follower-1" / "jobs" / "selfplay-1.1"
    sleeper = [sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]

    def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            sleeper,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, name: str(folder)},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        return process

    with (
        start("RINGRIFT_JOB_DIR", inside) as workload,
        start("RINGRIFT_KEEPER", inside) as keeper,
        start("RINGRIFT_JOB_DIR", tmp_path / "demonstration") as stranger,
    ):
        # No node is there any more: the one that could end these two waits for its restart.
        nodes = Nodes(plan(), tmp_path / "demo", 1)
        assert nodes.stop() == []
        assert nodes.end_leftovers() == 2
        assert (workload.wait(5), keeper.wait(5)) == (-signal.SIGTERM, -signal.SIGTERM)
        assert stranger.poll() is None
        stranger.kill()
    assert nodes.end_leftovers() == 0


def test_a_node_whose_parent_died_before_it_could_look_leaves(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    with subprocess.Popen([sys.executable, "-c", ""]) as parent:
        parent.wait(10)
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "ringrift_cluster", "serve", "--node-id", "a", "--cluster", f"a=127.0.0.1:{port}"),
            *("--data-dir", str(tmp_path / "a"), "--cpu-slots", "0", "--exit-with-parent", str(parent.pid)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "reason=parent_gone" in ended.stdout + ended.stderr


def test_without_torch_the_demo_names_the_extra_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(DevOptions(data_dir=tmp_path / "demo")) == 2
    assert "pip install 'ringrift-cluster[demo]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("resumed", [True, False], ids=["an older plan", "taken ports"])
def test_a_demo_that_differs_from_its_flags_says_so(
    resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = plan(1, 0)
    made = Plan(wanted.base_port + 100, 3 if resumed else 1, 0)
    if resumed:
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "cluster.json").touch()

    class Ended:
        def __init__(self, options: DevOptions, nodes: Nodes, console: Console) -> None:
            assert nodes.plan == made
            assert nodes.cpu_slots == usable_cores()

        async def run(self) -> int:
            return 0

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("ringrift_cluster.dev.session._Session", Ended)
    monkeypatch.setattr("ringrift_cluster.dev.session.prepare", lambda *_: made)
    options = DevOptions(data_dir=tmp_path / "demo", voters=1, followers=0, base_port=wanted.base_port)
    assert main(options) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"running {made.voters} voters and 0 followers from port {made.base_port}, not 1 voters" in said
    assert ("--fresh" in said) == resumed


def test_fresh_never_empties_a_directory_that_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for fresh in (True, False):
        with pytest.raises(DevError):
            prepare(folder, plan(), fresh=fresh)
    assert (folder / "thesis.txt").exists()


def test_fresh_empties_what_an_earlier_start_made(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    prepare(folder, plan(), fresh=False)
    (folder / "voter-1").mkdir()
    prepare(folder, plan(), fresh=True)
    assert not (folder / "voter-1").exists()


def test_the_rate_never_falls_below_zero_when_a_job_is_lost() -> None:
    rate = Rate()
    for n, (games, in_play) in enumerate([(100, 20), (100, 40), (100, 0), (164, 10)]):
        rate.add(picture(games, in_play, at_s=10.0 * n))
    assert rate.per_second == pytest.approx((174 - 120) / 30)


def test_the_gain_is_from_the_untrained_net_to_the_champion() -> None:
    assert gains(picture()) == {"connect4_2p": (410.0, 900.0)}
    text = summary(picture(5000), 300.0, [120.0, 250.0], ["voter-2 ended with signal 9"])
    assert "champion 900 Elo (+490)" in text
    assert "promotions of this run at 120 s, 250 s" in text
    assert "1 work items are dead letters" in text


def test_the_screen_names_leader_jobs_ratings_and_pids() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(screen(picture(10, 5), 1.5, 61.0, ["voter-2 died"], {"voter-1": 4711, "voter-2": None}))
    shown = console.export_text()
    for word in ("voter-1", "4711", "down", "selfplay-1.1", "generation 3", "900", "1:01", "voter-2 died"):
        assert word in shown


def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = chart(picture(), tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert chart(Picture(), tmp_path) is None
