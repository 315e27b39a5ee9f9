"""Sockets through nginx as deploy/ has it, to workers as `seckill serve` starts them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import jwt
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from tests.packaging.test_deploy import SECRET, folder, mall
from tests.support import make_sale
from tests.web.socket_site import ITEMS, Talk

__all__ = ["folder"]

pytestmark = pytest.mark.slow


async def test_a_socket_through_nginx(
    folder: Path,
    redis_server: EmbeddedServer,
) -> None:
    proof = jwt.encode({"sub": "ann", "aud": "seckill", "exp": int(time.time()) + 600}, SECRET)
    sale = make_sale({"a": 10})
    async with Engine(redis_server.url, durability="memory", sweep_ms=0) as engine:
        await engine.create(sale)
        await engine.open(sale.id)
    async with mall(folder, SECKILL_SERVER__DRAIN_S="2") as site:
        url = f"{site.base}/v1/sales/{sale.id}/socket"
        headers = {"Authorization": f"Bearer {proof}", "Origin": "https://127.0.0.1"}
        async with site.session.ws_connect(url, headers=headers) as opened:
            talk = Talk(opened)
            assert await talk.code("buy", key="k", items=ITEMS) == (201, "created")
            assert await talk.code("watch") == (200, "done")
            assert (await talk.hear())["items"][0]["available"] == 9
            # Both intakes end; the client is told so.
            ending = asyncio.gather(*(intake.stop() for intake in site.intakes))
            assert await talk.ended() == 1001
            await ending
        async with site.session.get(url, headers=headers) as response:
            assert response.status == 503
            assert (await response.json(content_type=None))["code"] == "outcome_unknown"
