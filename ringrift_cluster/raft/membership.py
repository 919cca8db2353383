"""Who this voter is, which log it holds, and whom it lets near that log.

Identity is the node id; addresses are configuration. `log_id` is drawn at a log's first start and recorded
by every other voter when it first meets it, so that a voter which lost its disk is recognised: it comes
with another log id, and is told so instead of being counted. An empty log neither votes nor campaigns
until it is *admitted*: at a bootstrap by a majority of voters of which none has a cluster id, later by
more than half of the other voters having recorded its log id (any two such halves share a voter).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from ringrift_cluster.raft.errors import MembersContradict
from ringrift_cluster.raft.journal import Journal
from ringrift_cluster.raft.messages import Hello, Welcome

PROTOCOL = 1
#: names that were turned away and are remembered, beside the voters
MAX_REFUSED = 16
WELCOME = Welcome(reason="", detail="")


class Membership:
    """The static voter list and what is known of each voter's log."""

    def __init__(self, node_id: str, voters: Iterable[str], journal: Journal, log_id: str) -> None:
        """Raises MembersContradict when the journal was made for another node or voter list."""
        self.node_id = node_id
        self.voters = tuple(sorted(voters))
        self.others = tuple(v for v in self.voters if v != node_id)
        self.quorum = len(self.voters) // 2 + 1
        self._journal = journal
        #: others that accepted us on a connection of this process, and the cluster id they named
        self._accepted_by: dict[str, str] = {}
        #: why a voter was turned away last
        self.refused: dict[str, str] = {}
        #: the sentence of a voter that knows us by another log
        self.disowned: str | None = None
        stored_id, stored_voters = journal.fact("node_id"), journal.fact("voters")
        if stored_id and stored_id != node_id:
            raise MembersContradict(
                f"the data directory belongs to voter {stored_id}, but this node is {node_id}; "
                "use its own data directory"
            )
        if stored_voters and tuple(json.loads(stored_voters)) != self.voters:
            raise MembersContradict(
                f"the data directory knows the voters {', '.join(json.loads(stored_voters))}, but "
                f"{', '.join(self.voters)} are configured; start with the list it knows"
            )
        journal.set_fact("node_id", node_id)
        journal.set_fact("voters", json.dumps(self.voters))
        if not journal.fact("log_id"):
            journal.set_fact("log_id", log_id)
        #: other voters' log ids, and whether that log was ever seen admitted
        self._known: dict[str, list[str | bool]] = json.loads(journal.fact("known_logs") or "{}")
        self._consider_admission()

    @property
    def cluster_id(self) -> str:
        """Empty until the first leader's choice is committed and known here."""
        return self._journal.fact("cluster_id")

    @property
    def admitted(self) -> bool:
        """Whether this log may vote, campaign and acknowledge."""
        return self._journal.fact("admitted") == "1"

    def hello(self, nonce: bytes) -> Hello:
        """Our greeting for one connection."""
        return Hello(
            PROTOCOL,
            self.node_id,
            self.cluster_id,
            self._journal.fact("log_id"),
            self.admitted,
            list(self.voters),
            nonce,
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
            proven = hello.admitted or self._known.get(hello.node_id) == [hello.log_id, True]
            if self._known.get(hello.node_id) != [hello.log_id, proven]:
                self._known[hello.node_id] = [hello.log_id, proven]
                self._journal.set_fact("known_logs", json.dumps(self._known, sort_keys=True))
        return answer

    def _judge(self, hello: Hello) -> Welcome:
        peer = hello.node_id
        if hello.protocol != PROTOCOL:
            return Welcome("protocol", f"{self.node_id} speaks protocol {PROTOCOL}, {peer} {hello.protocol}")
        if peer == self.node_id or peer not in self.voters:
            return Welcome("not_a_voter", f"{peer} is not one of the other voters of {self.node_id}")
        if tuple(hello.voters) != self.voters:
            return Welcome(
                "other_voters",
                f"{self.node_id} is configured with the voters {', '.join(self.voters)}, "
                f"{peer} with {', '.join(hello.voters)}",
            )
        if hello.cluster_id and self.cluster_id and hello.cluster_id != self.cluster_id:
            return Welcome(
                "other_cluster",
                f"{self.node_id} belongs to cluster {self.cluster_id}, {peer} to {hello.cluster_id}",
            )
        log_id, proven = self._known.get(peer, [hello.log_id, False])
        # A log that was only ever seen waiting for admission gives way to the one that has it: of two logs of
        # one voter, at most one can be admitted.
        if log_id != hello.log_id and (proven or not hello.admitted):
            return Welcome(
                "other_log",
                f"{self.node_id} knows voter {peer} by another log: its disk was lost or replaced. "
                f"Restore the data directory of {peer}, or remove it from the cluster and add it again",
            )
        return WELCOME

    def answered(self, hello: Hello, answer: Welcome) -> None:
        """Take the peer's answer to our own greeting."""
        if answer.reason:
            self._accepted_by.pop(hello.node_id, None)
            self.refused[hello.node_id] = answer.detail
            if answer.reason == "other_log":
                self.disowned = answer.detail
            return
        self._accepted_by[hello.node_id] = hello.cluster_id
        self._consider_admission()

    def lost(self, peer: str) -> None:
        """A connection ended."""
        if not self.admitted:
            self._accepted_by.pop(peer, None)

    def _consider_admission(self) -> None:
        if self.admitted:
            return
        accepted = len(self._accepted_by)
        bootstrap = not any(self._accepted_by.values()) and accepted + 1 >= self.quorum
        recorded = accepted > len(self.others) / 2
        if bootstrap or recorded:
            self._journal.set_fact("admitted", "1")

    def learn_cluster_id(self, cluster_id: str) -> None:
        """Keep the id that the log committed."""
        self._journal.set_fact("cluster_id", cluster_id)
