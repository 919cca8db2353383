"""Snapshots: read back whole or refused with a sentence, and the future is the same either way."""

from __future__ import annotations

import hashlib
import io

import msgspec
import pytest

from statemachine import snapshot
from statemachine.commands import CancelWork, ConfigureVoters, CreateToken, Once, RecordMatch, StartGauntlet
from statemachine.machine import Machine
from statemachine.rows import KEYS
from statemachine.snapshot import MAGIC, Header, SnapshotDamaged
from statemachine.values import Scope, Voter
from tests.support.law import (
    Cluster,
    bound,
    claimed,
    completed,
    digest_of,
    failed,
    game_config,
    games_file,
    given,
    item,
    node,
    pairs,
    participant,
    rows_digest,
    started,
    template,
    trained,
)
from tests.support.law import beat as heartbeat


def busy() -> Cluster:
    """A cluster with something in every table."""
    cluster = given(template(), game_config(), node("a", gpus=1), node("b"), *trained("m"))
    cluster.do(*(item(f"w{n}", template="run") for n in range(6)))
    cluster.do(bound("w0", "a"), started("w0"), bound("w1", "b"), claimed("c1"), bound("w3", "a"))
    cluster.do(completed("w0", games=9, outputs=(games_file("shard", 9),)), failed("w1"), CancelWork("w4"))
    cluster.do(RecordMatch("m1", "square8_2p", pairs(participant("m"), "random", wins=4)))
    cluster.do(Once("r1", 600_000, item("w9")))
    cluster.do(ConfigureVoters((Voter("a", "a:8771", "http://a:8770", "l1"),), "r2"))
    cluster.do(StartGauntlet("g", "square8_2p", digest_of("m"), "random"))
    cluster.do(CreateToken("ops", Scope.ADMIN, digest_of("secret"), expires_in_ms=900_000))
    return cluster.after(4_000, beating=("a",))


def file_of(machine: Machine) -> bytes:
    frozen = snapshot.freeze(machine)
    out = io.BytesIO()
    checksum = snapshot.write(frozen, snapshot.header(frozen, "c-1", ("a", "b", "c")), out)
    assert out.getvalue().endswith(checksum)
    return out.getvalue()


def sealed(*frames: object, magic: bytes = MAGIC) -> bytes:
    """A file with a right checksum over any frames at all."""
    body = magic
    for frame in frames:
        data = msgspec.msgpack.encode(frame)
        body += len(data).to_bytes(4, "big") + data
    return body + hashlib.sha256(body).digest()


HEAD = Header(1, "c-1", 7, 2, ("a",), 1, bytes(32))


def damage(data: bytes) -> str:
    with pytest.raises(SnapshotDamaged) as caught:
        snapshot.read(io.BytesIO(data))
    return str(caught.value)


def test_every_table_comes_back_with_its_rows_in_their_order():
    cluster = busy()
    assert all(cluster.state.tables.values()), "the sample leaves a table empty"
    head, machine = snapshot.read(io.BytesIO(file_of(cluster.machine)))
    assert {name: list(rows.items()) for name, rows in machine.state.tables.items()} == {
        name: list(rows.items()) for name, rows in cluster.state.tables.items()
    }
    assert (machine.index, machine.term, machine.chain) == (cluster.index, 1, cluster.machine.chain)
    assert head.rows == {name: len(rows) for name, rows in cluster.state.tables.items()}
    assert (head.cluster_id, head.voters, head.feature_level) == ("c-1", ("a", "b", "c"), 1)


def test_a_row_is_kept_under_the_key_it_knows():
    for name, rows in busy().state.tables.items():
        assert [KEYS[name](row) for row in rows.values()] == list(rows)


