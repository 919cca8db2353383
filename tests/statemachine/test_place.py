"""Placement: the leader proposes, the law checks the same rules again when its turn has come."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from statemachine.commands import DrainGpu, DrainPeer, PauseCluster, PlaceWork
from statemachine.errors import Code
from statemachine.rows import Actual, Desired
from statemachine.settings import Limits, Template
from statemachine.values import Gpu, GpuDrain, Needs
from tests.support.law import (
    bound,
    claimable,
    claimed,
    completed,
    failed,
    given,
    item,
    node,
    setting,
    started,
)


def test_a_placed_item_becomes_a_job_under_a_new_fence():
    cluster = given(node("a"), item("w1"))
    assert cluster.do(PlaceWork("w1", "a", 1, reason="most room")) == {"job": "w1.1", "fence": 1}
    job = cluster.job("w1")
    assert (job.peer, job.incarnation, job.fence, job.placed) == ("a", 1, 1, "most room")
    assert (job.actual, job.desired) == (Actual.PENDING, Desired.RUN)
    assert (job.lease_ms, job.timeout_ms) == (300_000, 7_200_000)
    assert cluster.status("w1") == "claimed"


def test_an_item_that_is_bound_already_cannot_be_placed_again():
    cluster = given(node("a"), node("b"), item("w1"), bound("w1", "a"))
    cluster.refuses(bound("w1", "b"), Code.ILLEGAL_TRANSITION, "'w1'", "claimed")


def test_a_placement_names_things_that_exist():
    cluster = given(node("a"), item("w1"))
    cluster.refuses(bound("w9", "a"), Code.NOT_FOUND, "'w9'")
    cluster.refuses(bound("w1", "z"), Code.NOT_FOUND, "'z'")


def test_a_placement_made_for_an_older_process_of_the_node_is_refused():
    cluster = given(node("a"), item("w1"), node("a", incarnation=2))
    cluster.refuses(PlaceWork("w1", "a", 1), Code.STALE_INCARNATION, "'a'", "2", "1")


def test_nothing_is_placed_while_the_cluster_is_paused():
    cluster = given(node("a"), item("w1"), PauseCluster(True, "maintenance"))
    cluster.refuses(bound("w1", "a"), Code.PAUSED, "maintenance")
    cluster.do(PauseCluster(False), bound("w1", "a"))


@pytest.mark.parametrize(
    ("peer", "needs", "word"),
    [
        (node("a", slots=1), Needs(cpu_slots=2), "0 of 1 CPU slots"),
        (node("a"), Needs(labels=("fast-disk",)), "fast-disk"),
        (node("a"), Needs(peers=("b", "c")), "none of the nodes it may run on: b, c"),
        (node("a"), Needs(gpus=1), "0 free GPUs"),
        (node("a", gpus=1), Needs(gpus=1, vram_bytes=48 * 2**30), "0 free GPUs"),
        (node("a"), Needs(ram_bytes=65 * 2**30), "bytes of RAM"),
        (node("a", not_ready="the disk is full"), Needs(), "the disk is full"),
    ],
)
def test_a_peer_that_cannot_run_it_is_refused_with_the_reason(peer, needs, word):
    cluster = given(peer, item("w1", needs=needs))
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "'w1'", "'a'", word)


def test_an_item_that_names_its_nodes_runs_on_any_of_them():
    cluster = given(node("a"), node("b"), item("w1", needs=Needs(peers=("b", "c"))))
    cluster.do(bound("w1", "b"))


def test_a_full_peer_takes_no_more_until_a_job_ends():
    cluster = given(node("a", slots=1), item("w1"), item("w2"), bound("w1", "a"))
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "1 of 1 CPU slots")
    cluster.do(completed("w1"), bound("w2", "a"))


def test_jobs_on_gpus_leave_the_cpu_slots_alone():
    cluster = given(node("a", slots=1, gpus=1), item("g", needs=Needs(gpus=1)), item("w1"))
    cluster.do(bound("g", "a", ("gpu0",)), bound("w1", "a"))


def test_a_peer_has_a_cap_on_jobs_whatever_its_slots_say():
    cluster = given(setting("limits", Limits(jobs_per_peer=1)), node("a"), item("w1"), item("w2"), bound("w1", "a"))
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "cap")


def test_a_draining_peer_takes_nothing():
    cluster = given(node("a"), item("w1"), DrainPeer("a", True, "kernel update"))
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "kernel update")


def test_a_suspect_takes_nothing_until_it_is_heard_again():
    cluster = given(node("a"), item("w1")).after(46_000)
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "suspect")
    cluster.after(2_000, beating=("a",)).do(bound("w1", "a"))


def test_selfplay_and_training_never_share_a_gpu_that_one_of_them_fills():
    whole = Needs(gpus=1)
    cluster = given(node("a", gpus=2), item("w1", needs=whole), item("w2", needs=whole))
    cluster.do(bound("w1", "a", ("gpu0",)))
    cluster.refuses(bound("w2", "a", ("gpu0",)), Code.INVALID, "gpu0", "gpu1")
    cluster.do(bound("w2", "a", ("gpu1",)))


def test_two_jobs_that_say_what_vram_they_need_may_share_a_gpu_while_it_fits():
    half = Needs(gpus=1, vram_bytes=10 * 2**30)
    cluster = given(node("a", gpus=1), *(item(f"w{n}", needs=half) for n in range(3)))
    cluster.do(bound("w0", "a", ("gpu0",)), bound("w1", "a", ("gpu0",)))
    cluster.refuses(bound("w2", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")


@pytest.mark.parametrize("gpus", [(), ("gpu0",), ("gpu0", "gpu0"), ("gpu0", "gpu1", "gpu1"), ("gpu0", "nobody")])
def test_a_placement_names_exactly_the_gpus_it_takes(gpus):
    cluster = given(node("a", gpus=2), item("w1", needs=Needs(gpus=2)))
    cluster.refuses(bound("w1", "a", gpus), Code.INVALID, "needs 2 GPUs")
    cluster.do(bound("w1", "a", ("gpu1", "gpu0")))


def test_a_placement_without_need_of_a_gpu_takes_none():
    cluster = given(node("a", gpus=1), item("w1"))
    cluster.refuses(bound("w1", "a", ("gpu0",)), Code.INVALID)


def test_at_most_one_training_of_a_config_runs_at_a_time():
    cluster = given(node("a"), item("t1", "training"), item("t2", "training"), item("t3", "training", "hex8_3p"))
    cluster.do(bound("t1", "a"), bound("t3", "a"))
    cluster.refuses(bound("t2", "a"), Code.INELIGIBLE, "another training")
    cluster.do(started("t1"), failed("t1"), bound("t2", "a"))


def test_an_item_waits_for_the_items_it_depends_on():
    cluster = given(node("a"), item("w2", depends_on=("w1",)))
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "'w1'", "not known")
    cluster.do(item("w1"))
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "'w1'", "pending")
    cluster.do(claimed("c1"), completed("w1"), bound("w2", "a"))


def test_an_item_in_backoff_is_not_placed_before_its_time():
    cluster = given(node("a"), item("w1"), bound("w1", "a"), started("w1"), failed("w1"))
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "10 s", "it broke")
    cluster.after(10_000).do(bound("w1", "a"))


def test_an_item_without_a_template_is_not_placed_and_the_refusal_says_what_to_do():
    cluster = given(node("a"), claimable("w1"))
    cluster.refuses(bound("w1", "a"), Code.INELIGIBLE, "'w1'", "no template", "claim")


def test_an_item_takes_what_it_says_else_what_its_template_says_else_one_slot():
    modest = setting("template/modest", Template(argv=("true",), needs=Needs(cpu_slots=3)))
    cluster = given(modest, node("a", slots=4), item("w1", template="modest"), item("w2", template="modest"))
    cluster.do(bound("w1", "a"))
    assert cluster.job("w1").needs == Needs(cpu_slots=3)
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "3 of 4 CPU slots")
    cluster.do(item("w3", template="modest", needs=Needs(cpu_slots=1)), bound("w3", "a"))
    assert cluster.job("w3").needs == Needs(cpu_slots=1)
    cluster.do(completed("w3"), item("w4"), bound("w4", "a"))
    assert cluster.job("w4").needs == Needs()


def test_jobs_reserve_disk_above_the_nodes_floor():
    want = Needs(disk_bytes=6 * 2**30)
    cluster = given(node("a", disk_free_bytes=10 * 2**30), item("w1", needs=want), item("w2", needs=want))
    cluster.do(bound("w1", "a"))
    cluster.refuses(bound("w2", "a"), Code.INELIGIBLE, "free bytes of disk")


def test_a_training_has_its_gpu_alone_though_it_says_what_vram_it_needs():
    some = Needs(gpus=1, vram_bytes=4 * 2**30)
    cluster = given(node("a", gpus=1), item("t", "training", needs=some), item("w", needs=some))
    cluster.do(bound("w", "a", ("gpu0",)))
    cluster.refuses(bound("t", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")
    cluster.do(completed("w"), bound("t", "a", ("gpu0",)), item("w2", needs=some))
    cluster.refuses(bound("w2", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")


def test_a_gpu_is_shared_by_so_many_slots_and_no_more():
    little = Needs(gpus=1, vram_bytes=2**20)
    cluster = given(setting("limits", Limits(jobs_per_gpu=2)), node("a", gpus=1))
    cluster.do(*(item(f"w{n}", needs=little) for n in range(3)))
    cluster.do(bound("w0", "a", ("gpu0",)), bound("w1", "a", ("gpu0",)))
    cluster.refuses(bound("w2", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")


def with_strangers(gib: int):
    joins = node("a")
    gpu = Gpu("gpu0", "L4", 24 * 2**30, foreign_bytes=gib * 2**30)
    return replace(joins, facts=replace(joins.facts, gpus=(gpu,)))


def test_what_strangers_hold_on_a_gpu_is_not_free_and_it_is_nobodys_whole_gpu():
    cluster = given(with_strangers(gib=8), item("big", needs=Needs(gpus=1, vram_bytes=20 * 2**30)))
    cluster.do(item("small", needs=Needs(gpus=1, vram_bytes=15 * 2**30)), item("whole", needs=Needs(gpus=1)))
    cluster.refuses(bound("big", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")
    cluster.refuses(bound("whole", "a", ("gpu0",)), Code.INELIGIBLE, "0 free GPUs")
    cluster.do(bound("small", "a", ("gpu0",)))


def test_a_drained_gpu_takes_nothing_its_neighbour_does_and_it_comes_back_by_itself():
    cluster = given(node("a", gpus=2), DrainGpu("a", "gpu0", True, "xid 79", 5_000))
    cluster.do(item("w1", needs=Needs(gpus=2)), item("w2", needs=Needs(gpus=1)))
    cluster.refuses(bound("w1", "a", ("gpu0", "gpu1")), Code.INELIGIBLE, "1 free GPUs", "gpu0 is out", "xid 79")
    cluster.do(bound("w2", "a", ("gpu1",)), completed("w2"))
    cluster.after(4_999, beating=("a",))
    cluster.refuses(bound("w1", "a", ("gpu0", "gpu1")), Code.INELIGIBLE)
    cluster.after(1, beating=("a",)).do(bound("w1", "a", ("gpu0", "gpu1")))
    assert cluster.events("GpuDrained") == cluster.events("GpuUndrained") == ["a"]


def test_a_drain_without_an_end_is_lifted_by_hand_and_a_faulty_gpu_is_named_beside_it():
    faulty = node("a", gpus=2)
    gpus = (replace(faulty.facts.gpus[0], fault="ecc: 3 errors"), faulty.facts.gpus[1])
    cluster = given(replace(faulty, facts=replace(faulty.facts, gpus=gpus)), DrainGpu("a", "gpu1", True))
    cluster.when(item("w", needs=Needs(gpus=1))).after(100_000, beating=("a",))
    cluster.refuses(bound("w", "a", ("gpu1",)), Code.INELIGIBLE, "gpu0 is out (ecc", "gpu1 is out (drained: by an op")
    assert cluster.do(DrainGpu("a", "gpu1", False)) is False
    assert cluster.do(DrainGpu("a", "gpu1", False)) is False
    cluster.do(bound("w", "a", ("gpu1",)))
    assert cluster.events("GpuUndrained") == ["a"]


def test_of_two_drains_of_a_gpu_the_longer_one_counts():
    drains = lambda: cluster.state.peers["a"].gpu_drains  # noqa: E731
    cluster = given(node("a", gpus=2), DrainGpu("a", "gpu0", True, "first", 5_000))
    cluster.do(DrainGpu("a", "gpu0", True, "shorter", 4_000))
    assert drains() == (GpuDrain("gpu0", "first", 6_000),)
    cluster.do(DrainGpu("a", "gpu0", True, "longer", 9_000), DrainGpu("a", "gpu1", True, "beside", 1_000))
    cluster.after(2_000, beating=("a",))
    assert drains() == (GpuDrain("gpu0", "longer", 10_000),)
    cluster.do(DrainGpu("a", "gpu0", True, "for ever"), DrainGpu("a", "gpu0", True, "shorter", 4_000))
    assert drains() == (GpuDrain("gpu0", "for ever"),)


def test_only_a_gpu_that_the_peer_has_is_drained_and_not_too_many():
    cluster = given(node("a", gpus=1))
    cluster.refuses(DrainGpu("a", "gpu7", True), Code.NOT_FOUND, "'gpu7'", "gpu0")
    cluster.refuses(DrainGpu("b", "gpu0", True), Code.NOT_FOUND, "'b'")
    many = node("a", gpus=64)
    cluster.do(many, *(DrainGpu("a", f"gpu{n}", True) for n in range(64)))
    named = replace(many, facts=replace(many.facts, gpus=(Gpu("another", "L4", 1),)))
    cluster.do(named)
    cluster.refuses(DrainGpu("a", "another", True), Code.LIMIT, "64 drained")
    cluster.refuses(DrainGpu("a", "gpu64", True), Code.NOT_FOUND)
