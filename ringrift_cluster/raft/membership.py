"""Who this voter is, which log it holds, and whom it lets near that log.

Identity is the node id; addresses are configuration. `log_id` is drawn at a log's first start. The
configuration in the log names the log of each voter, so one that lost its disk is recognised: it comes with
another log id, and is told so instead of being counted.

A log may vote, campaign and count (it is *admitted*) when the configuration in effect names it. The voters a
cluster begins with have no log ids in their list yet: there an empty log waits until a majority of voters
answered of which none has a cluster id, or until more than half of the other voters have recorded its log
id (any two such halves share a voter). The first leader then writes the log ids down.

A log that joins an existing cluster takes what a leader sends it and is named once it has caught up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import msgspec

from ringrift_cluster.raft.configuration import Configuration
from ringrift_cluster.raft.errors import MembersContradict
from ringrift_cluster.raft.journal import NO_OP, Journal
from ringrift_cluster.raft.messages import Hello, Welcome
from statemachine.values import Voter

PROTOCOL = 1
#: names that were turned away and are remembered, beside the voters
MAX_REFUSED = 16
WELCOME = Welcome(reason="", detail="")


@dataclass(frozen=True, slots=True)
class _Listed:
    """What one configuration says, from this voter's side."""

    configuration: Configuration
    names: tuple[str, ...]
    others: tuple[str, ...]
    own: Voter | None


