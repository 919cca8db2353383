"""What the client decides, driven step by step: no sockets, no clock but the test's."""

from __future__ import annotations

import inspect
import json
import random
from typing import Any

import pytest

from ringrift_cluster.api.items import NewWork
from ringrift_cluster.client import (
    AsyncClient,
    Client,
    Conflict,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Unavailable,
    Unreachable,
    flows,
    streams,
)
from ringrift_cluster.client.session import Session
from ringrift_cluster.client.steps import Answer, Emit, Failed, Next, Open, Pause, Send

LEADER = {"leader_id": "b", "address": "http://b:8770", "term": 3, "node_id": "a", "is_leader": False}
ADDED = {"status": "added", "work_id": "w", "work_type": "x", "priority": 50}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Play:
    """Runs a flow against a script: what each address answers, in turn; pauses move the clock."""

    def __init__(self, addresses: str = "a:8770,c:8770", **options: Any) -> None:
        self.clock = Clock()
        numbers = iter(range(1000))
        self.session = Session(
            addresses, clock=self.clock, rng=random.Random(1), new_id=lambda: f"id{next(numbers)}", **options
        )
        self.answers: dict[str, list[Answer | Failed]] = {}
        self.sent: list[Send] = []
        self.emitted: list[Any] = []
        self.chunks: list[bytes | Failed | None] = []

    def given(self, host: str, *answers: Answer | Failed) -> Play:
        self.answers.setdefault(host, []).extend(answers)
        return self

    def run(self, flow: Any) -> Any:
        reply: Any = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as done:
                return done.value
            match step:
                case Send() | Open():
                    request = step.request if isinstance(step, Open) else step
                    reply = self._answer(request)
                case Pause(seconds):
                    self.clock.now += seconds
                    reply = None
                case Emit(value):
                    self.emitted.append(value)
                    reply = None
                case Next():
                    reply = self.chunks.pop(0)

    def _answer(self, request: Send) -> Answer | Failed:
        self.sent.append(request)
        host = request.url.split("/")[2]
        script = self.answers.get(host, [])
        if not script:
            return refused()
        return script.pop(0) if len(script) > 1 else script[0]

    @property
    def targets(self) -> list[str]:
        return [f"{s.method} {s.url.removeprefix('http://')}" for s in self.sent]


def ok(value: object) -> Answer:
    return Answer(200, {}, json.dumps(value).encode())


def problem(status: int, code: str, leader: str = "", retry_after: str = "") -> Answer:
    document: dict[str, Any] = {"type": "x", "title": "t", "status": status, "code": code, "detail": f"because {code}"}
    if leader:
        document["leader"] = {"node_id": "l", "address": leader}
    return Answer(status, {"retry-after": retry_after} if retry_after else {}, json.dumps(document).encode())


def refused() -> Failed:
    return Failed("refused", sent=False)


def test_a_read_goes_to_the_first_address_and_stays_there() -> None:
    play = Play().given("a:8770", ok(LEADER))
    play.run(flows.leader(play.session))
    play.run(flows.leader(play.session))
    assert play.targets == ["GET a:8770/election/leader"] * 2


def test_a_dead_address_is_left_for_the_next_one() -> None:
    play = Play().given("c:8770", ok(LEADER))
    assert play.run(flows.leader(play.session)).leader_id == "b"
    play.run(flows.leader(play.session))
    assert play.targets == [f"GET {host}/election/leader" for host in ("a:8770", "c:8770", "c:8770")]


def test_a_write_finds_the_leader_once_and_goes_there() -> None:
    play = Play().given("a:8770", ok(LEADER)).given("b:8770", ok(ADDED))
    for name in ("w1", "w2"):
        play.run(flows.work_add(play.session, NewWork(work_type="x", work_id=name)))
    assert play.targets == ["GET a:8770/election/leader", "POST b:8770/work/add", "POST b:8770/work/add"]


def test_a_hint_in_a_problem_leads_to_the_new_leader() -> None:
    play = Play().given("a:8770", ok(LEADER)).given("b:8770", problem(503, "no_leader", leader="http://n:8770"))
    play.given("n:8770", ok(ADDED))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    assert play.targets[-1] == "POST n:8770/work/add"


