"""Cluster settings: typed values that live in the log."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from executors import patterns, templates
from ringrift_cluster.api.endpoint import Call, Routes
from ringrift_cluster.api.problems import Problem
from ringrift_cluster.api.views import Page, View, look
from ringrift_cluster.api.writes import Outcome, Requested, carry_out_once
from statemachine import settings as st
from statemachine.commands import ChangeSetting
from statemachine.errors import Code
from statemachine.rows import Setting
from statemachine.state import State
from statemachine.values import Scope

route = Routes("settings", "What all nodes agree on; changed through the log, with a version.")


class SettingView(Struct, frozen=True):
    """`version` 0 is a default that nobody has changed. `value` is the setting itself, not text."""

    name: str
    value: Raw
    version: int
    by: str
    at_ms: int


class SettingList(Struct, frozen=True):
    settings: list[SettingView]


EXAMPLE = SettingView("timing", Raw(msgspec.json.encode(st.Timing())), 1, "cli", 61_000)


def view_of(row: Setting) -> SettingView:
    """The setting with the fields that were left out when it was set."""
    value = st.whole(st.decode(row.name, row.value)).encode()
    return SettingView(row.name, Raw(value), row.version, row.by, row.at_ms)


def default_of(name: str) -> SettingView | None:
    """A group that always exists, as it is while nobody has set it."""
    kind = st.GROUPS.get(name)
    if kind is None or name in st.KEYED:
        return None
    return SettingView(name, Raw(msgspec.json.encode(kind())), 0, "", 0)


@route("GET", "/settings", "All settings", scope=Scope.READ, answer=SettingList([EXAMPLE]))
async def listing(call: Call, query: Page) -> SettingList:
    def ask(state: State) -> list[Setting]:
        return [row for _, row in sorted(state.settings.items())]

    rows = await look(call, ask, query)
    have = {row.name for row in rows}
    defaults = [found for name in st.GROUPS if name not in have and (found := default_of(name))]
    return SettingList([*defaults, *map(view_of, rows)])


@route("GET", "/settings/{name:any}", "One setting", scope=Scope.READ, answer=EXAMPLE, errors=(Code.NOT_FOUND,))
async def show(call: Call, name: str, query: View) -> SettingView:
    row = await look(call, lambda state: state.settings.get(name), query)
    found = view_of(row) if row else default_of(name)
    if found is None:
        known = ", ".join(f"{group}/NAME" if group in st.KEYED else group for group in st.GROUPS)
        raise Problem(Code.NOT_FOUND, f"no setting {name!r} exists; settings are called {known}")
    return found


class Change(Requested, frozen=True, kw_only=True):
    """`expected_version` guards against a change that came between reading and writing; -1 is whatever."""

    value: Raw
    expected_version: Annotated[int, Meta(ge=-1, le=2**53)] = -1
    by: Annotated[str, Meta(max_length=256)] = ""


@route(
    "PUT",
    "/settings/{name:any}",
    "Change a setting",
    scope=Scope.ADMIN,
    example=Change(value=Raw(b'{"enabled":false}'), expected_version=1, by="cli"),
    answer=Outcome({"version": 2}, 1204),
    errors=(Code.INVALID, Code.CONFLICT),
)
async def change(call: Call, name: str, body: Change) -> Outcome:
    """The value is checked before it is proposed; a bad one changes nothing."""
    try:
        decoded = st.decode(name, bytes(body.value).decode())
    except ValueError as error:
        raise Problem(Code.INVALID, str(error)) from None
    # The law knows the shape of a template, the executor what it can do with one.
    if isinstance(decoded, st.Template):
        wrong = templates.validate(decoded) or await asyncio.to_thread(patterns.slow, decoded)
        if wrong:
            raise Problem(Code.INVALID, f"setting {name}: {'; '.join(wrong)}")
    value = st.encode(decoded)
    level = await look(call, lambda state: state.cluster.feature_level)
    try:
        st.decode(name, value, level)
    except ValueError as error:
        needed = st.level_needed(name, decoded)
        text = f"{error}; it needs feature level {needed} and the cluster is at {level}"
        raise Problem(Code.INVALID, f"{text}, which rises when every node runs a release that supports it") from None
    command = ChangeSetting(name=name, value=value, expected_version=body.expected_version, by=body.by)
    return await carry_out_once(call, command, body.request_id)
