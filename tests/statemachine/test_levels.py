"""Two releases and one field that only the later one knows: they agree on every change of settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from unittest import mock

import hypothesis
import msgspec
import pytest
from hypothesis import strategies
from msgspec import Meta, Struct

from statemachine import settings as st
from statemachine.commands import ChangeSetting, Once, RaiseFeatureLevel, Signed
from statemachine.errors import Code, Halt
from statemachine.levels import Since, as_of, level_of, seen_at
from statemachine.machine import Machine
from statemachine.settings import GROUPS, KEYED
from statemachine.snapshot import SnapshotDamaged
from statemachine.values import Natural, Needs, Short
from tests.support.law import given

LATER = 2


class OldPart(Struct, frozen=True, forbid_unknown_fields=True):
    size: Natural = 0


class Old(Struct, frozen=True, forbid_unknown_fields=True):
    """A group of settings as the older release has it."""

    part: OldPart
    enabled: bool = True
    perhaps: OldPart | None = None
    either: Annotated[int, Meta(ge=0)] | None = None
    many: Annotated[tuple[OldPart, ...], Meta(max_length=2)] = ()
    named: dict[Short, OldPart] = {}
    needs: Needs | None = None


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    size: Natural = 0
    colour: Annotated[Short, Since(LATER)] = "red"


class Now(Struct, frozen=True, forbid_unknown_fields=True):
    """The same group in the later release."""

    part: Part
    limit: Annotated[int, Meta(ge=1, le=9), Since(LATER)] = 5
    enabled: bool = True
    perhaps: Part | None = None
    either: Annotated[int, Meta(ge=0)] | None = None
    many: Annotated[tuple[Part, ...], Meta(max_length=2)] = ()
    named: dict[Short, Part] = {}
    needs: Needs | None = None


NAME = "controller/x"


@contextmanager
def release(kind: type[Struct] = Now, supports: int = LATER, **groups: type[Struct]) -> Iterator[None]:
    """The law of one of the two releases."""
    newer = dict.fromkeys(groups, LATER)
    with (
        mock.patch.dict(GROUPS, {"controller": kind, **groups}),
        mock.patch("statemachine.settings.GROUP_LEVELS", newer),
        mock.patch("statemachine.settings.KEYED", KEYED | groups.keys()),
        mock.patch("statemachine.cluster.SUPPORTED_FEATURE_LEVEL", supports),
    ):
        yield


def older() -> Any:
    return release(Old, 1)


def changed(value: object, name: str = NAME) -> ChangeSetting:
    return ChangeSetting(name, value if isinstance(value, str) else json.dumps(value))


WITH_A_LATER_FIELD: list[Any] = [
    {"part": {}, "limit": 5},
    {"part": {}, "limit": 77},
    {"limit": 7},
    {"limit": 7, "part": {"size": -1}},
    {"part": {"size": -1}, "limit": 7},
    {"part": {"colour": "blue"}},
    {"part": {}, "perhaps": {"colour": "red"}},
    {"part": {}, "many": [{}, {"colour": "blue"}]},
    {"part": {}, "named": {"a": {"colour": "blue"}}},
]


@pytest.mark.parametrize("value", WITH_A_LATER_FIELD, ids=json.dumps)
def test_a_field_above_the_clusters_level_is_refused_in_the_words_of_the_release_without_it(value):
    with older():
        before = given()
        said = before.refuses(changed(value), Code.INVALID, NAME)
    with release():
        after = given()
        assert after.refuses(changed(value), Code.INVALID) == said
    assert before.machine.chain == after.machine.chain


_parts = strategies.dictionaries(
    strategies.sampled_from(("size", "colour", "other")), strategies.sampled_from((0, 3, -1, "red", "blue"))
)
_values = strategies.dictionaries(
    strategies.sampled_from(("part", "limit", "enabled", "perhaps", "either", "many", "named", "needs", "other")),
    strategies.one_of(
        _parts,
        strategies.lists(_parts, max_size=3),
        strategies.dictionaries(strategies.sampled_from(("a", "b")), _parts, max_size=2),
        strategies.sampled_from((5, 99, True, None, "red")),
    ),
)
_histories = strategies.lists(
    strategies.one_of(
        _values.map(lambda value: changed({"part": {}, **value})),
        _values.map(changed),
        strategies.sampled_from(("controler/x", "extra/x", "controller")).map(lambda name: changed("{}", name)),
    ),
    max_size=8,
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(_histories)
def test_two_releases_make_the_same_of_every_change_at_the_level_of_the_older(commands):
    with older():
        before = given().when(*commands)
    with release(extra=Part):
        after = given().when(*commands)
    assert before.results == after.results
    assert before.machine.chain == after.machine.chain
    assert before.state.settings == after.state.settings


def test_a_field_is_taken_once_the_level_is_raised():
    with release():
        cluster = given(RaiseFeatureLevel(LATER))
        cluster.do(changed({"part": {"colour": "blue"}, "limit": 7}))
        cluster.refuses(changed({"part": {}, "limit": 10}), Code.INVALID, "limit")
        held: Any = cluster.restored().state.controller("x")
        assert (held.part.colour, held.limit) == ("blue", 7)


def test_a_group_above_the_clusters_level_is_no_setting_and_is_not_named():
    with release(extra=Part):
        cluster = given()
        assert "extra" not in cluster.refuses(changed("{}", "extra/x"), Code.INVALID, "no setting").replace(
            "'extra/x'", ""
        )
        assert st.level_needed("extra/x", Part()) == LATER
        assert cluster.do(RaiseFeatureLevel(LATER), changed("{}", "extra/x")) == {"version": 1}


@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: Signed("root", Once("r1", 60_000, c))], ids=["bare", "wrapped"]
)
def test_a_release_below_the_clusters_level_stops_at_a_setting_that_it_does_not_know(wrap):
    with release():
        cluster = given(RaiseFeatureLevel(LATER), changed({"part": {}}))
        cluster.do(Once("r0", 60_000, changed({"part": {"size": 1}}, "controller/y")))
        cluster.when(wrap(changed({"part": {}, "limit": 7})))
    with older():
        behind = Machine()
        with pytest.raises(Halt, match=r"cannot be read by this release: setting controller/x: .*`limit`; upgrade it"):
            for index, term, entry in cluster.log:
                behind.apply(index, term, entry)
        # It stands where the entry before left it.
        assert behind.index == cluster.log[-2][0]
        assert set(behind.state.settings) == {"controller/x", "controller/y"}


def test_a_snapshot_with_a_setting_that_a_release_does_not_know_says_so():
    with release():
        cluster = given(RaiseFeatureLevel(LATER), changed({"part": {}, "limit": 7}))
    with older(), pytest.raises(SnapshotDamaged, match=r"controller/x: .*`limit`; .* upgrade it"):
        cluster.restored()


def test_what_is_sent_of_a_setting_needs_no_higher_level_than_what_it_says():
    usual = Now(Part(3), named={"a": Part(1)}, many=(Part(),), needs=Needs(gpus=1))
    assert level_of(usual) == 1
    with older():
        assert given().do(changed(st.encode(usual)))
    for later in (
        Now(Part(), limit=6),
        Now(Part(colour="blue")),
        Now(Part(), many=(Part(), Part(2, "blue"))),
        Now(Part(), named={"a": Part(2, "blue")}),
        Now(Part(), perhaps=Part(colour="")),
    ):
        assert level_of(later) == LATER
        assert msgspec.json.decode(st.encode(later), type=Now) == later
        with older():
            given().refuses(changed(st.encode(later)), Code.INVALID, "unknown field")


def test_a_shape_without_later_fields_is_the_same_at_every_level():
    assert as_of(Old, 1) is Old
    assert as_of(Now, LATER) is Now
    assert seen_at(Now(Part()), LATER) == Now(Part())
    assert level_of(Old(OldPart())) == 1
