"""What a frame from one node to another meets: nothing, loss, delay, or a cut. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

#: (from, to): each direction has its own rule
Link = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """`loss` is the share of frames dropped; 1 is a cut. Delays may reorder frames.

    Where it is `shut`, no connection can be begun in this direction, as with NAT; those of the other one work.
    """

    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    shut: bool = False

    def over(self, other: Rule) -> Rule:
        """Both at once."""
        loss = 1 - (1 - self.loss) * (1 - other.loss)
        delay_ms, jitter_ms = self.delay_ms + other.delay_ms, self.jitter_ms + other.jitter_ms
        return Rule(loss, delay_ms, jitter_ms, self.shut or other.shut)


CUT = Rule(loss=1.0)
SHUT = Rule(shut=True)
Rules = Mapping[Link, Rule]


def between(one: Iterable[str], other: Iterable[str], rule: Rule = CUT) -> dict[Link, Rule]:
    """Both directions between two groups."""
    others = list(other)
    return {link: rule for a in one for b in others if a != b for link in ((a, b), (b, a))}


def towards(source: Iterable[str], target: Iterable[str], rule: Rule = CUT) -> dict[Link, Rule]:
    """One direction only."""
    targets = list(target)
    return {(a, b): rule for a in source for b in targets if a != b}


def merged(layers: Iterable[Rules]) -> dict[Link, Rule]:
    """Several faults at one time."""
    together: dict[Link, Rule] = {}
    for layer in layers:
        for link, rule in layer.items():
            together[link] = rule.over(together.get(link, Rule()))
    return together


def encode(rules: Rules) -> str:
    """One line for the switch."""
    return json.dumps([[*link, asdict(rule)] for link, rule in rules.items()])


def decode(line: str) -> dict[Link, Rule]:
    return {(a, b): Rule(**rule) for a, b, rule in json.loads(line)}


def begins_connection(frame: bytes) -> bool:
    """Whether an Ethernet frame asks for a new TCP connection over IPv4."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return False
    flags = frame[14 + 4 * (frame[14] & 0x0F) + 13]
    syn, ack = 0x02, 0x10
    return flags & (syn | ack) == syn
