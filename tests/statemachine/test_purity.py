"""The law reads no clock, throws no coin, opens no file and keeps no float: checked in its syntax trees."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import msgspec
import pytest

import statemachine
from statemachine.commands import Effect
from statemachine.rows import TABLES

ROOT = Path(statemachine.__file__).parent
MODULES = sorted(ROOT.glob("*.py"))
#: ratings and the sequential test are computed by readers and never stored
FLOAT_MODULES = {"elo.py", "sprt.py"}
BANNED = {
    "asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "platform", "queue",
    "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile",
    "threading", "time", "urllib", "uuid", "zoneinfo",
}  # fmt: skip
BANNED_CALLS = {"open", "print", "input", "id", "hash", "eval", "exec", "globals", "vars", "__import__"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path.name)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_a_module_of_the_law_imports_only_pure_things(path: Path):
    names = imported(path)
    assert not names & BANNED
    assert names <= {"msgspec", "statemachine"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_a_module_of_the_law_calls_nothing_that_differs_between_processes(path: Path):
    called = {n.func.id for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & BANNED_CALLS


@pytest.mark.parametrize("path", [p for p in MODULES if p.name not in FLOAT_MODULES], ids=lambda p: p.name)
def test_a_module_of_the_law_uses_no_floating_point(path: Path):
    for node in ast.walk(tree(path)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float | complex)), where
        assert not (isinstance(node, ast.Name) and node.id == "float"), where
        assert not (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)), where
        assert not (isinstance(node, ast.ImportFrom) and node.module == "math"), where


def makes_a_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.BinOp):
        return makes_a_set(node.left) or makes_a_set(node.right)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_a_module_of_the_law_never_goes_through_a_set_in_the_order_of_its_hashes(path: Path):
    """A set may be asked what it holds; where its order shows, it is sorted first."""
    for node in ast.walk(tree(path)):
        loops = [node.iter] if isinstance(node, ast.For | ast.comprehension) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("list", "tuple", "iter"):
            loops += node.args
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("join", "extend"):
            loops += node.args
        for looped in loops:
            assert not makes_a_set(looped), f"{path.name}:{looped.lineno}"


def types_in(kind: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    """A type and all types of its fields and members."""
    found, waiting, seen = [], [kind], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, msgspec.inspect.StructType):
            if node.cls in seen:
                continue
            seen.add(node.cls)
            waiting += [f.type for f in node.fields]
        found.append(node)
        for part in ("item_type", "key_type", "value_type"):
            if (child := getattr(node, part, None)) is not None:
                waiting.append(child)
        waiting += [*getattr(node, "types", ()), *getattr(node, "item_types", ())]
    return found


@pytest.mark.parametrize("kind", [*TABLES.values(), Effect], ids=lambda k: getattr(k, "__name__", "commands"))
def test_no_row_and_no_command_holds_a_float_a_set_or_anything_untyped(kind):
    bad = (msgspec.inspect.FloatType, msgspec.inspect.SetType, msgspec.inspect.FrozenSetType, msgspec.inspect.AnyType)
    for found in types_in(msgspec.inspect.type_info(kind)):
        assert not isinstance(found, bad), found


@pytest.mark.parametrize("kind", TABLES.values(), ids=lambda k: k.__name__)
def test_rows_are_frozen(kind):
    assert kind.__struct_config__.frozen


def test_the_checks_of_this_file_would_notice_what_they_look_for():
    assert makes_a_set(ast.parse("{*a, *b}", mode="eval").body)
    assert makes_a_set(ast.parse("set(a) | b", mode="eval").body)
    assert not makes_a_set(ast.parse("sorted(set(a))", mode="eval").body)
    assert any(isinstance(t, msgspec.inspect.FloatType) for t in types_in(msgspec.inspect.type_info(dict[str, float])))
