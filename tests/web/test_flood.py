"""Ten thousand random requests, twice: every one is answered, none with a 5xx that is not meant,
and the second time takes no more memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from seckill.embedded import EmbeddedServer
from tests.children import child

pytestmark = pytest.mark.slow

REQUESTS = 10_000
AT_ONCE = 32
# A flood that left one object with every tenth request would leave as many blocks.
BLOCKS_MAX = 1_000
KB_MAX = 3_072

PROGRAM = """
import asyncio, gc, signal, sys
import uvloop
from aiohttp import web
from seckill import Engine
from seckill.server import create_app
from tests.support import make_sale
from tests.web.intake import trusting

def memory():
    gc.collect()
    with open("/proc/self/status") as status:
        rss_kb = next(line.split()[1] for line in status if line.startswith("VmRSS"))
    print(sys.getallocatedblocks(), rss_kb, flush=True)

async def main():
    engine = Engine(sys.argv[1], durability="memory", sweep_ms=0)
    async with engine:
        await engine.create(make_sale({"a": 100_000}, id="flood"))
        await engine.open("flood")
        # A connection whose body was refused unread lingers, and would count as memory.
        app = create_app(engine, identify=trusting)
        runner = web.AppRunner(app, access_log=None, lingering_time=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, memory)
        print(site.name, flush=True)
        await asyncio.Event().wait()

uvloop.run(main())
"""


class Target:
    """An intake in a process of its own, which tells its memory when asked."""

    def __init__(self, child: asyncio.subprocess.Process, base: str) -> None:
        self.child = child
        self.base = base

    async def memory(self) -> tuple[int, int]:
        """Blocks that Python holds after a collection, and the resident kilobytes."""
        assert self.child.stdout is not None
        self.child.send_signal(signal.SIGUSR1)
        blocks, kb = (await asyncio.wait_for(self.child.stdout.readline(), 60)).split()
        return int(blocks), int(kb)


@asynccontextmanager
async def target_on(url: str) -> AsyncIterator[Target]:
    async with child(
        *(sys.executable, "-c", PROGRAM, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109 - a plain string
    ) as process:
        assert process.stdout is not None
        base = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        yield Target(process, base)
        process.kill()
        _, stderr = await process.communicate()
        assert stderr == b"", stderr.decode()[-4_000:]


GOOD: list[tuple[str, Any]] = [
    ("orders", {"items": [{"sku": "a", "quantity": 1}], "attrs": "addr=1"}),
    (
        "orders:batch",
        {"orders": [{"buyer": "b", "key": "k", "items": [{"sku": "a", "quantity": 1}]}]},
    ),
    ("orders/00ffffffffffffffffffffff/confirm", {"payment": "p"}),
    (
        "orders/00ffffffffffffffffffffff/refund",
        {"refund": "r", "return_units": True, "return_limit": True},
    ),
]
TEXTS = ["", "a", "b" * 64, "地" * 200, "\u202e", "x" * 70_000, "'; DROP TABLE", "..%2f", "\0"]
VALUES: list[Any] = [None, True, 0, -1, 10**30, 1.5, [], {}, [[[]]], *TEXTS]


def mutated(value: Any, chance: random.Random) -> Any:
    """The same with a part replaced, dropped or doubled."""
    if chance.random() < 0.2:
        return chance.choice(VALUES)
    if isinstance(value, dict):
        found = {name: mutated(part, chance) for name, part in value.items()}
        if found and chance.random() < 0.2:
            found.pop(chance.choice(list(found)))
        if chance.random() < 0.2:
            found[chance.choice(TEXTS)] = chance.choice(VALUES)
        return found
    if isinstance(value, list):
        return [mutated(part, chance) for part in value * chance.choice([0, 1, 1, 1, 2, 60])]
    return value


def body_of(good: Any, chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.choice([0, 1, 10, 1_000, 70_000]))
    value = good if kind == 3 else mutated(good, chance)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode()
    if kind == 1 and text:
        at = chance.randrange(len(text))
        text = text[:at] + chance.randbytes(chance.randrange(4)) + text[at + chance.randrange(3) :]
    return text


def request_of(number: int) -> tuple[str, str, bytes, dict[str, str]]:
    chance = random.Random(number)
    path, good = chance.choice(GOOD)
    where = chance.choice(["flood"] * 8 + ["none", "n%00ne", "%2e%2e", "x" * 2_000])
    method = chance.choice(["POST"] * 9 + ["PUT"])
    headers = {
        "Content-Type": chance.choice(
            ["application/json"] * 9 + ["text/plain", "multipart/x", "é"]
        ),
        "Idempotency-Key": chance.choice([f"k{number}"] * 6 + ["", "a b", "k" * 5_000]),
        "Seckill-Buyer": chance.choice([f"b{number % 500}"] * 6 + ["b|", "地", "b" * 100]),
        "Authorization": chance.choice(["", "Bearer x", f"Bearer {'y' * 6_000}", "Basic eDp5"]),
    }
    if not path.endswith("orders"):
        del headers["Seckill-Buyer"]
    if method == "PUT":
        return method, f"/v1/admin/sales/{where}", body_of({"title": "x"}, chance), headers
    return method, f"/v1/sales/{where}/{path}", body_of(good, chance), headers


async def flood(target: Target) -> Counter[int]:
    """Sends all of them, and counts what they are answered."""
    seen: Counter[int] = Counter()
    numbers = iter(range(REQUESTS))
    limits = aiohttp.ClientTimeout(total=60)

    async def send(session: aiohttp.ClientSession, number: int) -> tuple[int, bytes]:
        method, path, body, headers = request_of(number)
        url = target.base + path
        # As a file, because aiohttp warns of large bodies that are none.
        data = BytesIO(body)
        async with session.request(method, url, data=data, headers=headers) as response:
            return response.status, await response.read()

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            try:
                status, answer = await send(session, number)
            except aiohttp.ClientConnectionError:
                # A body that was refused is read for a second, and a busy machine may take longer
                # to send it: then the connection is cut.
                status, answer = await send(session, number)
            seen[status] += 1
            assert status < 500 or status == 503, (number, answer)
            assert b"Traceback" not in answer

    async with aiohttp.ClientSession(timeout=limits) as session:
        await asyncio.gather(*(client(session) for _ in range(AT_ONCE)))
    return seen


@pytest.mark.timeout(300)
async def test_a_flood_changes_nothing(redis_server: EmbeddedServer) -> None:
    async with target_on(redis_server.url) as target:
        first = await flood(target)
        await asyncio.sleep(2)
        before = await target.memory()
        second = await flood(target)
        # What was created the first time exists the second time; all else is answered the same.
        assert first[200] + first[201] == second[200] + second[201]
        assert {code: n for code, n in first.items() if code > 201} == {
            code: n for code, n in second.items() if code > 201
        }
        assert first[201] > 50
        assert set(first) >= {200, 201, 400, 404, 413, 415}
        for _ in range(30):
            after = await target.memory()
            if after[0] < before[0] + BLOCKS_MAX and after[1] < before[1] + KB_MAX:
                return
            await asyncio.sleep(0.5)
        pytest.fail(f"blocks and kB: {before} after the first flood, {after} after the second")