def test_a_hint_that_is_no_address_is_passed_over() -> None:
    play = Play("a:8770").given("a:8770", ok(LEADER | {"address": None}))
    play.given("a:8770", problem(503, "no_leader", leader="http://[oops"), ok(ADDED))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    assert play.targets[-1] == "POST a:8770/work/add"


def test_no_hint_leads_a_client_away_from_tls() -> None:
    play = Play("https://a:8770")
    play.given("a:8770", ok(LEADER), problem(503, "no_leader", leader="http://n:8770"), ok(ADDED))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    assert {target.split()[1].split("/")[2] for target in play.targets} == {"a:8770"}


def test_a_leader_that_cannot_be_reached_from_here_is_done_without() -> None:
    play = Play().given("a:8770", ok(LEADER), ok(ADDED), ok(ADDED))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    assert play.targets == [
        "GET a:8770/election/leader",
        "POST b:8770/work/add",
        "POST a:8770/work/add",
        "POST a:8770/work/add",
    ]


def test_a_leader_that_moved_is_found_among_the_addresses() -> None:
    """Nodes still name its old address, and what is asked for only the leader does."""
    moved = problem(503, "no_leader", leader="http://b:8770")
    play = Play().given("a:8770", ok(LEADER), moved, moved).given("c:8770", ok({"voters": ["l"], "index": 7}))
    play.run(flows.add_voter(play.session, "l"))
    assert play.targets[-1] == "POST c:8770/admin/voters/add"


def test_an_unknown_outcome_is_repeated_under_the_same_ids() -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), Failed("cut", sent=True))
    play.given("a:8770", problem(504, "outcome_unknown"), ok({"result": True, "index": 7}))
    assert play.run(flows.drain(play.session, "gpu-1")).index == 7
    writes = [s for s in play.sent if s.method == "POST"]
    assert len(writes) == 3
    assert len({s.headers["request-id"] for s in writes}) == 1
    assert len({s.body for s in writes}) == 1


@pytest.mark.parametrize("last", [Failed("cut", sent=True), problem(504, "outcome_unknown")])
def test_an_outcome_that_stays_unknown_is_said_to_be_so(last: Answer | Failed) -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), last)
    with pytest.raises(OutcomeUnknown):
        play.run(flows.work_cancel(play.session, "w"))
    assert play.clock.now > 20


def test_once_a_write_may_have_arrived_a_later_refused_connection_does_not_make_it_certain() -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), Failed("cut", sent=True), refused())
    with pytest.raises(OutcomeUnknown):
        play.run(flows.work_cancel(play.session, "w"))


def test_what_certainly_did_not_happen_is_not_called_unknown() -> None:
    play = Play("a:8770", retry_s=5).given("a:8770", ok({**LEADER, "address": None}), problem(503, "no_leader"))
    with pytest.raises(Unavailable, match="because no_leader"):
        play.run(flows.work_cancel(play.session, "w"))
    nobody = Play(contact_s=1)
    with pytest.raises(Unreachable, match="cannot be reached: refused"):
        nobody.run(flows.status(nobody.session))
    assert nobody.clock.now <= 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", NotFound),
        (409, "stale_fence", Conflict),
        (400, "invalid", Invalid),
        (413, "too_large", Invalid),
        (412, "insufficient_evidence", Conflict),
    ],
)
def test_a_refusal_is_raised_at_once_with_its_problem(status: int, code: str, kind: type[Exception]) -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), problem(status, code))
    with pytest.raises(kind) as caught:
        play.run(flows.work_cancel(play.session, "w"))
    assert (caught.value.code, caught.value.problem.status) == (code, status)  # type: ignore[attr-defined]
    assert len(play.sent) == 2


def test_retry_after_is_respected() -> None:
    play = Play("a:8770").given("a:8770", problem(429, "busy", retry_after="1"), ok(LEADER))
    play.run(flows.leader(play.session))
    assert 0.5 <= play.clock.now <= 1.0