def test_rows_of_a_snapshot_share_what_they_say_alike():
    cluster = given(node("a"), item("w1"), item("w2"), bound("w1", "a"), bound("w2", "a"))
    state = cluster.restored().state
    first, second, job = state.work["w1"], state.work["w2"], state.jobs["w1.1"]
    assert first.spec.config is second.spec.config is job.config
    assert first.counts is second.metrics is job.total
    assert job.work is first.spec.work
    assert (state.work, state.jobs) == (cluster.state.work, cluster.state.jobs)


def test_the_future_after_a_snapshot_is_the_future_after_the_log():
    cluster = busy()
    twin = cluster.restored()
    for future in (cluster, twin):
        future.after(2_000, beating=("a",)).after(310_000, beating=("b",)).do(heartbeat("a"), item("late"))
    assert twin.machine.chain == cluster.machine.chain
    assert rows_digest(twin.state) == rows_digest(cluster.state)


def test_a_frozen_view_does_not_move_with_its_machine():
    cluster = busy()
    frozen = snapshot.freeze(cluster.machine)
    before = list(frozen.tables["work"])
    cluster.do(item("later"))
    assert list(frozen.tables["work"]) == before
    assert frozen.index == cluster.index - 1


def test_the_same_state_is_the_same_file():
    cluster = busy()
    assert file_of(cluster.machine) == file_of(cluster.restored().machine)


def test_a_table_larger_than_a_slice_is_written_in_several_frames():
    cluster = given(*(item(f"w{n}") for n in range(2 * snapshot.SLICE + 1)))
    _, machine = snapshot.read(io.BytesIO(file_of(cluster.machine)))
    assert len(machine.state.work) == 2 * snapshot.SLICE + 1


def test_a_header_may_name_a_later_place_in_the_log():
    frozen = snapshot.freeze(busy().machine)
    head = snapshot.header(frozen, "c-1", (), index=900, term=5)
    assert (head.index, head.term) == (900, 5)


def test_a_header_is_read_alone():
    data = file_of(busy().machine)
    assert snapshot.read_header(io.BytesIO(data)).cluster_id == "c-1"
    with pytest.raises(SnapshotDamaged, match="start"):
        snapshot.read_header(io.BytesIO(b"GIF89a.."))


def test_a_single_flipped_bit_anywhere_is_noticed():
    data = file_of(given(item("w1")).machine)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        damage(bytes(flipped))


def test_a_file_that_stops_anywhere_is_noticed():
    data = file_of(given(item("w1")).machine)
    for size in range(len(data)):
        damage(data[:size])


def test_a_file_with_something_behind_its_end_is_noticed():
    assert "checksum" in damage(file_of(given().machine) + b"x")


def test_a_file_of_another_kind_or_release_says_so():
    assert "start like a snapshot" in damage(b"RRSNAP2\n" + bytes(100))
    assert "format 9" in damage(sealed(msgspec.structs.replace(HEAD, format=9), ("end", 0)))
    assert "'treaties'" in damage(sealed(HEAD, ("treaties", []), ("end", 0)))


def test_a_file_that_was_written_wrong_is_refused_though_its_checksum_is_right():
    assert "row of table peers" in damage(sealed(HEAD, ("peers", [["a", {"peer": "a"}]]), ("end", 1)))
    assert "section" in damage(sealed(HEAD, "peers", ("end", 0)))
    assert "header" in damage(sealed([1, 2], ("end", 0)))
    assert "0 rows" in damage(sealed(HEAD, ("end", 3)))
    assert "its end" in damage(sealed(HEAD, ("end", "many")))
    assert "no end" in damage(sealed(HEAD))
    cut = MAGIC + b"\0\0\0\x09short"
    assert "middle of a frame" in damage(cut + hashlib.sha256(cut).digest())


def test_a_header_alone_is_bounded_and_may_be_broken():
    with pytest.raises(SnapshotDamaged, match="absurd"):
        snapshot.read_header(io.BytesIO(MAGIC + b"\xff\xff\xff\xff"))
    with pytest.raises(SnapshotDamaged, match="header"):
        snapshot.read_header(io.BytesIO(MAGIC + b"\0\0\0\x02\xa1\xff"))
