"""What the documents say exists: tests, commands, links, metrics, endpoints."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from executors.blobs import Blobs
from executors.gateway import Gateway
from executors.logs import Logs
from executors.telemetry import Telemetry
from ringrift_cluster.api.app import GROUPS, create_app
from ringrift_cluster.api.connections import Connections
from ringrift_cluster.api.gone import GONE
from ringrift_cluster.api.problems import TABLE
from ringrift_cluster.api.services import AgentStatus, Services
from ringrift_cluster.cli.app import app
from ringrift_cluster.sources import Settings
from ringrift_cluster.tls import Tls
from ringrift_cluster.vitals import Executor, counters
from statemachine import settings
from statemachine.values import Gpu
from tests.ringrift_cluster.api.conftest import DirectHeartbeats, populate
from tests.ringrift_cluster.raft.loopback import Loopback
from tests.support.memory_replica import MemoryReplica
from tests.support.pki import Authority

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMISES = ROOT / "docs" / "promises.md"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
UNITS = [ROOT / "deploy" / "node.example.toml", ROOT / "deploy" / "ringrift-node.service"]
ROOMS = ("ringrift_cluster", "executors")

NODE = "ringrift-node"
#: a test by its path, and by its name when one is given
TEST = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+(?:::\w+)*))?")
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
ENDPOINT = re.compile(r"\b(GET|HEAD|POST|PUT|DELETE) (/[\w/{}-]+(?:\.json)?)")
PATH = re.compile(r"`(/[a-z][\w/{}-]*)`")
METRIC = re.compile(r"\bringrift_[a-z_]+\b")
INLINE = re.compile(r"`([^`]+)`")
CODE = re.compile(r"\b([45]\d\d) `(\w+)`")
FIELD = re.compile(r"\b(timing|limits|retention|artifacts)\.([a-z]\w+)")
VARIABLE = re.compile(r"\bRINGRIFT_[A-Z0-9_]*[A-Z0-9]\b")
#: commands that have commands of their own: `voters add` in a sentence is meant as one
GROUPS_OF_COMMANDS = frozenset(
    name
    for name, command in typer.main.get_command(app).commands.items()
    if hasattr(command, "commands")  # type: ignore[attr-defined]
)
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
    prose = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    inline = [" ".join(found.split()) for found in INLINE.findall(prose)]
    short = [f"{NODE} {code}" for code in inline if code.partition(" ")[0] in GROUPS_OF_COMMANDS and " " in code]
    for line in (*logical_lines(text), *(code for code in inline if code.startswith(f"{NODE} ")), *short):
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
        if rest[0].startswith("-") and command.invoke_without_command:
            break
        name = rest.pop(0)
        if name not in command.commands:
            return f"no command {name!r}"
        command = command.commands[name]
    options = {spelling: p for p in command.params for spelling in (*p.opts, *p.secondary_opts) if spelling[0] == "-"}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    needed = {p.opts[0] for p in command.params if p.required and p not in arguments} if rest else set()
    positional, helped = 0, False
    while rest:
        word = rest.pop(0)
        if word in ("|", ">", "&&", ";"):
            break
        if not word.startswith("-"):
            positional += 1
            continue
        name, equals, _ = word.partition("=")
        helped |= name == "--help"
        if name != "--help" and name not in options:
            return f"no option {name!r}"
        if name in options and not options[name].is_flag and not equals:
            if not rest:
                return f"{name} without its value"
            rest.pop(0)
        needed -= set(options[name].opts) if name in options else set()
    if positional > len(arguments) and all(p.nargs != -1 for p in arguments):
        return f"{positional} arguments"
    # A command that is merely mentioned is followed by nothing.
    return f"{', '.join(sorted(needed))} is left out" if needed and not helped else ""


@pytest.mark.parametrize("document", [*DOCS, RULES], ids=lambda path: path.name)
def test_every_command_line_is_one_that_the_application_takes(document: Path) -> None:
    lines = list(command_lines(document.read_text(encoding="utf-8")))
    assert {" ".join(words): wrong for words in lines if (wrong := wrong_in(words))} == {}


def options_of(command: Any) -> set[str]:
    """Every spelling of every option of a command and of those below it."""
    below = (options_of(one) for one in getattr(command, "commands", {}).values())
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)}.union(*below)


#: of other programs: curl, a script that a template starts, and the simulation
FOREIGN_OPTIONS = {"--cacert", "--use-gpu-tree", "--no-gpu-tree", "--held-up"}


@each_document
def test_every_option_that_a_sentence_names_is_one_of_some_command(document: Path) -> None:
    named = {code.split()[0] for code in INLINE.findall(document.read_text(encoding="utf-8")) if code.startswith("--")}
    assert named - options_of(typer.main.get_command(app)) - FOREIGN_OPTIONS == set()


# --- links, endpoints, codes, metrics ----------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Where a link into a document may lead: its headings, as the usual viewers name them."""
    prose = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    broken = []
    for file, anchor in LINK.findall(text):
        path = document.parent / file if file else document
        if "//" in file or (path.exists() and (not anchor or anchor in anchors(path.read_text(encoding="utf-8")))):
            continue
        broken.append(f"{file}#{anchor}")
    return broken


