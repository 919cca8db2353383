"""What we rely on inside pysyncobj exists, and nothing is unpickled."""

from __future__ import annotations

import pickle

import pysyncobj
import pysyncobj.syncobj as library
import pytest

from ringrift_cluster.raft import privates, seams
from ringrift_cluster.raft.conf import Limits, Timing, sync_obj_conf, sync_obj_settings
from ringrift_cluster.raft.consensus import Consensus
from ringrift_cluster.raft.messages import AppendEntries
from tests.ringrift_cluster.raft.alone import Guarded, Stock


@pytest.mark.parametrize("name", privates.ATTRIBUTES)
def test_the_private_attribute_exists(name):
    assert name in vars(Stock())


def test_the_method_that_is_replaced_exists():
    assert callable(getattr(library.SyncObj, privates.APPLY_ENTRIES))
    assert vars(Consensus)[privates.APPLY_ENTRIES]


@pytest.mark.parametrize("name", sorted(sync_obj_settings(Timing(), Limits(), None)))
def test_the_setting_exists(name):
    assert name in vars(pysyncobj.SyncObjConf())


@pytest.mark.parametrize("name", sorted(seams.SEAMS))
def test_the_seam_is_a_name_of_the_library_and_set(name):
    assert getattr(library, name) is seams.SEAMS[name]


def test_the_states_have_their_numbers():
    states = library._RAFT_STATE
    assert (states.FOLLOWER, states.CANDIDATE, states.LEADER) == (0, 1, 2)
    assert (privates.FOLLOWER, privates.CANDIDATE, privates.LEADER) == (0, 1, 2)


def test_the_configuration_is_valid():
    sync_obj_conf(Timing(), Limits(), None).validate()


def test_there_is_one_replicated_method():
    methods = {n for n in dir(Consensus) if getattr(getattr(Consensus, n), "replicated", False)}
    assert methods == {"entry", "entry_v0"}


def test_only_a_leader_appends(tmp_path):
    voter = Guarded(tmp_path)
    with pytest.raises(RuntimeError, match="only a leader appends"):
        voter.node._consensus.append(b"x")


class Bomb:
    exploded = False

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return _explode, ()


def _explode() -> None:
    Bomb.exploded = True


def test_a_pickle_in_an_entry_is_bytes_and_nothing_else(tmp_path):
    voter = Guarded(tmp_path)
    with pytest.raises(Exception, match="cannot be read"):
        voter.get("b", AppendEntries(1, 2, 1, 0, [(b"\x00" + pickle.dumps(Bomb()), 2, 1)]))
    assert not Bomb.exploded
    assert seams.OpaqueCommands.loads(pickle.dumps(Bomb()))[0] == 0
    assert not Bomb.exploded


def test_nothing_is_pickled():
    with pytest.raises(TypeError):
        library.pickle.dumps((0, (b"x",)))