def test_pauses_grow_and_stay_bounded() -> None:
    play = Play("a:8770", retry_s=60).given("a:8770", problem(503, "no_leader"))
    with pytest.raises(Unavailable):
        play.run(flows.leader(play.session))
    assert 30 < len(play.sent) < 80


def test_a_read_after_a_write_is_not_older_than_the_write() -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}))
    play.given("a:8770", Answer(200, {"ringrift-index": "41"}, json.dumps(ADDED).encode()), problem(404, "not_found"))
    play.run(flows.work_add(play.session, NewWork(work_type="x", work_id="w")))
    with pytest.raises(NotFound):
        play.run(flows.work(play.session, "w"))
    assert play.sent[-1].params == {"index": "41", "wait": "5.0"}


def test_an_item_without_an_id_gets_one_before_it_is_sent() -> None:
    play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), Failed("cut", sent=True), ok(ADDED))
    play.run(flows.work_add(play.session, NewWork(work_type="x")))
    bodies = [json.loads(s.body or b"")["work_id"] for s in play.sent if s.method == "POST"]
    assert bodies[0].startswith("x-id")
    assert len(set(bodies)) == 1


def test_a_transfer_and_a_shutdown_are_never_repeated() -> None:
    for flow in (flows.transfer_leadership, flows.shutdown):
        play = Play("a:8770").given("a:8770", ok({**LEADER, "address": None}), Failed("cut", sent=True))
        if flow is flows.shutdown:
            play.answers["a:8770"].pop(0)
        with pytest.raises((OutcomeUnknown, Unreachable)):
            play.run(flow(play.session))
        assert [s.method for s in play.sent].count("POST") == 1


def test_an_answer_of_another_release_is_an_error_and_no_crash() -> None:
    play = Play("a:8770").given("a:8770", ok({"leader_id": 7}))
    with pytest.raises(Exception, match="not understood"):
        play.run(flows.leader(play.session))


def test_an_event_stream_that_breaks_is_resumed_after_the_last_event() -> None:
    def event(seq: int) -> bytes:
        return json.dumps({"seq": seq, "index": seq, "at_ms": 0, "kind": "K", "key": "k"}).encode() + b"\n"

    play = Play("a:8770,c:8770").given("a:8770", Answer(200, {}, b"")).given("c:8770", Answer(200, {}, b""))
    first, second = event(5), event(6)
    play.chunks = [first + second[:7], second[7:] + b"\n" + event(7)[:9], Failed("cut", sent=True), event(7)]
    flow = streams.events(play.session, since=4, follow=True)
    with pytest.raises(IndexError):
        play.run(flow)
    assert [e.seq for e in play.emitted] == [5, 6, 7]
    assert [s.params["since"] for s in play.sent] == ["4", "6"]


def test_a_followed_log_that_breaks_goes_on_where_it_was() -> None:
    play = Play("a:8770").given("a:8770", Answer(200, {}, b""))
    play.chunks = [b"one\ntw", Failed("cut", sent=True), b"o\n", None]
    play.run(streams.job_log(play.session, "j", follow=True))
    assert b"".join(play.emitted) == b"one\ntwo\n"
    assert [s.params.get("offset") for s in play.sent] == [None, "6"]


def test_addresses_are_taken_as_people_write_them() -> None:
    session = Session(["a:1, b:2/", "https://c:3/"])
    assert session._addresses == ["http://a:1", "http://b:2", "https://c:3"]
    for odd in ("::::", "a:99999", "a b:80", "http://", "ftp://a:8770", "http://[::1", "a:0"):
        with pytest.raises(ValueError, match="is no address; give a URL or host:port"):
            Session(f"b:8770,{odd}")
    with pytest.raises(ValueError, match="at least one address"):
        Session("")


def test_both_clients_offer_every_flow_under_the_same_name() -> None:
    names = {
        name
        for module in (flows, streams)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(names) > 30
    for client in (Client, AsyncClient):
        missing = {name for name in names if not callable(getattr(client, name, None))}
        assert missing == set()