@each_document
def test_every_link_leads_to_a_file_and_a_heading_there(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


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


def test_what_took_the_place_of_a_path_that_is_gone_is_served() -> None:
    assert {path: missing for path, sentence in GONE.items() if (missing := unserved(sentence))} == {}


@each_document
def test_every_code_of_a_refusal_leaves_with_the_status_that_a_document_says(document: Path) -> None:
    named = CODE.findall(document.read_text(encoding="utf-8"))
    assert [(status, code) for status, code in named if TABLE[code].status != int(status)] == []


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
        gateway = Gateway.numbers(SimpleNamespace(posts={}))  # type: ignore[arg-type]
        own = {**counters(voter, Executor(voter, hire), None, 0.0), **sealed, **Connections().numbers(), **gateway}
    services = Services(
        replica=replica,
        heartbeats=DirectHeartbeats(replica),
        blobs=Blobs(directory / "blobs"),
        logs=Logs(directory),
        agent=lambda: AgentStatus(healthy=True),
        shutdown=lambda order: None,
        counters=lambda: own,
        gpus=lambda: [Telemetry(Gpu("GPU-0"), None, 0, False)],
    )
    transport = httpx.ASGITransport(app=create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        text = (await client.get("/metrics")).text
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_every_metric_of_the_alerts_and_the_documents_is_offered(tmp_path: Path) -> None:
    alerts = {name for line in re.findall(r"expr: (.*)", RULES.read_text()) for name in METRIC.findall(line)}
    told = {name for document in DOCS for name in re.findall(r"`(ringrift_[a-z_]+)`", document.read_text())}
    assert len(alerts) >= 5
    assert len(told) >= 10
    assert (alerts | told) - asyncio.run(offered(tmp_path)) == set()


# --- settings, variables, targets, files ------------------------------------------------------------


@each_document
def test_every_field_of_a_setting_that_a_document_names_exists(document: Path) -> None:
    named = FIELD.findall(document.read_text(encoding="utf-8"))
    assert [f"{group}.{name}" for group, name in named if name not in settings.GROUPS[group].__struct_fields__] == []


@each_document
def test_every_setting_that_a_document_sets_is_taken(document: Path) -> None:
    for words in command_lines(document.read_text(encoding="utf-8")):
        if words[:2] == ["settings", "set"] and words[3][0] == "{":
            settings.decode(words[2], words[3])


@each_document
def test_every_key_of_a_settings_file_that_a_document_shows_is_one(document: Path) -> None:
    keys = re.findall(r"^ {4,}([a-z_]+) = ", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(keys) - set(Settings.model_fields) == set()


def known_variables() -> set[str]:
    """Names of settings of a node, and those that the code names in full."""
    aliases = (getattr(field.validation_alias, "choices", ()) for field in Settings.model_fields.values())
    code = "".join(path.read_text() for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {str(name) for names in aliases for name in names} | set(re.findall(r"\"(RINGRIFT_[A-Z0-9_]+)\"", code))


@pytest.mark.parametrize("document", [*DOCS, *UNITS], ids=lambda path: path.name)
def test_every_variable_that_a_document_names_is_read(document: Path) -> None:
    assert set(VARIABLE.findall(document.read_text(encoding="utf-8"))) - known_variables() == set()


@each_document
def test_every_target_of_make_that_a_document_names_exists(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:`|^ {4})make ([a-z-]+)", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(named) - set(targets) == set()


@each_document
def test_every_file_of_the_project_that_a_document_names_exists(document: Path) -> None:
    code = INLINE.findall(document.read_text(encoding="utf-8"))
    named = {name for name in code if re.fullmatch(r"[\w/.-]+\.(?:py|toml|service|yml)|deploy/[\w/.-]+", name)}
    assert {name for name in named if not (ROOT / name).exists() and not [*ROOT.glob(f"*/**/{name}")]} == set()


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
    assert [wrong_in(words) for words in command_lines("`matches void M` `matches void` `voters fly v1`")] == [
        "--reason is left out", "", "no command 'fly'"
    ]  # fmt: skip
    assert broken_links(PROMISES, "[x](promises.md#life-of-a-node) [y](#nowhere) [z](none.md) [w](https://a)") == [
        "#nowhere", "none.md#"
    ]  # fmt: skip
    assert unserved("`GET /status`, POST /status, `/nowhere`, GET /work/w-1") == ["POST /status", " /nowhere"]
