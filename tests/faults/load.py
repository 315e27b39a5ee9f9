"""The load of the fault tests: any number of processes, each with a log of its own.

    python -m tests.faults.load URL SALE LOG SEED CALLERS DURABILITY [--pace-ms N] [--calls-max N]

Every caller buys carts of one to three SKUs, as buyers of its own (a few wishes each, so that
limits count) and now and then as one whom all processes share. It asks again under the same key
whatever was left open, or looks the order up; asks again what was answered long ago; pays at once,
by way of begin_payment, late, or twice; releases, refunds, lets lapse; and some add stock. What a
wish asks for is computed from its name, so that whoever repeats it asks for the same.

Logs a JSON line before each call and one after its answer (history.py); a SIGKILL loses no line
that was written. Ends with every call answered when its stdin ends, and then waits for nobody who
does not answer for longer than LAST_S. The seed decides what each caller does next, as far as the
answers are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from seckill.engine import Engine
from seckill.errors import (
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    ScriptFailed,
    ServerFull,
    UnknownSale,
)
from seckill.order import Order, Outcome, StockOutcome, order_id
from seckill.sale import Sale
from seckill.status import Status

# Half of the callers give up during an outage, so that their calls are left open by it; the others
# outlast it, so that their batches are sent again.
HASTY_MS = 150
PATIENT_MS = 10_000
RETRY_S = 0.02
LAST_S = 20.0
PATIENCE_S = 60.0
# Of how many a buyer's wishes are, and how many wishes all processes have in common.
WISHES_A_BUYER = 3
SHARED_BUYERS = 40
SHARED_KEYS = 3
# Nobody waits longer than this for an order to lapse.
LAPSE_MAX_MS = 5_000

FAILURES = (OutcomeUnknown, Overloaded, RedisUnavailable, ScriptFailed, ServerFull)
Answer = Outcome | StockOutcome | Order | None
T = TypeVar("T")


class Wish(msgspec.Struct, frozen=True):
    """What a buyer asks for under a key."""

    order: str
    buyer: str
    key: str
    items: dict[str, int]


def wish_of(sale: Sale, buyer: str, key: str) -> Wish:
    """The wish of that name. The first SKU, of which there is plenty, is in most carts."""
    rng = random.Random(f"{sale.id} {buyer} {key}")
    skus = [item.sku for item in sale.items]
    lines = rng.choices((1, 2, 3), (80, 15, 5))[0]
    weights = [8, *(2 for _ in skus[1:])]
    items = {sku: rng.choices((1, 2), (5, 1))[0] for sku in rng.choices(skus, weights, k=lines)}
    return Wish(order_id(sale.id, buyer, key), buyer, key, items)


class Load:
    """Any number of callers with one log."""

    def __init__(self, sale: Sale, log: int, name: str, *, pace_ms: int, calls_max: int) -> None:
        self._sale = sale
        self._log = log
        self._name = name
        self._pace_s = pace_ms / 1000
        self._calls_max = calls_max
        self._numbers = count(1)
        self._calls = 0
        self._stopped_s = 0.0
        self.stopping = asyncio.Event()

    def stop(self) -> None:
        """No new wish from now on."""
        self._stopped_s = time.monotonic()
        self.stopping.set()

    def _write(self, number: int, **entry: Any) -> None:
        line = {"n": number, "t": time.monotonic(), "at_ms": int(time.time() * 1000), **entry}
        # Unbuffered: the line is there before the call is, whatever happens next.
        os.write(self._log, json.dumps(line).encode() + b"\n")

    async def once(
        self, verb: str, order: str, attempt: Callable[[], Awaitable[Answer]], **asked: Any
    ) -> tuple[str, Answer]:
        """One call: its answer as the log has it, and what came with it."""
        number = next(self._numbers)
        self._calls += 1
        self._write(number, op=verb, order=order, **asked)
        try:
            got = await attempt()
        except (*FAILURES, UnknownSale) as error:
            answer = "UNKNOWN_SALE" if isinstance(error, UnknownSale) else type(error).__name__
            self._write(number, answer=answer)
            return answer, None
        if isinstance(got, (Outcome, StockOutcome)):
            answer = got.status.name
        else:
            answer = "NONE" if got is None else "FOUND"
        order_seen = got.order if isinstance(got, Outcome) else got
        told = _told(order_seen) if isinstance(order_seen, Order) else {}
        self._write(number, answer=answer, **told)
        return answer, got

    async def call(
        self, verb: str, order: str, attempt: Callable[[], Awaitable[Answer]], **asked: Any
    ) -> str:
        """The same call again and again, until it has an answer that is one."""
        while True:
            answer, _ = await self.once(verb, order, attempt, **asked)
            if answer in Status.__members__ and answer != "TOO_LATE":
                return answer
            if self.stopping.is_set() and time.monotonic() - self._stopped_s > LAST_S:
                return answer
            await asyncio.sleep(RETRY_S)

    async def shop(self, engine: Engine, timeout_ms: int, caller: int, seed: int) -> None:
        """Buys until it is told to stop."""
        shopper = _Shopper(self, engine, self._sale, timeout_ms, random.Random(f"{seed} {caller}"))
        for number in count():
            if self._calls >= self._calls_max:
                await self.stopping.wait()
            if self.stopping.is_set():
                return
            buyer, key = f"{self._name}-{caller}-{number // WISHES_A_BUYER}", f"k{number}"
            await shopper.live(buyer, key)
            await asyncio.sleep(shopper.rng.uniform(0, 2 * self._pace_s))

    async def restock(self, engine: Engine, timeout_ms: int, seed: int) -> None:
        """Adds a few units now and then to the SKUs of which there are few, or takes one away."""
        skus = [item.sku for item in self._sale.items]
        for number in count():
            try:
                async with asyncio.timeout(0.1):
                    await self.stopping.wait()
                return
            except TimeoutError:
                pass
            key = f"{self._name}-{number}"
            rng = random.Random(f"{seed} {key}")
            sku, units = rng.choice(skus[1:] or skus), rng.choice((-1, 1, 2, 3))
            add = partial(engine.add_stock, self._sale.id, sku, units, key=key)
            asked = {"sku": sku, "units": units, "key": key, "timeout_ms": timeout_ms}
            await self.call("add_stock", "", add, **asked)


def _told(order: Order) -> dict[str, Any]:
    return {
        "told": {
            "id": order.id,
            "buyer": order.buyer,
            "state": str(order.state),
            "version": order.version,
            "items": order.items,
            "deadline_ms": order.deadline_ms,
            "payments": order.payments,
            "refund": order.refund,
        }
    }


class _Shopper:
    """One caller and what it does with its orders."""

    def __init__(
        self, load: Load, engine: Engine, sale: Sale, timeout_ms: int, rng: random.Random
    ) -> None:
        self._load = load
        self._engine = engine
        self._sale = sale
        self._timeout_ms = timeout_ms
        # Opening a lane and reading a sale anew have the same time each, before the order has its.
        self._patience_s = 3 * timeout_ms / 1000 + 1
        self.rng = rng

    async def live(self, buyer: str, key: str) -> None:
        """One wish, from its first click to its end."""
        if self.rng.random() < 0.05:
            buyer = f"shared-{self.rng.randrange(SHARED_BUYERS)}"
            key = f"k{self.rng.randrange(SHARED_KEYS)}"
        wish = wish_of(self._sale, buyer, key)
        # A double click now and then.
        clicks = 2 if self.rng.random() < 0.1 else 1
        answers = await asyncio.gather(*(self._reserve(wish) for _ in range(clicks)))
        if not all(answer in ("CREATED", "EXISTS") for answer in answers):
            return
        after = self.rng.choices(
            (self._leave, self._pay, self._give_up, self._ask_again, self._lapse),
            (40, 25, 15, 10, 10),
        )[0]
        await after(wish)

    async def _reserve(self, wish: Wish) -> str:
        """Asks until there is an answer. Who was left in the dark may look first, and believes
        it."""
        attempt = partial(self._engine.reserve, self._sale.id, wish.buyer, wish.key, wish.items)
        while True:
            answer, _ = await self._load.once(
                "reserve",
                wish.order,
                attempt,
                buyer=wish.buyer,
                key=wish.key,
                items=wish.items,
                until=time.monotonic() + self._patience_s,
                timeout_ms=self._timeout_ms,
            )
            if answer == "OutcomeUnknown" and self.rng.random() < 0.3:
                seen = await self._look(wish)
                if seen != "FOUND":
                    return seen
            elif answer in Status.__members__ and answer != "TOO_LATE":
                return answer
            if self._load.stopping.is_set():
                return answer
            await asyncio.sleep(RETRY_S)

    async def _look(self, wish: Wish) -> str:
        attempt = partial(self._engine.order, self._sale.id, wish.order)
        answer, _ = await self._load.once("look", wish.order, attempt, timeout_ms=self._timeout_ms)
        return answer

    async def _on(self, verb: str, wish: Wish, *args: Any, **asked: Any) -> str:
        attempt = partial(getattr(self._engine, verb), self._sale.id, wish.order, *args)
        asked["timeout_ms"] = self._timeout_ms
        return await self._load.call(verb, wish.order, attempt, **asked)

    async def _confirm(self, wish: Wish, payment: str) -> str:
        payment = f"{payment}-{wish.order[-8:]}"
        return await self._on("confirm", wish, payment, payment=payment)

    async def _leave(self, wish: Wish) -> None:
        """Does nothing more: the order lapses, if anybody lives that long."""

    async def _ask_again(self, wish: Wish) -> None:
        await self._look(wish)
        await self._reserve(wish)

    async def _pay(self, wish: Wish) -> None:
        if self.rng.random() < 0.4:
            await self._on("begin_payment", wish)
        answer = await self._confirm(wish, "p1")
        if self.rng.random() < 0.2:
            await self._confirm(wish, self.rng.choice(("p1", "p2")))
        if answer == "DONE" and self.rng.random() < 0.2:
            await self._refund(wish)

    async def _refund(self, wish: Wish) -> None:
        refund = f"r-{wish.order[-8:]}"
        # By the order's name, because a retry must choose the same.
        choice = random.Random(refund)
        flags = {name: choice.random() < 0.5 for name in ("return_units", "return_limit")}
        attempt = partial(self._engine.refund, self._sale.id, wish.order, refund, **flags)
        asked = {"refund": refund, **flags, "timeout_ms": self._timeout_ms}
        await self._load.call("refund", wish.order, attempt, **asked)

    async def _give_up(self, wish: Wish) -> None:
        if self.rng.random() < 0.3:
            await self._on("begin_payment", wish)
        await self._on("release", wish)
        if self.rng.random() < 0.2:
            await self._confirm(wish, "p1")

    async def _lapse(self, wish: Wish) -> None:
        """Comes with money when the order may have lapsed."""
        if self._sale.hold_ms <= LAPSE_MAX_MS:
            until_s = self._sale.hold_ms / 1000 + self.rng.uniform(-0.1, 1.0)
            try:
                async with asyncio.timeout(until_s):
                    await self._load.stopping.wait()
            except TimeoutError:
                pass
        await self._confirm(wish, "p1")


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """A call that is asked again while the server is away: we may be started in an outage."""
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except (OutcomeUnknown, RedisUnavailable):
            if time.monotonic() > give_up_s:
                raise
            await asyncio.sleep(RETRY_S)


@asynccontextmanager
async def connected(url: str, durability: Any, **options: Any) -> AsyncIterator[Engine]:
    """An engine that is started as soon as there is a server."""
    engine = Engine(url, durability=durability, **options)
    try:
        await patiently(engine.start)
        yield engine
    finally:
        await engine.aclose()


async def main(arguments: argparse.Namespace) -> None:
    """Loads until stdin ends."""
    log = Path(arguments.log)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fstat(descriptor).st_size:
        raise SystemExit(f"{log} is another load's; give each process a log of its own")
    url, durability = arguments.url, arguments.durability
    async with (
        connected(url, durability, timeout_ms=HASTY_MS) as hasty,
        connected(url, durability, timeout_ms=PATIENT_MS) as patient,
    ):
        load = Load(
            await patiently(lambda: patient.sale(arguments.sale)),
            descriptor,
            f"{log.stem}-{arguments.seed}",
            pace_ms=arguments.pace_ms,
            calls_max=arguments.calls_max,
        )
        pairs = ((hasty, HASTY_MS), (patient, PATIENT_MS))
        tasks = [
            asyncio.ensure_future(load.shop(*pairs[caller % 2], caller, arguments.seed))
            for caller in range(arguments.callers)
        ]
        tasks.append(asyncio.ensure_future(load.restock(patient, PATIENT_MS, arguments.seed)))
        # Not in a thread, for which a process that fails would have to wait.
        stdin = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
        )
        told = asyncio.ensure_future(stdin.read())
        # A caller ends before it is told to only by an exception, which then ends all of us.
        await asyncio.wait({told, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        load.stop()
        await asyncio.gather(*tasks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Loads a sale and logs every call and answer.")
    parser.add_argument("url")
    parser.add_argument("sale")
    parser.add_argument("log")
    parser.add_argument("seed", type=int)
    parser.add_argument("callers", type=int)
    parser.add_argument("durability")
    parser.add_argument("--pace-ms", type=int, default=10, help="mean pause after a wish")
    parser.add_argument("--calls-max", type=int, default=200_000, help="no new wish after these")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(_arguments()))
