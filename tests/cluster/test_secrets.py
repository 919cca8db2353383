"""A guarded node and its follower at work: their secrets are in their own files and nowhere else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from ringrift_cluster.api.tokens import fresh_secret, hash_of
from ringrift_cluster.tls import TlsFiles, client_context
from statemachine import settings as st
from statemachine.commands import ChangeSetting, encode_command
from tests.support.cluster import WORKLOAD, NodeProcess, eventually, free_ports
from tests.support.pki import Authority

pytestmark = pytest.mark.cluster


def flags_of(files: TlsFiles) -> tuple[str, ...]:
    return ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ca", str(files.ca))


class Guarded:
    """One voter and one follower under TLS and tokens, and the secrets that they hold."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.authority = Authority(folder / "pki")
        self.secrets = {name: fresh_secret() for name in ("root", "ops", "join")}
        self.secrets["cluster"] = secrets.token_hex(32)
        ports = free_ports(3)
        cluster = f"v1=127.0.0.1:{ports[0]}/{ports[1]}"
        join = folder / "join"
        join.write_text(self.secrets["join"])
        self.voter = NodeProcess(
            "v1", cluster, ports[0], folder / "v1", "voter", 1, flags_of(self.authority.issue("v1"))
        )
        node_files = self.authority.issue("f1", voter=False)
        self.follower = NodeProcess(
            "f1", cluster, ports[2], folder / "f1", "follower", 0,
            (*flags_of(node_files), "--join-token-file", str(join)),
        )  # fmt: skip
        self.http = httpx.Client(verify=client_context(self.authority.ca), timeout=15.0)
        self.said: list[str] = []
        # The environment is how a service manager hands them over; workloads must not inherit it.
        monkeypatch.setenv("RINGRIFT_CLUSTER_AUTH_TOKEN", self.secrets["root"])
        monkeypatch.setenv("RINGRIFT_CLUSTER_SECRET", self.secrets["cluster"])
        self.voter.start()
        monkeypatch.delenv("RINGRIFT_CLUSTER_AUTH_TOKEN")
        monkeypatch.delenv("RINGRIFT_CLUSTER_SECRET")
        self.wait_for(self.voter)

    def ask(self, node: NodeProcess, method: str, path: str, token: str = "root", **more: Any) -> httpx.Response:
        """One request under a token's name (or any text); what was said is kept."""
        headers = {"authorization": f"Bearer {self.secrets.get(token, token)}"}
        answer = self.http.request(method, f"https://127.0.0.1:{node.port}{path}", headers=headers, **more)
        self.said.append(answer.text)
        return answer

    def wait_for(self, node: NodeProcess) -> None:
        eventually(lambda: self.ask(node, "GET", "/ready").status_code == 200, f"{node.name} to be ready", 60.0)

    def make(self, name: str, scope: str) -> None:
        body = {"name": name, "scope": scope, "sha256": hash_of(self.secrets[name])}
        assert self.ask(self.voter, "POST", "/tokens", json=body).status_code == 200

    def stop(self) -> None:
        self.http.close()
        for node in (self.voter, self.follower):
            if node.process is not None and node.process.poll() is None:
                node.terminate()


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    made = Guarded(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        made.stop()


def work_on(guarded: Guarded) -> None:
    """An item is run by the voter; while it runs, its processes are looked at."""
    template = st.Template(argv=("{python}", str(WORKLOAD), "--games", "2", "--seconds", "2", "--name", "{work}"))
    command = encode_command(ChangeSetting("template/stand-in", st.encode(template)))
    headers = {"content-type": "application/msgpack"}
    body = msgspec.msgpack.encode([command])
    answer = guarded.http.post(
        f"https://127.0.0.1:{guarded.voter.port}/propose",
        content=body,
        headers={**headers, "authorization": f"Bearer {guarded.secrets['ops']}"},
    )
    assert answer.status_code == 200, answer.text
    item = {"work_type": "selfplay", "work_id": "w1", "template": "stand-in"}
    assert guarded.ask(guarded.voter, "POST", "/work/add", "ops", json=item).status_code == 200

    def children() -> list[dict[str, str]]:
        return [environ for path in guarded.voter.folder.glob("jobs/*/") for environ in _environments(path)]

    seen = eventually(children, "the job's processes", 60.0)
    for environ in seen:
        assert not set(environ.values()) & set(guarded.secrets.values())
        assert not any("TOKEN" in name or "SECRET" in name for name in environ)
    eventually(
        lambda: guarded.ask(guarded.voter, "GET", "/work/w1").json()["work"]["status"] == "completed",
        "the item to be completed",
        60.0,
    )


def _environments(job_dir: Path) -> Iterator[dict[str, str]]:
    for process in psutil.process_iter(["environ"]):
        environ = process.info["environ"] or {}
        if str(job_dir).rstrip("/") in (environ.get("RINGRIFT_JOB_DIR"), environ.get("RINGRIFT_KEEPER")):
            yield environ


def test_no_secret_is_anywhere_but_in_its_own_file(guarded: Guarded) -> None:
    guarded.make("ops", "admin")
    guarded.make("join", "join")
    guarded.follower.start()
    own = guarded.follower.folder / "node-token"
    eventually(own.exists, "the follower to have bought its token", 60.0)
    guarded.secrets["own"] = own.read_text().strip()
    assert own.stat().st_mode & 0o777 == 0o600
    guarded.wait_for(guarded.follower)
    eventually(
        lambda: guarded.ask(guarded.follower, "GET", "/status", "ops").status_code == 200,
        "the follower to know the token of the log",
    )
    work_on(guarded)
    for node in (guarded.voter, guarded.follower):
        for token in ("ops", "join", "own", "a wrong guess"):
            for method, path in (
                ("GET", "/status"),
                ("POST", "/admin/pause"),
                ("POST", "/heartbeat"),
                ("GET", "/none"),
            ):
                guarded.ask(node, method, path, token, json={"paused": False} if method == "POST" else None)
        for path in ("/metrics", "/state/dump", "/events", "/tokens", "/admin/health", "/raft/status"):
            assert guarded.ask(node, "GET", path, "ops").status_code == 200
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any(f"--node-id {name}" in line for line in lines for name in ("v1", "f1"))
    assert guarded.ask(guarded.voter, "POST", "/tokens/revoke", json={"name": "node:f1"}).status_code == 200
    assert guarded.follower.process is not None
    assert guarded.follower.process.wait(60) == 70
    assert "f1 is shut out of the cluster: token 'node:f1' is over: revoked" in guarded.follower.log
    guarded.voter.terminate()

    wanted = {name: value.encode() for name, value in guarded.secrets.items()} | {"guess": b"a wrong guess"}
    for name in ("v1", "f1"):
        key = (guarded.authority.directory / f"{name}.key").read_bytes()
        wanted[f"key of {name}"] = key.splitlines()[1]
    found: list[tuple[str, str]] = []
    for what, texts in (("an answer", guarded.said), ("a command line", lines)):
        found += [(what, name) for text in texts for name, value in wanted.items() if value in text.encode()]
    for folder in (guarded.voter.folder, guarded.follower.folder):
        for path in (p for p in folder.rglob("*") if p.is_file() and p != own):
            data = path.read_bytes()
            found += [(str(path), name) for name, value in wanted.items() if value in data]
    assert found == []
    assert "event=request_refused" in guarded.voter.log


def test_a_follower_that_is_not_let_in_says_why_and_does_not_start(guarded: Guarded) -> None:
    guarded.follower.start()
    assert guarded.follower.process is not None
    assert guarded.follower.process.wait(60) == 2
    assert "no voter lets f1 in: no such token is known here" in guarded.follower.log
