"""The wire contract: what may enter the log at all."""

from __future__ import annotations

import re
from typing import get_args

import hypothesis
import msgspec
import pytest
from hypothesis import strategies

from statemachine import settings as st
from statemachine.commands import (
    FEATURE_LEVELS,
    AddWork,
    CompleteJob,
    Effect,
    FailJob,
    Once,
    ReportJob,
    Signed,
    StartGauntlet,
    decode_command,
    encode_command,
    level_of,
    unfit,
)
from statemachine.entries import ENTRY_FORMAT, decode_entry, encode_entry
from statemachine.errors import Code
from statemachine.machine import HANDLERS
from statemachine.values import NAME, Evidence, MatchResult, Output, Tally, is_name
from tests.support.law import Cluster, claimed, digest_of, given, item, node


def refused_at_the_door(command: object, *words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        decode_command(encode_command(command))  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_a_command_survives_its_wire_form():
    for command in (item("w1", params={"a": "1"}), node("a", gpus=2), Once("r1", 10, claimed("c1"))):
        assert decode_command(encode_command(command)) == command


def test_a_command_needs_its_feature_level_in_whatever_it_is_wrapped(monkeypatch):
    monkeypatch.setitem(FEATURE_LEVELS, type(item("w1")), 7)
    assert level_of(Signed("ops", Once("r1", 10, item("w1")))) == level_of(item("w1")) == 7
    assert level_of(Once("r1", 10, claimed("c1"))) == 1


def test_every_command_has_exactly_one_transition():
    assert set(HANDLERS) == {*get_args(Effect), Once, Signed}


def test_an_entry_is_spliced_from_encoded_commands_without_touching_them():
    commands = [item("w1"), claimed("c1")]
    entry = decode_entry(encode_entry(7, 1_500, [encode_command(c) for c in commands]))
    assert (entry.format, entry.clock_term, entry.elapsed_ms) == (ENTRY_FORMAT, 7, 1_500)
    assert entry.commands == commands


def test_a_name_that_ends_in_a_newline_is_no_name():
    given(item("w0")).refuses(item("w1\n"), Code.INVALID)
    refused_at_the_door(node("a\n"), "$.peer")
    refused_at_the_door(CompleteJob("j", 1, outputs=(Output("f", digest_of("x") + "\n", 1, "games"),)), "digest")


@pytest.mark.parametrize("name", [" ", "../x y", "-leading", "tab\there", "naïve"])
def test_names_are_plain(name: str):
    refused_at_the_door(node(name), "$.peer")
    for bad in (item(name), item("w1", name)):
        given(item("w0")).refuses(bad, Code.INVALID, repr(name))


@pytest.mark.parametrize("name", ["", "x" * 129])
def test_names_are_neither_empty_nor_long(name: str):
    refused_at_the_door(node(name), "$.peer")
    refused_at_the_door(item("w1", name), "$.work_type")


@hypothesis.given(strategies.text(min_size=1, max_size=8))
def test_the_law_and_the_pattern_agree_on_names(name: str):
    assert is_name(name) == bool(re.search(NAME, name))


def test_the_jobs_and_matches_of_the_longest_work_id_can_still_be_named():
    longest = "w" * 96
    refused_at_the_door(item(longest + "w"), "$.work")
    cluster = given(item(longest, "evaluation"), claimed("c1"))
    job = cluster.job(longest)
    assert cluster.do(ReportJob(job.job, job.fence, "running")) == "run"
    played = MatchResult("m", "n", (Tally(1, 1, 2, 0, 0),))
    assert cluster.do(CompleteJob(job.job, job.fence, match=played)) == {"published": True}
    (match,) = cluster.state.matches
    assert len(match) <= 128


def test_the_evaluations_of_the_longest_gauntlet_id_can_still_be_named():
    longest = StartGauntlet("g" * 80, "square8_2p", digest_of("m"), "random")
    assert decode_command(encode_command(longest)) == longest
    refused_at_the_door(StartGauntlet("g" * 81, "square8_2p", digest_of("m"), "random"), "$.gauntlet")
    evaluation = item(f"{longest.gauntlet}-{10**14}", "evaluation", gauntlet=longest.gauntlet)
    assert decode_command(encode_command(evaluation)) == evaluation


def test_an_error_without_a_text_is_refused():
    refused_at_the_door(FailJob("j", 1, "user", ""), "$.error")


def test_unknown_fields_and_unknown_kinds_are_refused():
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        decode_command(msgspec.msgpack.encode({"kind": "cluster.pause", "paused": True, "for_ms": 5}))
    with pytest.raises(msgspec.ValidationError, match="Invalid value"):
        decode_command(msgspec.msgpack.encode({"kind": "leader.force", "node": "a"}))


def test_a_request_id_cannot_wrap_another_request_id():
    nested = msgspec.msgpack.encode(
        {"kind": "once", "request": "a", "expires_at_ms": 1, "command": msgspec.to_builtins(Once("b", 1, item("w")))}
    )
    with pytest.raises(msgspec.ValidationError):
        decode_command(nested)


def test_counts_are_small_enough_that_their_sums_stay_integers_of_the_wire():
    refused_at_the_door(CompleteJob("j", 1, counts={"games": 2**40 + 1}), "$.counts")
    cluster = Cluster()
    for n in range(3):
        cluster.do(item(f"w{n}"), claimed(f"c{n}"))
        job = cluster.job(f"w{n}")
        cluster.do(CompleteJob(job.job, job.fence, counts={"games": 2**40, "positions": 2**40}))
    assert cluster.state.totals["square8_2p"].games == 3 * 2**40


def test_bounds_of_a_test_are_elo_that_a_float_can_hold():
    refused_at_the_door(StartGauntlet("g", "c", digest_of("m"), "random", elo1=10**9), "$.elo1")


def test_a_command_says_its_kind_on_the_wire_and_omits_defaults():
    plain = msgspec.msgpack.decode(encode_command(AddWork("w1", "selfplay")))
    assert plain == {"kind": "work.add", "work": "w1", "work_type": "selfplay"}


def test_a_tally_counts_its_games():
    assert Tally(1, 1, 3, 2, 1).games == 6


def test_evidence_defaults_to_nothing_at_all():
    assert msgspec.to_builtins(Evidence("initial")) == {"kind": "initial"}


def test_text_that_is_not_utf8_is_a_decode_error_like_any_other():
    broken = encode_command(item("w1")).replace(b"w1", b"w\xff")
    with pytest.raises(msgspec.DecodeError, match="UTF-8"):
        decode_command(broken)
    with pytest.raises(msgspec.DecodeError, match="UTF-8"):
        decode_entry(encode_entry(1, 0, [broken]))


DEEP = b"\x91" * 60_000 + b"\xc0"


@pytest.mark.parametrize("decode", [decode_command, decode_entry])
def test_nesting_without_end_is_a_decode_error_like_any_other(decode):
    with pytest.raises(msgspec.DecodeError, match="nested too deeply"):
        decode(b"\x82\xa1x" + DEEP if decode is decode_command else b"\x95\x01\x01\x01\x90" + DEEP)


def test_a_setting_that_nests_too_deeply_is_refused_on_every_replica_alike():
    deep = '{"x":' + "[" * st.MAX_DEPTH + "]" * st.MAX_DEPTH + "}"
    with pytest.raises(ValueError, match=f"nested more than {st.MAX_DEPTH} deep"):
        st.decode("timing", deep)
    with pytest.raises(ValueError, match="unknown field"):
        st.decode("timing", '{"x":' + "[" * 9 + "]" * 9 + "}")


def test_a_command_that_the_log_would_not_take_is_found_before_it_is_sent():
    assert unfit(encode_command(CompleteJob("j", 1, counts={"games": 1}))) == ""
    assert "counts" in unfit(encode_command(CompleteJob("j", 1, counts={str(i): 1 for i in range(65)})))
    assert "bytes" in unfit(encode_command(CompleteJob("j", 1, metrics={str(i): "x" * 4000 for i in range(100)})))
