"""Voters added and removed while clients write."""

from __future__ import annotations

import asyncio
import shutil
import time

import httpx

from tests.nemesis.faults import Stage
from tests.support.cluster import NodeProcess

#: a change of the voters that takes longer than this, repeats included, has failed
ORDER_S = 60.0


async def change_voters(stage: Stage) -> None:
    """A follower becomes a voter, a voter or the leader leaves, and comes back for the follower."""
    spares = stage.free([stage.cluster.nodes[name] for name in stage.cluster.spares])
    spares = [n for n in spares if n not in stage.voters]
    old = await stage.victim(leader=stage.rng.random() < 0.5)
    if not spares or old is None:
        return
    new = stage.rng.choice(spares)
    with stage.take(new, old), stage.mark("change-voters", f"+{new.name} -{old.name} +{old.name} -{new.name}"):
        for joins, leaves in ((new, old), (old, new)):
            if not (await _add(stage, joins) and await _remove(stage, leaves)):
                return
            await stage.pause(0.5, 2.0)


async def replace_wiped(stage: Stage) -> None:
    """A voter loses its disk for good: it is removed, comes back as an empty follower, and is made a voter again."""
    node = await stage.victim(leader=stage.rng.random() < 0.5)
    if node is None:
        return
    with stage.take(node), stage.mark("replace-wiped", node.name):
        node.kill()
        shutil.rmtree(node.folder)
        if not await _remove(stage, node):
            return
        # It no longer is one of the voters that its flags name.
        node.cluster = ",".join(part for part in node.cluster.split(",") if not part.startswith(f"{node.name}="))
        node.role = "follower"
        node.start()
        await stage.back(node)
        await _add(stage, node)


async def _add(stage: Stage, node: NodeProcess) -> bool:
    done = await _order(stage, "add", node)
    if done:
        stage.cluster.voting.append(node.name)
    return done


async def _remove(stage: Stage, node: NodeProcess) -> bool:
    done = await _order(stage, "remove", node)
    if done:
        stage.cluster.voting.remove(node.name)
    return done


async def _order(stage: Stage, what: str, node: NodeProcess) -> bool:
    """Send one change to whoever leads until it is answered well, always under one id."""
    body = {"node_id": node.name, "request_id": f"{what}-{node.name}-{stage.rng.randrange(1 << 40)}"}
    deadline = time.monotonic() + ORDER_S
    said = "no leader was found"
    while time.monotonic() < deadline:
        # The one that is on its way out may be the leader, and another fault may have it in hand.
        leader = await stage.leader(free_only=False)
        if leader is not None:
            try:
                answer = await stage.http.post(f"{leader.url}/admin/voters/{what}", json=body, timeout=30.0)
            except httpx.HTTPError as error:
                said = f"{leader.name}: {type(error).__name__}"
            else:
                if answer.status_code == 200 and (node.name in answer.json()["voters"]) == (what == "add"):
                    return True
                said = f"{leader.name}: {answer.status_code} {answer.text[:500]}"
        await asyncio.sleep(0.3)
    stage.broken.append(f"voters {what} {node.name} did not succeed within {ORDER_S:.0f} s; last answer: {said}")
    return False
