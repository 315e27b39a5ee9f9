"""A deploy in mid-season: for a while workers of two versions, of two script formats, stand side by
side behind one balancer. The version here is one; the next one is the same with another number."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.verify import verify
from tests.children import child
from tests.support import make_sale
from tests.web.intake import Client

ROOT = Path(__file__).parents[2]

_NEXT = """
from seckill import scripts
scripts.FORMAT += 1
expand = scripts.expand
def expand_next(name, root):
    text = expand(name, root)
    old = f"local FORMAT = {scripts.FORMAT - 1}"
    assert text.count(old) == 1
    return text.replace(old, f"local FORMAT = {scripts.FORMAT}")
scripts.expand = expand_next
"""
_PROGRAM = """
import sys
from seckill import Engine
from seckill.server import run
from tests.web.intake import trusting
engine = Engine(sys.argv[1], durability="memory")
run(engine, port=0, identify=trusting, on_ready=lambda address: print(address, flush=True))
"""


@asynccontextmanager
async def worker(
    url: str, session: aiohttp.ClientSession, prelude: str = ""
) -> AsyncIterator[Client]:
    async with child(
        *(sys.executable, "-c", prelude + _PROGRAM, url),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        yield Client(session, (await process.stdout.readline()).decode().strip())
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0


async def test_each_sale_is_sold_by_those_who_know_its_format(
    redis_server: EmbeddedServer,
) -> None:
    url = redis_server.url
    async with (
        aiohttp.ClientSession() as session,
        worker(url, session) as old,
        worker(url, session, _NEXT) as new,
        Engine(url, durability="memory", sweep_ms=0) as engine,
    ):
        running = make_sale({"a": 20})
        await engine.create(running)
        await engine.open(running.id)
        opens = make_sale({"a": 20})
        body = {
            "title": opens.title,
            "opens_at": opens.opens_at.isoformat(),
            "ends_at": opens.ends_at.isoformat(),
            "items": [{"sku": "a", "title": "A", "price_fen": 100, "total": 20}],
        }
        path = f"/v1/admin/sales/{opens.id}"
        assert (await new.call("PUT", path, json=body)).http == 201
        assert (await new.post(f"{path}:open", {})).http == 200

        for sale, knows, other in ((running.id, old, new), (opens.id, new, old)):
            refused = await other.reserve(sale, "early", "k1")
            assert refused.is_problem(503, "upgrade_needed")
            assert (await other.get(f"/v1/sales/{sale}")).is_problem(503, "upgrade_needed")
            assert (await knows.get(f"/v1/sales/{sale}")).http == 200
            answers: Counter[str] = Counter()

            async def buy(buyer: str, first: int, sale: str = sale) -> str:
                """As a client does: the identical request again while the answer is 503."""
                for client in list(cycle_from(old, new, first))[:6]:
                    answer = await client.reserve(sale, buyer, "k1")
                    if answer.http != 503:
                        return answer.code
                pytest.fail("no worker took the order")

            for _ in range(2):
                answers.update(await asyncio.gather(*(buy(f"b{n}", n) for n in range(40))))
            assert answers == {"created": 20, "exists": 20, "sold_out": 40}
        verdict = await verify(engine, running.id)
        assert verdict.ok, verdict.violations


def cycle_from(old: Client, new: Client, first: int) -> list[Client]:
    """The two in turn, beginning with one or the other."""
    pair = (old, new) if first % 2 else (new, old)
    turns = cycle(pair)
    return [next(turns) for _ in range(6)]
