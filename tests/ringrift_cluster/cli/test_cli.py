from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from msgspec.structs import replace
from typer.testing import CliRunner

from executors.folder import file_name
from executors.logs import Logs
from ringrift_cluster import __version__
from ringrift_cluster.api import status
from ringrift_cluster.api.app import create_app
from ringrift_cluster.api.services import LoopStatus, Services
from ringrift_cluster.cli.app import app
from ringrift_cluster.cli.call import advice, secured
from ringrift_cluster.cli.cluster import event_line, status_lines
from ringrift_cluster.cli.main import SIBLINGS, stranger
from ringrift_cluster.cli.output import short, size, span
from ringrift_cluster.client import Problem, Unreachable
from ringrift_cluster.feed.router import FeedRouter
from ringrift_cluster.raft.mark import Mark, encode_mark, read_mark
from ringrift_cluster.sources import Settings
from statemachine.commands import ClaimWork, FailJob, JoinPeer, LeavePeer, RecordMatch, ReportJob, RestartJob
from statemachine.rows import Event
from statemachine.snapshot import freeze, header, write
from statemachine.values import Gpu, MatchResult, PeerFacts, Tally
from tests.support.cluster import eventually
from tests.support.feeding import Voter, services_of
from tests.support.served import served

runner = CliRunner()
root = typer.main.get_command(app)
#: these start something instead of showing a value
STARTERS = {"serve", "dev"}


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command by its words."""
    if not hasattr(group, "commands"):
        yield path, group
        return
    if path and group.invoke_without_command:
        yield path, group
    for name, command in group.commands.items():
        yield from commands(command, *path, name)


ALL = dict(commands(root))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Services, str]]:
    """One server for all tests; each gives it a voter of its own."""
    services = services_of(Voter("a", tmp_path_factory.mktemp("server")), {"a": "http://127.0.0.1:1"})
    with served(create_app(services)) as url:
        yield services, url


@pytest.fixture
def voter(tmp_path: Path, server: tuple[Services, str]) -> Voter:
    voter = Voter("a", tmp_path)
    voter.run(
        JoinPeer("gpu-1", 1, "boot", "follower", "http://gpu-1:8770", PeerFacts(cpu_slots=4, gpus=(Gpu("GPU-0"),)))
    )
    services = server[0]
    services.replica, services.heartbeats, services.logs = voter, voter, Logs(tmp_path)
    services.feed = FeedRouter(voter)
    return voter


@pytest.fixture
def url(voter: Voter, server: tuple[Services, str]) -> str:
    return server[1]


@pytest.fixture
def cli(url: str) -> Any:
    def call(*words: str, code: int = 0, text: str | None = None) -> str:
        result = runner.invoke(app, list(words), env={"RINGRIFT_API": url}, input=text)
        assert result.exit_code == code, f"{words}: {result.output} {result.exception}"
        return result.stdout if code == 0 else result.output

    return call


def test_every_command_that_shows_something_takes_json() -> None:
    assert len(ALL) > 20
    without = {path for path, command in ALL.items() if not any("--json" in p.opts for p in command.params)}
    assert without == {(name,) for name in STARTERS}


def test_every_command_says_what_it_does_and_so_does_every_option() -> None:
    for path, command in ALL.items():
        assert command.help, path
        for option in command.params:
            assert getattr(option, "help", None) or getattr(option, "hidden", False), (path, option.name)


def test_serve_takes_every_setting_but_the_secrets_themselves() -> None:
    flags = {p.name for p in ALL[("serve",)].params} - {"config"}
    assert set(Settings.model_fields) - flags == {"auth_token", "cluster_secret", "join_token"}
    assert flags <= set(Settings.model_fields)


#: arguments of each command that shows something, against the small cluster below
CALLS: dict[tuple[str, ...], list[str]] = {
    ("voters", "list"): [],
    ("status",): [],
    ("peers",): [],
    ("leader",): [],
    ("drain",): ["gpu-1", "--reason", "new disk"],
    ("undrain",): ["gpu-1"],
    ("gpus", "list"): [],
    ("artifacts", "list"): ["--kind", "model"],
    ("artifacts", "manifest"): ["gpu-1"],
    ("artifacts", "status"): [],
    ("artifacts", "sync"): ["--reason", "after the move"],
    ("gpus", "drain"): ["gpu-1", "GPU-0", "--reason", "a reset", "--for-s", "60"],
    ("gpus", "undrain"): ["gpu-1", "GPU-0"],
    ("pause",): ["--reason", "power work"],
    ("resume",): [],
    ("shutdown",): [],
    ("events",): [],
    ("jobs",): ["--ended"],
    ("elo",): [],
    ("models",): [],
    ("matches", "void"): ["m1", "--reason", "its engine was broken"],
    ("work", "add"): ["selfplay", "--config", "hex8_2p", "-p", "games=5"],
    ("work", "list"): [],
    ("work", "show"): ["w1"],
    ("work", "cancel"): ["w1"],
    ("work", "retry"): ["w1"],
    ("gauntlet", "results"): [],
    ("ssh-tournament", "run"): ["r1", "--board", "hex8", "--tiers", "D1,D2", "-p", "mode=fast", "--dry-run"],
    ("ssh-tournament", "status"): ["r0"],
    ("ssh-tournament", "cancel"): ["r0", "--reason", "the wrong tiers"],
    ("settings", "get"): [],
    ("settings", "set"): ["retention", '{"work_ms": 60000}'],
    ("settings", "seed"): ["demo"],
    ("state", "dump"): [],
    ("token", "list"): [],
    ("token", "revoke"): ["t1"],
}


@pytest.mark.parametrize("path", CALLS, ids=" ".join)
def test_each_command_prints_text_for_people_and_json_for_programs(
    path: tuple[str, ...], cli: Any, voter: Voter
) -> None:
    cli("work", "add", "other", "--id", "w1")
    if path == ("work", "retry"):
        cli("work", "cancel", "w1")
    if path == ("matches", "void"):
        tally = (Tally(seats_a=1, seats_b=1, wins_a=3, wins_b=0, draws=0),)
        voter.run(RecordMatch("m1", "hex8_2p", MatchResult(a="heuristic", b="random", tally=tally)))
    if path[0] == "ssh-tournament":
        cli("settings", "set", "template/tournament", '{"argv": ["play"]}')
        cli("settings", "set", "host/h1", '{"gateway": "a", "address": "10.0.0.9", "user": "u"}')
        cli("ssh-tournament", "run", "r0", "--board", "hex8", "--tiers", "D1,D2", "--hosts", "h1")
    if path == ("token", "revoke"):
        cli("token", "create", "t1")
    text = cli(*path, *CALLS[path])
    assert text.strip()
    if path == ("work", "retry"):
        cli("work", "cancel", "w1")
    lines = cli(*path, *CALLS[path], "--json").splitlines()
    decoded = [json.loads(line) for line in lines]
    assert decoded
    assert len(decoded) == 1 or path == ("events",)


def test_all_commands_are_called_by_some_test() -> None:
    others = {
        ("serve",), ("dev",), ("logs",), ("gauntlet", "run"), ("raft", "verify"),
        ("models", "promote"), ("models", "rollback"),
        ("token", "create"), ("backup",), ("restore",), ("raft", "recover"), ("voters", "add"), ("voters", "remove"),
        ("certs", "init"), ("certs", "issue"), ("certs", "renew"), ("certs", "revoke"), ("certs", "show"),
            ("restart",), ("channels",),  # test_relay.py
        ("retire",),
    }  # fmt: skip
    assert set(ALL) - set(CALLS) == others | {("workload", "try")}  # test_workload.py


def test_a_token_is_not_taken_from_the_command_line() -> None:
    said = CliRunner().invoke(app, ["token", "list", "--token", "hush"])
    assert said.exit_code == 2
    assert "give --token-file" in " ".join(said.output.replace("│", " ").split())
    assert "hush" not in said.output


def test_the_secret_of_a_token_is_shown_once_or_kept_in_a_file_for_its_owner(
    cli: Any, voter: Voter, tmp_path: Path
) -> None:
    secret = cli("token", "create", "t1", "--scope", "submit", "--expires-s", "60").split()[-1]
    (row,) = voter.machine.state.tokens.values()
    assert (row.scope, row.sha256) == ("submit", hashlib.sha256(secret.encode()).hexdigest())
    out = tmp_path / "t2"
    said = cli("token", "create", "t2", "--scope", "join", "--uses", "3", "--out", str(out), "--json")
    assert json.loads(said)["secret"] == ""
    assert out.stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(out.read_text().strip().encode()).hexdigest() in voter.machine.state.index.tokens
    assert "new file" in cli("token", "create", "t3", "--out", str(out), code=2)
    assert "'t1'" in cli("token", "create", "t1", "--out", str(tmp_path / "t1"), code=1)
    assert not (tmp_path / "t1").exists()
    shown = cli("token", "list")
    assert "0 of 3" in shown
    assert secret not in shown


def test_an_authority_and_certificates_are_made_shown_and_renewed(tmp_path: Path) -> None:
    where = ["--dir", str(tmp_path / "pki")]

    def certs(*words: str, code: int = 0) -> str:
        result = runner.invoke(app, ["certs", *words, *where])
        assert result.exit_code == code, result.output
        return result.output

    assert "ca.crt cannot be read" in certs("issue", "v1", code=2)
    assert "authority" in certs("init")
    assert "exists" in certs("init", code=2)
    assert "127.0.0.1" in certs("issue", "v1", "--voter", "--host", "db.example.org")
    assert "certs renew v1" in certs("issue", "v1", code=2)
    assert "neither a host name" in certs("issue", "v2", "--host", "n\u00f6", code=2)
    keys = sorted((tmp_path / "pki").glob("*.key"))
    assert [(key.name, key.stat().st_mode & 0o777) for key in keys] == [("ca.key", 0o600), ("v1.key", 0o600)]
    before = (tmp_path / "pki" / "v1.crt").read_bytes()
    certs("renew", "v1")
    assert (tmp_path / "pki" / "v1.crt").read_bytes() != before
    shown = json.loads(certs("show", "--json"))
    assert [(one["facts"]["node_id"], one["facts"]["voter"]) for one in shown] == [("", False), ("v1", True)]
    assert "db.example.org" in shown[1]["facts"]["hosts"]
    assert "holds no PEM" in certs("show", str(keys[0]), code=2)
    assert "cannot be read" in certs("renew", "v9", code=2)
    authority = (tmp_path / "pki" / "ca.crt").read_bytes()
    assert "no node's certificate" in certs("renew", "ca", code=2)
    serials = [one["facts"]["serial"] for one in shown if one["facts"]["node_id"] == "v1"]
    assert "knows no certificate of v9" in certs("revoke", "v9", code=2)
    said = json.loads(certs("revoke", "v1", "--reason", "key-compromise", "--json"))
    # The one before the renewal may have leaked as well.
    assert set(serials) < set(said["added"])
    assert (len(said["added"]), said["total"]) == (2, 2)
    assert "nothing new" in certs("revoke", serials[0])
    assert "beside ca.crt on every node" in certs("revoke", "0abcdef012345678")
    certs("renew", "v1")
    shown = json.loads(certs("show", "--json"))
    assert [one["revoked"] for one in shown] == [False, False, True, True]
    assert {one["facts"]["serial"] for one in shown[2:]} == set(said["added"])
    assert "the authority itself" in certs("issue", "ca", code=2)
    assert (tmp_path / "pki" / "ca.crt").read_bytes() == authority


def test_what_is_not_there_is_named_in_a_sentence(tmp_path: Path) -> None:
    assert "holds no certificates" in runner.invoke(app, ["certs", "show", "--dir", str(tmp_path)]).output
    missing = ["restore", str(tmp_path / "none"), "--data-dir", str(tmp_path / "d"), "--cluster", "a=127.0.0.1:1"]
    said = runner.invoke(app, missing)
    assert (said.exit_code, "none cannot be read (No such file or directory)" in said.output) == (2, True)


def test_the_list_of_commands_cuts_no_sentence_off() -> None:
    assert "..." not in runner.invoke(app, ["--help"], env={"COLUMNS": "80"}).output.replace("[ARGS]...", "")


def test_the_release_is_told() -> None:
    said = runner.invoke(app, ["--version"])
    assert (said.exit_code, said.output) == (0, f"ringrift-cluster {__version__}\n")


def test_addresses_are_https_where_the_authority_is_known(tmp_path: Path) -> None:
    assert secured("http://127.0.0.1:8770") == "https://127.0.0.1:8770"
    assert secured("a:1, b:2,http://c:3") == "https://a:1,https://b:2,http://c:3"
    nothing = runner.invoke(app, ["status"], env={"RINGRIFT_TLS_CA": str(tmp_path / "none")})
    assert (nothing.exit_code, "cannot be read" in nothing.output) == (2, True)


def test_a_champion_is_rolled_back_by_a_command(cli: Any) -> None:
    words = ("models", "rollback", "hex8_2p", "a" * 64)
    assert "no champion to roll back from" in cli(*words, "--reason", "loses to random", code=5)
    assert "--reason" in cli(*words, code=2)


def test_an_operator_promotes_a_candidate_by_a_command(cli: Any) -> None:
    words = ("models", "promote", "hex8_2p", "a" * 64)
    assert "no model" in cli(*words, "--reason", "wins in the arena", code=5)
    assert "--reason" in cli(*words, code=2)


def test_an_event_says_how_long_ago_it_was() -> None:
    event = Event(7, 20, 60_000, "PeerJoined", "gpu-1", {"role": "follower"})
    assert event_line(event, 360_000).split() == ["7", "5", "min", "ago", "PeerJoined", "gpu-1", "role=follower"]
    assert event_line(event, 60_000).split()[1] == "now"


def test_status_names_the_parts_of_a_node_that_do_not_work_and_why() -> None:
    well = status.EXAMPLE
    assert not [line for line in status_lines(well) if str(line).startswith("!")]
    managers = replace(
        well.managers,
        job_manager=status.JobsHealth(False, 0, 0.0, "its agent is being started again"),
        sync_planner=status.SyncHealth(False, 0, 0.0, "no space left on the device"),
    )
    loops = {"placement": LoopStatus(True, True, last_error="KeyError: 'w1'")}
    ill = replace(well, leader_id=None, contact_age_ms=10**9, managers=managers, loops=loops)
    said = "\n".join(map(str, status_lines(ill)))
    assert "no contact yet" in said
    for words in ("a majority of the voters", "is being started again", "no space left", "placement failed: KeyError"):
        assert words in said
    assert "still to catch up" in "\n".join(map(str, status_lines(replace(well, ready=False))))


def test_status_and_show_say_why_nothing_runs(cli: Any) -> None:
    cli("work", "add", "selfplay", "--id", "w1")
    assert "node a (leader) of cluster memory" in cli("status")
    shown = cli("work", "show", "w1")
    assert shown.startswith("w1: pending - ")
    assert "1 alive of 1" in cli("peers")


def test_an_item_that_failed_names_the_command_that_shows_its_last_words(cli: Any, voter: Voter) -> None:
    cli("work", "add", "--file", "-", text='{"work_type": "selfplay", "work_id": "w1", "max_attempts": 1}')
    assert "ringrift-node logs" not in cli("work", "show", "w1")
    voter.run(ClaimWork("c-1", "gpu-1"))
    voter.run(FailJob("w1.1", 1, "user", "KeyError: 'board'", 1))
    shown = cli("work", "show", "w1")
    assert shown.count("KeyError: 'board'") == 1
    assert "ringrift-node logs w1.1" in shown


def test_an_item_that_runs_says_for_how_long(cli: Any, voter: Voter) -> None:
    cli("work", "add", "selfplay", "--id", "w1")
    voter.run(ClaimWork("c-1", "gpu-1"), ReportJob("w1.1", 1, "running"))
    voter.tick(2_000)
    assert " 2 s " in cli("work", "show", "w1")


def test_jobs_say_how_often_their_program_was_started_again(cli: Any, voter: Voter) -> None:
    cli("work", "add", "selfplay", "--id", "w1")
    voter.run(ClaimWork("c-1", "gpu-1"))
    voter.run(RestartJob("w1.1", 1, 2, "cuda", "CUDA error: lost"))
    shown = " ".join(cli("jobs").split())
    assert "restart 2 after cuda" in shown


def test_many_items_come_from_a_count_a_file_or_stdin(cli: Any, tmp_path: Path) -> None:
    assert "3 queued, 0 refused" in cli("work", "add", "x", "--id", "n", "--count", "3")
    file = tmp_path / "items.json"
    file.write_text('[{"work_type":"x","work_id":"f1"},{"work_type":"x","work_id":"f2"}]')
    assert "2 queued" in cli("work", "add", "--file", f"@{file}")
    assert "s1 is queued" in cli("work", "add", "--file", "-", text='{"work_type":"x","work_id":"s1"}')
    file.write_text('[{"work_type":"x","work_id":"f1","priority":1},{"work_type":"x","work_id":"f3"}]')
    assert "f1: conflict" in cli("work", "add", "--file", f"@{file}", code=1)


def test_a_log_is_printed_and_followed_to_its_end(cli: Any, voter: Voter, tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / f"{file_name('w1.1')}-7"
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text("one\ntwo\nthree\n")
    (folder / "exit.json").write_text("{}")
    assert cli("logs", "w1.1") == "one\ntwo\nthree\n"
    assert cli("logs", "w1.1", "--tail", "1").strip() == "three"
    assert cli("logs", "w1.1", "-f") == "one\ntwo\nthree\n"
    assert json.loads(cli("logs", "w1.1", "--json")) == {"job": "w1.1", "text": "one\ntwo\nthree\n"}
    assert "no job 'unknown.1'" in cli("logs", "unknown.1", code=5)


def test_errors_are_one_sentence_and_the_documented_exit_code(cli: Any, url: str) -> None:
    assert "no work item 'w9'" in cli("work", "show", "w9", code=5)
    assert "no game config" in cli("elo", "nonsense", code=5)
    assert "not JSON" in cli("settings", "set", "timing", "{", code=2)
    assert "heartbeat" in cli("settings", "set", "timing", '{"heartbeat_ms": 60000}', code=1)
    assert "name=value" in cli("work", "add", "x", "-p", "games", code=2)
    assert "takes a work type" in cli("work", "add", code=2)
    assert "no table is called" in cli("state", "dump", "--table", "nope", code=2)
    assert "--data-dir" in cli("state", "dump", "--index", "1", code=2)
    assert "config/nope" in cli("gauntlet", "run", "nope", code=5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = runner.invoke(app, ["status", "--api", f"127.0.0.1:{port}"])
    assert (result.exit_code, "is a node running?" in result.output) == (3, True)


def test_a_command_that_is_not_understood_at_the_other_end_says_what_may_be_missing_here() -> None:
    def lost(detail: str) -> Unreachable:
        return Unreachable(Problem(detail=detail))

    strange, plain = lost("[SSL: CERTIFICATE_VERIFY_FAILED] ..."), lost("http://a:1 did not answer")
    assert "is ca.crt this cluster's authority?" in advice(strange, "https://a:1", Path("ca.crt"))
    assert "RINGRIFT_TLS_CA" in advice(strange, "https://a:1", None)
    assert "if it speaks TLS" in advice(plain, "a:1", None)
    assert "TLS" not in advice(plain, "a:1", Path("ca.crt")) + advice(lost("a cannot be reached"), "a:1", None)


def test_a_token_comes_from_its_file_or_the_environment(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("right\n")
    with served(create_app(services_of(Voter("a", tmp_path), {}, token="right"))) as url:
        add = ["work", "add", "x", "--api", url]
        assert runner.invoke(app, add).exit_code == 1
        assert runner.invoke(app, [*add, "--token-file", str(token)]).exit_code == 0
        assert runner.invoke(app, add, env={"RINGRIFT_CLUSTER_AUTH_TOKEN": "right"}).exit_code == 0
        assert runner.invoke(app, [*add, "--token-file", str(tmp_path / "none")]).exit_code == 2
        # A flag wins over the environment, and a token there over a file there.
        wrong = {"RINGRIFT_AUTH_TOKEN": "wrong"}
        assert "--token-file names a file" in runner.invoke(app, add).output
        assert runner.invoke(app, [*add, "--token-file", str(token)], env=wrong).exit_code == 0
        files = {"RINGRIFT_AUTH_TOKEN_FILE": str(token)}
        assert runner.invoke(app, add, env=files).exit_code == 0
        assert runner.invoke(app, add, env={**wrong, **files}).exit_code == 1


def test_a_dump_is_the_same_from_a_node_and_from_a_followers_file(cli: Any, voter: Voter, tmp_path: Path) -> None:
    cli("work", "add", "x", "--id", "w1")
    live = json.loads(cli("state", "dump", "--json"))
    file = tmp_path / "f" / "feed" / "follower.snap"
    file.parent.mkdir(parents=True)
    frozen = freeze(voter.machine)
    with file.open("wb") as out:
        write(frozen, header(frozen, "memory", ("a",)), out)
    stored = json.loads(cli("state", "dump", "--json", "--data-dir", str(tmp_path / "f")))
    assert (stored["index"], stored["digest"], stored["tables"]) == (live["index"], live["digest"], live["tables"])
    lines = cli("state", "dump", "--table", "work", "--data-dir", str(tmp_path / "f")).splitlines()
    assert lines[0].split() == ["index", str(live["index"]), "term", "1", "digest", live["digest"]]
    assert lines[2].startswith("w1")
    assert "only" in cli("state", "dump", "--data-dir", str(tmp_path / "f"), "--index", "1", code=5)
    assert "no voter's journal" in cli("state", "dump", "--data-dir", str(tmp_path / "empty"), code=2)


def test_settings_that_contradict_each_other_end_serve_with_a_sentence(tmp_path: Path) -> None:
    words = ["serve", "--cluster", "a=127.0.0.1:1", "--role", "voter", "--node-id", "b", "--port", "2"]
    result = runner.invoke(app, [*words, "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith("ringrift-node: --role voter, but node b is not in --cluster a")
    assert result.output.count("\n") == 1


def test_a_foreign_package_of_the_same_name_is_named(tmp_path: Path) -> None:
    home = Path(__file__).parents[3]
    assert [stranger(home, name) for name in SIBLINGS] == [None, None]
    (tmp_path / "statemachine").mkdir()
    (tmp_path / "statemachine" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(home)!r});"
        "from ringrift_cluster.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "statemachine") in done.stderr
    assert done.stderr.count("\n") == 1


def test_spans_and_sizes_are_said_as_people_say_them() -> None:
    assert [span(ms) for ms in (0, 45_000, 600_000, 12_600_000, 300_000_000, -1)] == [
        "0 s",
        "45 s",
        "10 min",
        "3.5 h",
        "3.5 d",
        "-",
    ]
    assert [size(n) for n in (0, 1023, 2048, 3 * 2**30, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "2.0 KiB",
        "3.0 GiB",
        "5.0 TiB",
    ]
    assert short("ab" * 32 + "@policy-only") == "abababababab@policy-only"


@pytest.mark.cluster
def test_serve_runs_a_node_until_it_is_told_to_leave_and_refuses_what_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        port, raft = first.getsockname()[1], second.getsockname()[1]
    words = [sys.executable, "-m", "ringrift_cluster", "serve", "--cpu-slots", "0"]
    cluster = ["--cluster", f"a=127.0.0.1:{port}/{raft}", "--node-id", "a", "--data-dir", str(tmp_path / "a")]
    home = Path(__file__).parents[3]
    log = (tmp_path / "log").open("wb")
    node = subprocess.Popen([*words, *cluster], stdout=log, stderr=log, cwd=home)
    try:
        status = _answer(port, node)
        assert (status["node_id"], status["role"]) == ("a", "leader")
        again = subprocess.run([*words, *cluster], capture_output=True, text=True, timeout=60, cwd=home)
        assert (again.returncode, "in use by another" in again.stderr) == (2, True)
        other = [*cluster[:-1], str(tmp_path / "b")]
        taken = subprocess.run([*words, *other], capture_output=True, text=True, timeout=60, cwd=home)
        assert (taken.returncode, f"port {port}" in taken.stderr) == (2, True)
        assert taken.stderr.count("\n") == 1
        live = runner.invoke(app, ["state", "dump", "--json", "--api", f"127.0.0.1:{port}"])
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    finally:
        if node.poll() is None:
            node.kill()
            node.wait(10)
        log.close()
    index = json.loads(live.stdout)["index"]
    offline = ["state", "dump", "--json", "--data-dir", str(tmp_path / "a"), "--index", str(index)]
    stored = runner.invoke(app, offline)
    assert json.loads(stored.stdout)["digest"] == json.loads(live.stdout)["digest"]
    verified = runner.invoke(app, ["raft", "verify", "--data-dir", str(tmp_path / "a"), "--json"])
    assert (verified.exit_code, json.loads(verified.stdout)["damages"]) == (0, [])


def test_a_backup_is_verified_and_becomes_a_new_cluster(cli: Any, tmp_path: Path) -> None:
    cli("work", "add", "x", "--id", "w1")
    file = tmp_path / "state.backup"
    taken = json.loads(cli("backup", str(file), "--json"))
    assert taken["size_bytes"] == file.stat().st_size
    assert not file.with_name("state.backup.part").exists()
    assert file.stat().st_mode & 0o777 == 0o600
    data = str(tmp_path / "new")
    where = ("--data-dir", data, "--cluster", "n=127.0.0.1:9000/9001")
    said = cli("restore", str(file), *where)
    assert f"begins at entry {taken['index']}" in said
    assert "ringrift-node serve --node-id n" in said
    assert Path(data).stat().st_mode & 0o777 == 0o700
    assert "holds a voter's files already" in cli("restore", str(file), *where, code=2)
    assert cli("raft", "verify", "--data-dir", data).endswith("sound\n")
    stored = json.loads(cli("state", "dump", "--data-dir", data, "--json"))
    assert "w1" in stored["tables"]["work"]


def test_a_backup_that_was_cut_short_leaves_the_earlier_one(cli: Any, tmp_path: Path, voter: Voter) -> None:
    file = tmp_path / "state.backup"
    file.write_bytes(b"earlier")
    whole = voter.snapshot_file

    async def cut(max_behind: int = 0) -> Any:
        made = await whole()
        made.path.write_bytes(made.path.read_bytes()[:-5])
        return made

    voter.snapshot_file = cut  # type: ignore[method-assign]
    assert "no whole backup" in cli("backup", str(file), code=3)
    assert file.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.glob("state.backup*")] == ["state.backup"]


def test_a_file_that_is_no_backup_begins_nothing(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"RRSNAP1\nx")
    where = ("--data-dir", str(tmp_path / "new"), "--cluster")
    assert "is damaged" in cli("restore", str(file), *where, "n=127.0.0.1:9000", code=2)
    assert "needs the voter's name" in cli("restore", str(file), *where, "127.0.0.1:9000", code=2)
    assert "begins with one" in cli("restore", str(file), *where, "a=h:1/2,b=h:3/4", code=2)
    assert not (tmp_path / "new").exists()


def test_recover_says_what_it_would_do_and_does_it_when_that_is_confirmed(cli: Any, tmp_path: Path) -> None:
    cli("work", "add", "x", "--id", "w1")
    file = tmp_path / "state.backup"
    cli("backup", str(file))
    data = ("--data-dir", str(tmp_path / "n"))
    cli("restore", str(file), *data, "--cluster", "n=127.0.0.1:9000", "--tls")
    stored = json.loads(cli("state", "dump", *data, "--json"))
    (first,) = stored["tables"]["voters"]["voters"]["voters"]
    assert (first["node"], first["raft"], first["url"]) == ("n", "127.0.0.1:9001", "https://127.0.0.1:9000")
    words = ("raft", "recover", *data, "--keep", "n=127.0.0.1:9000")
    before = (tmp_path / "n" / "raft" / "journal.db").read_bytes()
    assert "must not be started on their old files again" in cli(*words, code=2)
    assert "belongs to voter n, not m" in cli("raft", "recover", *data, "--keep", "m=127.0.0.1:9000", code=2)
    assert (tmp_path / "n" / "raft" / "journal.db").read_bytes() == before
    said = cli(*words, "--yes-i-have-lost-quorum")
    assert "the old files are in" in said
    assert cli("raft", "verify", *data).endswith("sound\n")
    assert "holds neither a voter's files" in cli("raft", "verify", "--data-dir", str(tmp_path / "nobody"), code=2)
    journal = tmp_path / "n" / "raft" / "journal.db"
    mark = read_mark(journal)
    assert mark is not None
    journal.with_suffix(".mark").write_bytes(encode_mark(Mark(mark.log_id, mark.batch + 7)))
    assert "lacks the last 7 of" in cli("raft", "verify", *data, code=1)
    assert "--accept-damage" in cli(*words, "--yes-i-have-lost-quorum", code=2)
    assert "begins at entry" in cli(*words, "--yes-i-have-lost-quorum", "--accept-damage")


def _answer(port: int, node: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The node's status once it leads."""
    from ringrift_cluster.client import Client, ClientError

    found: dict[str, Any] = {}

    def leads() -> bool:
        assert node.poll() is None, "the node ended by itself"
        try:
            status = client.raft_state()
        except ClientError:
            return False
        found.update(node_id=status.node_id, role=status.role)
        return status.role == "leader" and status.ready

    with Client(f"127.0.0.1:{port}", contact_s=60.0, retry_s=60.0) as client:
        eventually(leads, "the node to lead", 60)
    return found


def test_a_drain_that_is_watched_returns_when_the_node_is_empty_and_it_can_be_retired(cli: Any, voter: Voter) -> None:
    assert "gpu-1 is empty" in cli("drain", "gpu-1", "--deadline", "10m", "--monitor")
    assert json.loads(cli("drain", "gpu-1", "--monitor", "--json"))["running"] == 0
    refused = cli("retire", "gpu-1", code=1)
    assert "drain it and end its process" in refused
    assert "shows gpu-1 as suspect" in refused
    voter.run(LeavePeer("gpu-1", 1, "its machine was given back"))
    assert "no node of the cluster any more" in cli("retire", "gpu-1", "--reason", "given back")
    assert "gpu-1" not in cli("peers")
