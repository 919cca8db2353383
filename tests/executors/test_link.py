"""One connection to a host: who is trusted, and what its far end answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from executors.drivers.link import Declined, Door, Link, Unreachable
from tests.executors.hosts import door, run
from tests.support.sshd import Sshd


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d, s: replace(d, host_key=(s.directory / "authorized").read_text()), "host key is not the one"),
        (lambda d, s: replace(d, host_key="", known_hosts=s.directory / "known"), "host key is not in"),
        (lambda d, s: replace(d, key_file=s.directory / "host"), "ermission denied"),
        (lambda d, s: replace(d, key_file=s.directory / "authorized"), "others can read"),
        (lambda d, s: replace(d, key_file=s.directory / "nothing"), "cannot be read"),
        (lambda d, s: replace(d, python="/no/python"), "did not start the outpost"),
        (lambda d, s: replace(d, port=1), "refused|failed"),
    ],
)
def test_a_host_that_cannot_be_trusted_or_used_is_unreachable_with_the_reason(
    server: Sshd, tmp_path: Path, change: Callable[[Door, Sshd], Door], sentence: str
) -> None:
    (server.directory / "known").write_text("")
    (server.directory / "authorized").chmod(0o644)

    async def go() -> None:
        with pytest.raises(Unreachable, match=sentence):
            await Link.open(change(door(server, tmp_path), server))

    run(go)


def test_a_host_key_of_the_known_hosts_file_is_taken(server: Sshd, tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")

    async def go() -> None:
        link = await Link.open(replace(door(server, tmp_path), host_key="", known_hosts=known))
        assert (await link.call("hello"))["boot_id"]
        with pytest.raises(Declined, match="nothing"):
            await link.call("nothing")
        await link.close()
        with pytest.raises(Unreachable, match="closed"):
            await link.call("hello")

    run(go)


def test_an_agent_that_lost_the_host_to_another_starts_nothing_there(server: Sshd, tmp_path: Path) -> None:
    async def go() -> None:
        old, new = await Link.open(door(server, tmp_path)), await Link.open(door(server, tmp_path))
        await old.call("claim", incarnation=1, held=[])
        await new.call("claim", incarnation=2, held=[])
        order = {"argv": ["true"], "env": {}, "cwd": "/", "nice": 0, "grace_s": 1, "margin_s": 1, "max_log_bytes": 9}
        with pytest.raises(Declined, match="another agent has this host now"):
            await old.call("start", name="w1-1", order=order, lease=1e12)
        with pytest.raises(Declined, match="newer than 1"):
            await old.call("claim", incarnation=1, held=[])
        await old.close()
        await new.close()

    run(go)
