"""The load of the crash tests, a process: its arguments are those of ``main``.

Buys as fast as it can, each time as another buyer, asks again under the same key whatever was left
open, and pays for or gives up some of the orders. Logs a JSON line before each call and one after
its answer. Ends, with every call answered, when its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Any

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, Overloaded, RedisUnavailable
from seckill.order import Outcome, order_id
from seckill.redis import Durability
from seckill.status import Status
from tests.faults.sales import SKUS

# Half of the callers give up during an outage, so that their calls are left open by it; the others
# outlast it, so that their batches are sent again.
HASTY_MS = 150
PATIENT_MS = 10_000
RETRY_S = 0.02


class Load:
    """Any number of callers with one log."""

    def __init__(self, sale: str, log: int, seed: int) -> None:
        self._sale = sale
        self._log = log
        self._random = random.Random(seed)
        self._numbers = count(1)
        self.stopping = False

    def _write(self, entry: dict[str, Any]) -> None:
        # Unbuffered: the line is there before the call is, whatever happens next.
        os.write(self._log, json.dumps(entry).encode() + b"\n")

    async def call(
        self, verb: str, order: str, attempt: Callable[[], Awaitable[Outcome]]
    ) -> Status:
        """The same call again and again, until it has an answer."""
        while True:
            number = next(self._numbers)
            self._write({"n": number, "op": verb, "order": order})
            status = None
            try:
                status = (await attempt()).status
                answer = status.name
            except (OutcomeUnknown, Overloaded, RedisUnavailable) as error:
                answer = type(error).__name__
            self._write({"n": number, "answer": answer})
            if status is not None and status is not Status.TOO_LATE:
                return status
            await asyncio.sleep(RETRY_S)

    async def shop(self, engine: Engine, name: int) -> None:
        """Buys until it is told to stop."""
        sale = self._sale
        for number in count():
            if self.stopping:
                return
            buyer = f"{name}-{number}"
            sku = SKUS[self._random.random() < 0.2]
            order = order_id(sale, buyer, "k")

            reserve = partial(engine.reserve, sale, buyer, "k", {sku: 1})
            # A double click now and then, and a blind retry of what was answered long ago.
            clicks = 2 if self._random.random() < 0.1 else 1
            statuses = await asyncio.gather(
                *(self.call("reserve", order, reserve) for _ in range(clicks))
            )
            if not all(status.ok for status in statuses):
                continue
            what_next = self._random.random()
            if what_next < 0.15:
                await self.call("confirm", order, partial(engine.confirm, sale, order, "p"))
            elif what_next < 0.3:
                await self.call("release", order, partial(engine.release, sale, order))
            elif what_next < 0.35:
                await self.call("reserve", order, reserve)


async def main(
    url: str, sale: str, log: str, seed: str, callers: str, durability: Durability
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    async with (
        Engine(url, durability=durability, timeout_ms=HASTY_MS) as hasty,
        Engine(url, durability=durability, timeout_ms=PATIENT_MS) as patient,
    ):
        load = Load(sale, descriptor, int(seed))
        shoppers = [
            asyncio.ensure_future(load.shop((hasty, patient)[name % 2], name))
            for name in range(int(callers))
        ]
        # Not in a thread, for which a process that fails would have to wait.
        stdin = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
        )
        told = asyncio.ensure_future(stdin.read())
        # A shopper ends before it is told to only by an exception, which then ends all of us.
        await asyncio.wait({told, *shoppers}, return_when=asyncio.FIRST_COMPLETED)
        load.stopping = True
        await asyncio.gather(*shoppers)


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    asyncio.run(main(*arguments))
