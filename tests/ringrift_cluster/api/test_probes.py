"""One node's question whether another one answers it."""

from __future__ import annotations

import httpx
import pytest

from ringrift_cluster.api.services import Services

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [(200, '{"node_id": "gpu-1"}', True), (200, '{"node_id": "gpu-2"}', False), (503, "{}", False), (200, "[", False)],
)
async def test_a_peer_answers_when_it_says_its_own_name_at_its_own_address(
    client: httpx.AsyncClient, services: Services, status: int, body: str, found: bool
) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(status, text=body)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        services.http = http
        said = await client.get("/probes/gpu-1")
    assert said.json() == {"peer": "gpu-1", "answers": found}
    assert asked == ["http://10.0.0.4:8770/health"]


async def test_nothing_is_dialled_for_a_peer_that_is_not_known(client: httpx.AsyncClient) -> None:
    assert (await client.get("/probes/nobody")).status_code == 404
