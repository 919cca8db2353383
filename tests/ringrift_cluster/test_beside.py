"""The log of a node that does not vote yet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ringrift_cluster.beside import LogBeside
from ringrift_cluster.raft.datadir import DataDir
from ringrift_cluster.raft.errors import DiskFailed
from ringrift_cluster.replica import ChangeRefused
from ringrift_cluster.settings import load, resolve
from tests.ringrift_cluster.raft.loopback import free_ports


def test_one_that_stopped_by_itself_is_begun_again_or_says_why_not(tmp_path: Path) -> None:
    http, raft = free_ports(2)
    given = {"cluster": "a=127.0.0.1:1", "node_id": "f1", "port": http, "raft_port": raft, "data_dir": str(tmp_path)}
    beside = LogBeside(resolve(load(given), stored_id=None, hostname="box", fresh_id="f1"))

    def fail() -> None:
        raise DiskFailed("the disk is gone")

    async def scenario() -> None:
        first = await beside.start(None)
        assert await beside.start(None) is first
        first._thread.call(fail)
        assert await asyncio.to_thread(first._thread.ended.wait, 10)
        again = await beside.start(None)
        assert (again.status().halted, again.log_id) == (None, first.log_id)
        again._thread.call(fail)
        assert await asyncio.to_thread(again._thread.ended.wait, 10)
        DataDir(tmp_path).journal.write_bytes(b"this is no journal")
        with pytest.raises(ChangeRefused, match=r"f1 cannot begin a log: the journal .* cannot be opened"):
            await beside.start(None)

    asyncio.run(scenario())
