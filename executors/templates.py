"""Turns a command template and a work item into argv and environment. Pure.

`{name}` is, in this order: a parameter of the item, the path of an input of that name, a built-in, a default.
`{inputs:PREFIX}` is a file that lists the inputs whose name starts with PREFIX. `{{` and `}}` are braces.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from statemachine.commands import AddWork
from statemachine.rows import Job
from statemachine.settings import OutputRule, Template

BUILT_IN = (
    *("job", "work", "config", "board", "players", "fence", "seed", "gpus", "job_dir", "out"),
    *("tree", "home", "tmp", "checkpoint", "python"),
)
#: variables that bound the threads of the usual numeric libraries
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: named groups of a pattern; with the units of all rules they are as many as a job has counts
MAX_GROUPS = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*")
_CONFIG = re.compile(r"(.+)_([0-9]+)p")
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TemplateError(Exception):
    """The template does not fit the item; the text names the place and what is known there."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one attempt's files are. `inputs` maps input names to files, `lists` prefixes to list files."""

    job_dir: Path
    out: Path
    checkpoint: Path
    python: str
    inputs: Mapping[str, Path] = field(default_factory=dict)
    lists: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rendered:
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    nice: int
    #: the command that prints the result; empty when there is none
    result: tuple[str, ...] = ()


def seed_of(work: str) -> int:
    """A seed in 0..2**31-1 that every attempt of an item shares, and no other item."""
    return int.from_bytes(hashlib.sha256(work.encode()).digest()[:4], "big") & 0x7FFFFFFF


def board_of(config: str) -> dict[str, str]:
    """`board` and `players` of a config key such as hex8_2p; nothing of any other text."""
    found = _CONFIG.fullmatch(config)
    return {"board": found[1], "players": found[2]} if found else {}


def list_prefixes(template: Template) -> tuple[str, ...]:
    """Prefixes of `{inputs:PREFIX}` anywhere in the template; their list files must exist before `render`."""
    found = {
        name.removeprefix("inputs:")
        for _, text in _texts(template)
        for name in _BRACES.findall(text)
        if name.startswith("inputs:")
    }
    return tuple(sorted(found))


def list_file(prefix: str) -> str:
    """The name of a list file; prefixes may contain slashes, file names may not."""
    return f"inputs-{prefix.replace('/', '%2F')}.txt"


def validate(template: Template) -> list[str]:
    """What is wrong with a template whatever the item; empty when nothing is.

    A dry run: every place is filled as for an item that names all it is asked for, every pattern is compiled.
    """
    problems = []
    for place, text in _texts(template):
        try:
            _fill(place, text, lambda name: "" if name.startswith("inputs:") or _NAME.fullmatch(name) else None, ())
        except TemplateError as error:
            problems.append(str(error))
        if "\0" in text:
            problems.append(f"{place} contains a zero byte")
    problems += [f"env has the name {k!r}, which no variable can have" for k in template.env if not k or "=" in k]
    if not template.argv[0].strip():
        problems.append("argv[0] is empty; it names the program")
    if template.tree and not PurePosixPath(template.tree).is_absolute():
        problems.append(f"tree {template.tree!r} is no absolute path of a directory on the nodes")
    codes = [code for code in template.exit_codes if not 0 < code < 256]
    problems += [f"exit_codes names {code}; a program that fails exits with 1 to 255" for code in codes]
    for place, text, groups in (
        ("progress", template.progress, True),
        ("summary", template.summary, True),
        ("transient", template.transient, False),
    ):
        problems += _pattern(place, text, groups)
    for rule in template.outputs:
        problems += _rule(rule, template)
    return problems


def _pattern(place: str, text: str, groups: bool) -> list[str]:
    if not text:
        return []
    try:
        compiled = re.compile(text)
    except re.error as error:
        return [f"{place} {text!r} is no regular expression: {error}"]
    if groups and not compiled.groupindex:
        return [f"{place} {text!r} has no named group; write what it counts as (?P<games>[0-9]+)"]
    if len(compiled.groupindex) > MAX_GROUPS:
        return [f"{place} has {len(compiled.groupindex)} named groups, {MAX_GROUPS} are taken"]
    return []


