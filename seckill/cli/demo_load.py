"""The demo's load process: lets the crowd loose, tells how far it is, and writes its books.

It says "ready"; then its orders come as one line of JSON on stdin, and later the word "finish";
stdout carries Progress lines. When stdin ends before that, the demo has died, and so does the load.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, time
from typing import Final

import aiohttp
import msgspec
import uvloop

from seckill.cli.demo_buyers import Crowd
from seckill.cli.demo_messages import Books, LoadOrders, Progress
from seckill.cli.demo_shop import CONNECTIONS_MAX, TIMEOUT_S, Shop

__all__ = ["main"]

VISITORS: Final = 200
REPORT_S: Final = 0.2
RECENT: Final = 2_000
# Of all buyers: those who come before the start, and those who come in the same second.
EARLY_SHARE: Final = 0.005
EARLY_MAX: Final = 100
RUSH_SHARE: Final = 0.60
# The others come in this time, so that what was abandoned meets new demand.
TAIL_S: Final = (3.0, 15.0)
TAIL_SMALL_S: Final = (1.0, 3.0)
SMALL: Final = 5_000


class _Load:
    def __init__(self, orders: LoadOrders, session: aiohttp.ClientSession) -> None:
        self._orders = orders
        self._shop = Shop(session, orders)
        self._crowd = Crowd(self._shop, orders)
        self._arrivals = self._schedule()
        self._arrived = 0
        self._finish = asyncio.Event()

    def _schedule(self) -> Iterator[tuple[int, float, bool]]:
        """Each buyer's number, the time of arrival, and whether that is before the start."""
        buyers, opens_s = self._orders.buyers, self._orders.opens_ms / 1000
        early, rush = min(EARLY_MAX, int(buyers * EARLY_SHARE)), int(buyers * RUSH_SHARE)
        begin_s, end_s = TAIL_S if buyers > SMALL else TAIL_SMALL_S
        for number in range(buyers):
            if number < early:
                yield number, opens_s - 0.4 * (1 - number / early), True
            elif number < rush:
                yield number, opens_s, False
            else:
                share = (number - rush) / (buyers - rush)
                yield number, opens_s + begin_s + (end_s - begin_s) * share, False

    async def run(self) -> Books:
        """Everything from the first visit to the last look."""
        listening = asyncio.ensure_future(self._listen())
        reporting = asyncio.ensure_future(self._report())
        began_s = monotonic()
        await asyncio.gather(*(self._visitor() for _ in range(VISITORS)))
        self._crowd.settling = True
        await self._finish.wait()
        await self._crowd.finish()
        seconds = monotonic() - began_s
        probes = await self._crowd.probe()
        await self._audit()
        listening.cancel()
        reporting.cancel()
        return self._books(probes, seconds)

    async def _visitor(self) -> None:
        """One of the connections' worth of buyers: takes the next arrival whenever it is free."""
        for number, due_s, early in self._arrivals:
            if (wait_s := due_s - time()) > 0:
                await asyncio.sleep(wait_s)
            if self._finish.is_set():
                return
            self._arrived += 1
            await self._crowd.visit(number, early=early)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if line.strip() == b"finish":
                self._finish.set()
        os._exit(3)

    async def _report(self) -> None:
        while True:
            shop, crowd = self._shop, self._crowd
            recent = sorted(shop.decided_s[-RECENT:])
            progress = Progress(
                at_s=monotonic(),
                arrived=self._arrived,
                requests=shop.requests,
                decided=len(shop.decided_s),
                accepted=len(shop.receipts),
                refused=dict(shop.refused),
                paid=crowd.paid,
                p50_ms=_at(recent, 0.50),
                p99_ms=_at(recent, 0.99),
                waiting=dict(crowd.waiting),
                busy=crowd.busy,
                broken=len(shop.broken),
                arrivals_done=crowd.settling,
            )
            sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
            sys.stdout.flush()
            await asyncio.sleep(REPORT_S)

    async def _audit(self) -> None:
        """Every buyer looks at every order once more: is it what they were told?"""
        receipts = iter(list(self._shop.receipts.values()))

        async def look() -> None:
            for receipt in receipts:
                order = await self._shop.look(receipt)
                if order is None:
                    problem = "is not known any more"
                elif order.state not in receipt.states:
                    problem = f"is {order.state}, not {' or '.join(receipt.states)}"
                elif receipt.paid and order.payments[:1] != (receipt.paid,):
                    problem = f"is not paid by {receipt.paid}"
                elif not set(receipt.due_back) <= set(order.payments):
                    problem = f"has forgotten a payment of {receipt.due_back}"
                else:
                    continue
                self._shop.broken.append(("lost", f"order {receipt.order} {problem}"))

        await asyncio.gather(*(look() for _ in range(50)))

    def _books(self, probes: dict[str, str], seconds: float) -> Books:
        shop = self._shop
        times = sorted(shop.decided_s)
        return Books(
            receipts=list(shop.receipts.values()),
            refused=dict(shop.refused),
            mischief=shop.mischief,
            broken=shop.broken[:100],
            hung_up=sorted(shop.hung_up),
            unanswered=shop.unanswered,
            probes=probes,
            retried=dict(shop.retried),
            buyers=self._arrived,
            requests=shop.requests,
            decided=len(times),
            seconds=seconds,
            p50_ms=_at(times, 0.50),
            p90_ms=_at(times, 0.90),
            p99_ms=_at(times, 0.99),
            max_ms=_at(times, 1.0),
        )


def _at(times: list[float], share: float) -> float:
    """A percentile of sorted seconds, in milliseconds."""
    return round(times[int((len(times) - 1) * share)] * 1000, 2) if times else 0.0


async def _main(orders: LoadOrders) -> None:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        books = await _Load(orders, session).run()
    Path(orders.books).write_bytes(msgspec.json.encode(books))  # noqa: ASYNC240 - the last thing done


def main() -> None:
    """Runs the load that the first line of stdin orders."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    orders = msgspec.json.decode(sys.stdin.readline(), type=LoadOrders)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(orders))


if __name__ == "__main__":
    main()