class Membership:
    """The configuration as this voter sees it, and what is known of each voter's log."""

    def __init__(self, node_id: str, bootstrap: tuple[Voter, ...], journal: Journal, log_id: str, base: Configuration):
        """`bootstrap` is the list that a cluster begins with, empty for a log that joins one; `base` is the
        snapshot's configuration.

        Raises MembersContradict when the journal was made for another node.
        """
        self.node_id = node_id
        self._journal = journal
        self._configurations = journal.configurations
        #: others that accepted us on a connection of this process, and the cluster id they named
        self._accepted_by: dict[str, str] = {}
        #: why a voter was turned away last
        self.refused: dict[str, str] = {}
        #: the sentence of a voter that knows us by another log
        self.disowned: str | None = None
        #: the sentence of a voter that knows us as no voter
        self.dismissed: str | None = None
        #: logs that may be sent entries to, although nothing names them yet
        self.invited: set[str] = set()
        self._listed: _Listed | None = None
        stored_id, stored = journal.fact("node_id"), journal.fact("voters")
        if stored_id and stored_id != node_id:
            raise MembersContradict(
                f"the data directory belongs to voter {stored_id}, but this node is {node_id}; "
                "use its own data directory"
            )
        if not stored_id and not bootstrap:
            journal.set_fact("joining", "1")
        journal.set_fact("node_id", node_id)
        if stored and journal.fact("admitted"):
            # This log once counted by that list: until the log itself says who votes, no flag changes it.
            given = {v.node: v for v in bootstrap}
            bootstrap = tuple(given.get(v.node, v) for v in msgspec.json.decode(stored, type=tuple[Voter, ...]))
        self._configurations.begin(() if self.joining else bootstrap, base)
        self._names = tuple(sorted(v.node for v in bootstrap))
        if bootstrap:
            journal.set_fact("voters", msgspec.json.encode(bootstrap).decode())
        if not journal.fact("log_id"):
            journal.set_fact("log_id", log_id)
        #: other voters' log ids, and whether that log was ever seen admitted
        self._known: dict[str, list[str | bool]] = json.loads(journal.fact("known_logs") or "{}")
        self._consider_admission()

    # Who votes

    @property
    def configuration(self) -> Configuration:
        """The one in effect."""
        return self._configurations.effective

    @property
    def voters(self) -> tuple[str, ...]:
        """Node ids of the voters in effect, sorted."""
        return self._lists().names

    @property
    def others(self) -> tuple[str, ...]:
        return self._lists().others

    def _lists(self) -> _Listed:
        """Asked for at every message, so made once a configuration."""
        configuration = self._configurations.effective
        listed = self._listed
        if listed is None or listed.configuration is not configuration:
            names = tuple(sorted(configuration.names))
            others = tuple(n for n in names if n != self.node_id)
            listed = self._listed = _Listed(configuration, names, others, configuration.of(self.node_id))
        return listed

    @property
    def quorum(self) -> int:
        return self.configuration.quorum

    def committed(self, commit: int) -> Configuration:
        """The last configuration at or below `commit`."""
        return self._configurations.since(commit)[0]

    def addresses(self, commit: int) -> dict[str, str]:
        """Raft addresses of the other voters, of those that leave too until that is certain."""
        if self.configuration.of(self.node_id) is None:
            return {}
        known = self._configurations.since(commit)
        return {v.node: v.raft for c in known for v in c.voters if v.node != self.node_id}

    # Which log this is

    @property
    def cluster_id(self) -> str:
        """Empty until the first leader's choice is committed and known here."""
        return self._journal.fact("cluster_id")

    @property
    def log_id(self) -> str:
        return self._journal.fact("log_id")

    @property
    def joining(self) -> bool:
        """Whether this log was begun to join a cluster, and no committed configuration has named it yet."""
        return self._journal.fact("joining") == "1"

    @property
    def admitted(self) -> bool:
        """Whether this log may vote, campaign and count."""
        return self._is_us(self._lists().own)

    def _is_us(self, own: Voter | None) -> bool:
        """Whether a list that has `own` under our name means this log."""
        if own is None:
            return False
        return own.log_id == self.log_id if own.log_id else self._journal.fact("admitted") == "1"

    @property
    def listening(self) -> bool:
        """Whether it takes entries: an empty log of a voter that may have lost its disk does not."""
        return self.admitted or self.joining or self.configuration.index > 0

    @property
    def may_vote(self) -> bool:
        """An empty log that joins has nothing to judge a candidate by."""
        return self.admitted or (self.listening and self._journal.last_index > 1)

    def settle(self, commit: int) -> str | None:
        """Look at what is committed; a sentence when this log has no place in the cluster (any more)."""
        if self.dismissed is not None:
            return self.dismissed
        committed = self.committed(commit)
        if not committed.index:
            return None
        listed = self._lists()
        own = listed.own if committed is listed.configuration else committed.of(self.node_id)
        if self._is_us(own):
            self._journal.set_fact("joining", "")
        elif not self.joining and not self._waits(committed):
            return f"{self.node_id} is no longer a voter of the cluster ({_listed(committed)} are)"
        return None

    def _waits(self, committed: Configuration) -> bool:
        """Named by the cluster without a log: the first start of a voter comes late."""
        own = committed.of(self.node_id)
        return own is not None and not own.log_id

    # Greetings

    def hello(self, nonce: bytes) -> Hello:
        """Our greeting for one connection."""
        return Hello(
            PROTOCOL,
            self.node_id,
            self.cluster_id,
            self.log_id,
            self.admitted,
            list(self.voters),
            nonce,
            self.configuration.index,
        )

    def judge(self, hello: Hello) -> Welcome:
        """Whether a proven peer may talk to us; its log id is recorded when we first meet it.

        The answer must not leave before the journal's next batch is on disk.
        """
        answer = self._judge(hello)
        if answer.reason:
            if hello.node_id in self.voters or len(self.refused) < MAX_REFUSED:
                self.refused[hello.node_id] = answer.detail
        else:
            self.refused.pop(hello.node_id, None)
            self._record(hello.node_id, hello.log_id, admitted=hello.admitted)
        return answer

    def _record(self, peer: str, log_id: str, *, admitted: bool) -> None:
        proven = admitted or self._known.get(peer) == [log_id, True]
        if self._known.get(peer) != [log_id, proven]:
            self._known[peer] = [log_id, proven]
            self._journal.set_fact("known_logs", json.dumps(self._known, sort_keys=True))

    def proved(self, peer: str) -> None:
        """A connected voter acknowledged entries, which only an admitted log does."""
        known = self._known.get(peer)
        if known is not None and not known[1]:
            self._record(peer, str(known[0]), admitted=True)

    def log_of(self, peer: str) -> str:
        """The log id a peer came with last, if that log was admitted or invited; else empty."""
        if peer == self.node_id:
            return self.log_id
        log_id, proven = self._known.get(peer, ["", False])
        return str(log_id) if proven or peer in self.invited else ""

    def _judge(self, hello: Hello) -> Welcome:
        peer = hello.node_id
        if hello.protocol != PROTOCOL:
            return Welcome("protocol", f"{self.node_id} speaks protocol {PROTOCOL}, {peer} {hello.protocol}")
        if peer == self.node_id:
            return Welcome("not_a_voter", f"{peer} is not one of the other voters of {self.node_id}")
        if hello.cluster_id and self.cluster_id and hello.cluster_id != self.cluster_id:
            return Welcome(
                "other_cluster",
                f"{self.node_id} belongs to cluster {self.cluster_id}, {peer} to {hello.cluster_id}",
            )
        known = self._configurations.since(self._journal.settled)
        committed = known[0]
        # One whose list is later than the last that we know to be committed knows more than we do. A log that lost
        # its disk has no list from an entry, so it cannot claim this.
        if hello.configured > committed.index or peer in self.invited:
            return WELCOME
        named = [v for c in known for v in c.voters if v.node == peer]
        if not named:
            if not committed.index:
                return Welcome("not_a_voter", f"{peer} is not one of the other voters of {self.node_id}")
            return Welcome(
                "removed",
                f"{peer} is not a voter of the cluster ({_listed(committed)} are); it goes on as a follower, and "
                f"`ringrift-node voters add {peer}` makes it a voter",
            )
        if not committed.index and not hello.configured and tuple(sorted(hello.voters)) != self._names:
            return Welcome(
                "other_voters",
                f"{self.node_id} is configured with the voters {', '.join(self._names)}, "
                f"{peer} with {', '.join(hello.voters)}",
            )
        if any(v.log_id == hello.log_id for v in named):
            return WELCOME
        log_id, proven = self._known.get(peer, [hello.log_id, False])
        # A log that was only ever seen waiting for admission gives way to the one that has it: of two logs of
        # one voter, at most one can be admitted.
        other = log_id != hello.log_id and (proven or not hello.admitted)
        if other or all(v.log_id for v in named):
            return Welcome(
                "other_log",
                f"{self.node_id} knows voter {peer} by another log: its disk was lost or replaced. "
                f"Restore the data directory of {peer}, or run `ringrift-node voters remove {peer}`, start {peer} "
                f"again and run `ringrift-node voters add {peer}`",
            )
        return WELCOME

    def answered(self, hello: Hello, answer: Welcome) -> None:
        """Take the peer's answer to our own greeting."""
        if answer.reason:
            self._accepted_by.pop(hello.node_id, None)
            self.refused[hello.node_id] = answer.detail
            # A log that joins has lost nothing: who refuses it knows an older list, with an earlier log of this node.
            # So does a peer whose list is older than ours: our greeting may have left before we were named.
            if self.joining or hello.configured < self.configuration.index:
                return
            if answer.reason == "other_log":
                self.disowned = answer.detail
            elif answer.reason == "removed":
                self.dismissed = answer.detail
            return
        self._accepted_by[hello.node_id] = hello.cluster_id
        self._consider_admission()

    def lost(self, peer: str) -> None:
        """A connection ended."""
        if not self.admitted:
            self._accepted_by.pop(peer, None)

    def _consider_admission(self) -> None:
        if self.joining or self._journal.fact("admitted"):
            return
        others = [n for n in self._names if n != self.node_id]
        accepted = sum(1 for peer in self._accepted_by if peer in others)
        bootstrap = not any(self._accepted_by.values()) and accepted + 1 >= len(self._names) // 2 + 1
        recorded = accepted > len(others) / 2
        if bootstrap or recorded:
            self._journal.set_fact("admitted", "1")

    def learn_cluster_id(self, cluster_id: str) -> None:
        """Keep the id that the log committed."""
        self._journal.set_fact("cluster_id", cluster_id)

    def find_cluster_id(self, commit: int) -> None:
        """The first committed no-op that carries an id names the cluster, on every voter alike."""
        for index in range(max(2, self._journal.first_index), commit + 1):
            data = self._journal.entry(index)[0]
            if data[0] == NO_OP and len(data) > 1:
                self.learn_cluster_id(data[1:].decode("ascii"))
                return


def _listed(configuration: Configuration) -> str:
    return ", ".join(sorted(configuration.names))