def _rule(rule: OutputRule, template: Template) -> list[str]:
    place = f"the output {rule.glob!r}"
    parts = PurePosixPath(rule.glob).parts
    if rule.glob.startswith("/") or ".." in parts or "**" in parts or "\0" in rule.glob:
        return [f"{place} must stay below out/: no leading slash, no '..', no '**'"]
    found = []
    if parts[:1] == ("tree",) and not template.tree:
        found.append(f"{place} begins with tree/, and the template has no tree")
    if parts[:1] == ("home",) and not template.private:
        found.append(f"{place} begins with home/, and the template is not private")
    how, _, what = rule.count.partition(":")
    if how not in ("", "lines", "rows", "npz", "json") or bool(what) != (how in ("rows", "npz", "json")):
        found.append(f"{place} counts {rule.count!r}; known are lines, rows:TABLE, npz:ARRAY and json:KEY")
    if bool(rule.count) != bool(rule.unit):
        found.append(f"{place} needs both count and unit, or neither")
    return found


def render(template: Template, work: AddWork, job: Job, paths: Paths, inherited: Mapping[str, str]) -> Rendered:
    """The program of one attempt.

    `inherited` is the environment the program starts from; what begins with RINGRIFT_ (the node's own
    configuration and secrets) is left out of it. The template's variables come over that, the contract's
    variables over everything. Raises TemplateError.
    """
    built_in = {
        "job": job.job,
        "work": work.work,
        "config": work.config,
        **board_of(work.config),
        "fence": str(job.fence),
        "seed": str(seed_of(work.work)),
        "gpus": ",".join(job.gpus),
        "job_dir": str(paths.job_dir),
        "out": str(paths.out),
        "checkpoint": str(paths.checkpoint),
        "python": paths.python,
    }
    if template.tree:
        built_in["tree"] = str(paths.job_dir / "tree")
    if template.private:
        built_in |= {"home": str(paths.job_dir / "home"), "tmp": str(paths.job_dir / "tmp")}

    def value(name: str) -> str | None:
        if name.startswith("inputs:"):
            path = paths.lists.get(name.removeprefix("inputs:"))
            return str(path) if path else None
        if name in work.params:
            return work.params[name]
        if name in paths.inputs:
            return str(paths.inputs[name])
        return built_in.get(name, template.defaults.get(name))

    known = (*sorted({*work.params, *template.defaults}), *sorted(paths.inputs)[:20], *BUILT_IN)

    def fill(place: str, text: str) -> str:
        filled = _fill(place, text, value, known)
        if "\0" in filled:
            raise TemplateError(f"{place} contains a zero byte after it was filled in")
        return filled

    argv = tuple(fill(f"argv[{i}]", text) for i, text in enumerate(template.argv))
    result = tuple(fill(f"result[{i}]", text) for i, text in enumerate(template.result))
    threads = str(max(job.needs.cpu_slots, 1))
    env = {k: v for k, v in inherited.items() if not k.startswith("RINGRIFT_")}
    env |= dict.fromkeys(THREADS, threads) | {"PYTHONUNBUFFERED": "1"}
    if template.private:
        env |= private_dirs(paths.job_dir)
    env |= {name: fill(f"env {name}", text) for name, text in template.env.items()}
    env |= {
        "RINGRIFT_JOB_DIR": str(paths.job_dir),
        "RINGRIFT_SPEC": str(paths.job_dir / "spec.json"),
        "RINGRIFT_JOB_ID": job.job,
        "RINGRIFT_FENCE": str(job.fence),
        "CUDA_VISIBLE_DEVICES": ",".join(job.gpus),
    }
    cwd = fill("cwd", template.cwd) if template.cwd else str(paths.job_dir)
    return Rendered(argv, env, cwd, template.nice, result)


def private_dirs(job_dir: Path) -> dict[str, str]:
    """The variables by which programs find their own corners, each a directory of this attempt."""
    home = job_dir / "home"
    return {
        "HOME": str(home),
        "TMPDIR": str(job_dir / "tmp"),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local/share"),
        "XDG_STATE_HOME": str(home / ".local/state"),
    }


def _texts(template: Template) -> list[tuple[str, str]]:
    places = [(f"argv[{i}]", text) for i, text in enumerate(template.argv)]
    places += [(f"result[{i}]", text) for i, text in enumerate(template.result)]
    places += [(f"env {name}", text) for name, text in template.env.items()]
    return [*places, ("cwd", template.cwd)]


def _fill(place: str, text: str, value: Callable[[str], str | None], known: tuple[str, ...]) -> str:
    def one(match: re.Match[str]) -> str:
        whole = match.group()
        if whole in ("{{", "}}"):
            return whole[0]
        if whole in ("{", "}"):
            raise TemplateError(f"{place} {text!r} has a single {whole!r}; write it twice if it is meant as text")
        name = match.group(1)
        found = value(name)
        if found is None:
            names = f"; known here are {', '.join(known)}" if known else ""
            raise TemplateError(f"{place} {text!r} asks for {{{name}}}, which nothing provides{names}")
        return found

    return _BRACES.sub(one, text)
