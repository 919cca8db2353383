"""What the documents say exists: tests, commands, links, metrics, endpoints."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from executors.blobs import Blobs
from executors.logs import Logs
from ringrift_cluster.api.app import GROUPS, create_app
from ringrift_cluster.api.services import AgentStatus, Services
from ringrift_cluster.cli.app import app
from ringrift_cluster.tls import Tls
from ringrift_cluster.vitals import Executor, counters
from tests.ringrift_cluster.api.conftest import DirectHeartbeats, populate
from tests.ringrift_cluster.raft.loopback import Loopback
from tests.support.memory_replica import MemoryReplica
from tests.support.pki import Authority

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMISES = ROOT / "docs" / "promises.md"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"

NODE = "ringrift-node"
#: a test by its path, and by its name when one is given
TEST = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+(?:::\w+)*))?")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
ENDPOINT = re.compile(r"\b(GET|HEAD|POST|PUT|DELETE) (/[\w/{}-]+(?:\.json)?)")
PATH = re.compile(r"`(/[a-z][\w/{}-]*)`")
METRIC = re.compile(r"\bringrift_[a-z_]+\b")
each_document = pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)


# --- tests ------------------------------------------------------------------------------------------


@cache
def names_in(path: Path) -> frozenset[str]:
    """Test functions and classes of a file as pytest names them: `test_x`, `TestY`, `TestY::test_x`."""
    found: set[str] = set()

    def gather(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test_"):
                    found.add(prefix + name)
                case ast.ClassDef(name=name) if name.startswith("Test"):
                    found.add(prefix + name)
                    gather(node.body, f"{prefix}{name}::")
                case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):
                    found.add(prefix + name)

    gather(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def missing_tests(text: str) -> list[str]:
    missing = []
    for file, name in TEST.findall(text):
        path = ROOT / file
        if not path.is_file() or (name and name not in names_in(path)):
            missing.append(f"{file}::{name}")
    return missing


@each_document
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    assert missing_tests(document.read_text(encoding="utf-8")) == []


def promises() -> Iterator[tuple[str, str]]:
    """(heading, text) of each promise."""
    for section in PROMISES.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        for item in re.split(r"^- ", body, flags=re.MULTILINE)[1:]:
            yield heading, item


def test_every_promise_names_a_test() -> None:
    made = [(heading, item) for heading, item in promises() if not heading.startswith("Not promised")]
    assert len(made) > 30
    assert [item for _, item in made if not any(name for _, name in TEST.findall(item))] == []


# --- commands ---------------------------------------------------------------------------------------


def logical_lines(text: str) -> Iterator[str]:
    """The command lines of code blocks, with their continuations and quoted line ends."""
    open_line, fenced = "", False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if not open_line and not ((fenced or line.startswith("    ")) and f"{NODE} " in line):
            continue
        open_line = open_line.removesuffix("\\") + line + "\n" * (not line.endswith("\\"))
        try:
            shlex.split(open_line, comments=True)
        except ValueError:
            continue
        yield open_line
        open_line = ""
    assert not open_line, f"a quotation or continuation has no end: {open_line}"


def command_lines(text: str) -> Iterator[list[str]]:
    """The words after `ringrift-node`, from code blocks and from code within sentences."""
    inline = [" ".join(found.split()) for found in re.findall(rf"`({NODE} [^`]+)`", text)]
    for line in (*logical_lines(text), *inline):
        words = shlex.split(line, comments=True)
        if NODE in words:
            yield words[words.index(NODE) + 1 :]
    for given in re.findall(r'make demo ARGS=(?:"([^"]*)"|([^\s"`]+))', text):
        yield ["dev", *shlex.split("".join(given))]


def wrong_in(words: list[str]) -> str:
    """What of a command line the application does not have, else an empty text."""
    command: Any = typer.main.get_command(app)
    rest = [word.strip("[]") for word in words]
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        if name not in command.commands:
            return f"no command {name!r}"
        command = command.commands[name]
    options = {spelling: p for p in command.params for spelling in (*p.opts, *p.secondary_opts) if spelling[0] == "-"}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    positional = 0
    while rest:
        word = rest.pop(0)
        if word in ("|", ">", "&&", ";"):
            break
        if not word.startswith("-"):
            positional += 1
            continue
        name, equals, _ = word.partition("=")
        if name != "--help" and name not in options:
            return f"no option {name!r}"
        if name in options and not options[name].is_flag and not equals:
            if not rest:
                return f"{name} without its value"
            rest.pop(0)
    if positional > len(arguments) and all(p.nargs != -1 for p in arguments):
        return f"{positional} arguments"
    return ""


@pytest.mark.parametrize("document", [*DOCS, RULES], ids=lambda path: path.name)
def test_every_command_line_is_one_that_the_application_takes(document: Path) -> None:
    lines = list(command_lines(document.read_text(encoding="utf-8")))
    assert {" ".join(words): wrong for words in lines if (wrong := wrong_in(words))} == {}


# --- links, endpoints, metrics ----------------------------------------------------------------------


@each_document
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def served(method: str, path: str) -> bool:
    """Whether a path, or its template, is in the route table; any method does for an empty one."""
    if path == "/openapi.json":
        return method in ("", "GET")
    for group in GROUPS:
        for endpoint in group.endpoints:
            pattern = re.sub(r"\\\{\w+(:any)?\\\}", lambda m: ".+" if m[1] else "[^/]+", re.escape(endpoint.path))
            if (path == endpoint.template or re.fullmatch(pattern, path)) and method in ("", endpoint.method):
                return True
    return False


def unserved(text: str) -> list[str]:
    named = [*ENDPOINT.findall(text), *(("", path) for path in PATH.findall(text))]
    return [f"{method} {path}" for method, path in named if not served(method, path)]


@each_document
def test_every_endpoint_that_a_document_names_is_served(document: Path) -> None:
    assert unserved(document.read_text(encoding="utf-8")) == []


async def offered(directory: Path) -> set[str]:
    """The names of all samples of the /metrics of a voter that speaks TLS."""
    replica = MemoryReplica()
    populate(replica)
    async with Loopback(directory / "voter", "a") as cluster:
        await cluster.start()
        voter = cluster.running["a"]

        def hire(cluster_id: str) -> Any:
            raise AssertionError("nobody is hired here")

        sealed = Tls(Authority(directory / "pki").issue("a")).numbers()
        own = {**counters(voter, Executor(voter, hire), None, 0.0), **sealed}
    services = Services(
        replica=replica,
        heartbeats=DirectHeartbeats(replica),
        blobs=Blobs(directory / "blobs"),
        logs=Logs(directory),
        agent=lambda: AgentStatus(healthy=True),
        shutdown=lambda order: None,
        counters=lambda: own,
    )
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        text = (await client.get("/metrics")).text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_every_metric_of_the_alerts_is_offered(tmp_path: Path) -> None:
    named = {name for line in re.findall(r"expr: (.*)", RULES.read_text()) for name in METRIC.findall(line)}
    assert len(named) >= 5
    assert named - asyncio.run(offered(tmp_path)) == set()


# --- the checks themselves --------------------------------------------------------------------------


def test_the_checks_of_this_file_notice_what_they_look_for() -> None:
    here = "tests/test_documents.py"
    assert missing_tests(f"`{here}::test_every_promise_names_a_test` `{here}`") == []
    assert missing_tests(f"`{here}::test_nobody` `tests/none.py`") == [f"{here}::test_nobody", "tests/none.py::"]
    text = "    ringrift-node work add \\\n        --no-such\n\nand `ringrift-node fly`\n    make demo ARGS=--fast\n"
    wrong = [wrong_in(words) for words in command_lines(text)]
    assert wrong == ["no option '--no-such'", "no command 'fly'", "no option '--fast'"]
    assert wrong_in(["status", "too", "many"]) == "2 arguments"
    assert wrong_in(["status", "--api"]) == "--api without its value"
    assert unserved("`GET /status`, POST /status, `/nowhere`, GET /work/w-1") == ["POST /status", " /nowhere"]
