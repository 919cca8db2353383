"""A state that goes on in a new cluster."""

from __future__ import annotations

from statemachine.anew import FENCE_LEAP, begin_anew
from statemachine.deadlines import lease_end_ms
from statemachine.errors import Code
from statemachine.values import Voter
from tests.support.law import Cluster, bound, completed, game_config, given, item, node, started, template

FIRST = Voter("a", "h:1", "http://h:2", "1" * 32)


def running() -> Cluster:
    """An item runs on a node; its job has the first fence."""
    return given(template(), game_config(), node("gpu-1"), item("w"), bound("w", "gpu-1"), started("w"))


def anew(old: Cluster) -> Cluster:
    new = old.restored()
    begin_anew(new.machine, "n" * 24, FIRST, "a test")
    return new.new_leader()


def left(cluster: Cluster) -> int:
    """How long the lease of the item's job still runs."""
    return lease_end_ms(cluster.job("w"), cluster.state.peers) - cluster.now_ms


def test_its_rows_are_those_of_the_old_one_and_its_digest_is_its_own():
    old = running()
    new = old.restored()
    begin_anew(new.machine, "n" * 24, FIRST, "a test")
    assert (new.machine.index, new.machine.term) == (old.machine.index, old.machine.term)
    assert new.machine.chain != old.machine.chain
    same = new.state.tables.keys() - {"cluster", "events", "voters"}
    assert all(new.state.tables[name] == old.state.tables[name] for name in same)
    assert new.state.voters.voters == (FIRST,)
    assert new.events("ClusterBegunAnew") == ["n" * 24]


def test_two_new_clusters_of_one_state_have_different_digests():
    old = running()
    one, other = old.restored(), old.restored()
    begin_anew(one.machine, "1" * 24, FIRST, "a test")
    begin_anew(other.machine, "2" * 24, FIRST, "a test")
    assert one.machine.chain != other.machine.chain


def test_a_job_that_was_live_is_lost_when_its_lease_lapses_and_its_item_waits_again():
    new = anew(running())
    assert new.status("w") == "running"
    lease = left(new)
    assert lease > 0
    new.after(lease - 1)
    assert new.status("w") == "running"
    new.after(2_001)
    assert new.status("w") == "pending"


def test_no_fence_is_given_out_twice():
    old, new = running(), anew(running())
    late = completed("w")(new)
    held = new.job("w").fence
    new.after(left(new) + 2_000)
    for cluster in (old, new):
        cluster.do(node("gpu-2"), item("x"), bound("x", "gpu-2"))
    assert new.job("x").fence > FENCE_LEAP + held
    assert new.job("x").fence != old.job("x").fence
    new.refuses(late, Code.STALE_FENCE)
