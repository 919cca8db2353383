"""Why a voter refuses to start, or stops. Each carries one sentence for a person."""

from __future__ import annotations

#: what to do with a voter whose files cannot be trusted; the others have all of it
WAY_OUT = (
    "`ringrift-node raft verify` tells what is left; to go on, run `ringrift-node voters remove` with this voter's "
    "name, move its raft directory away, start it again and run `ringrift-node voters add`"
)


class RaftError(Exception):
    """Base of the raft room's errors."""


class PortTaken(RaftError):  # noqa: N818 - names a state of the world
    """Another process listens on the raft address."""


class DataDirLocked(RaftError):  # noqa: N818
    """Another process uses the data directory."""


class MembersContradict(RaftError):  # noqa: N818
    """The node id is not the one the data directory was made for."""


class Removed(RaftError):  # noqa: N818
    """This node is not a voter (any more): the cluster decided so, and this log is of no further use."""


class JournalDamaged(RaftError):  # noqa: N818
    """The journal or a snapshot on disk cannot be trusted."""


class DiskFailed(RaftError):  # noqa: N818
    """A write or fsync failed. It is never retried: what is on disk is unknown."""


class Diverged(RaftError):  # noqa: N818
    """A peer asks for something that only a log other than ours can lead to."""


class DiskLost(RaftError):  # noqa: N818
    """The cluster knows this voter by a log that is no longer here."""
