"""Queues: whether every order that waits stands in the queue from which it lapses.

An order is in its queue from the moment that made it held or paying, until it has moved on. So one
that a scan has shown waiting, that was in no part of its queue read after that, and that waits in
the same version even then, would never lapse: its units are lost to the sale.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from seckill.engine import Engine
from seckill.keys import shard_keys
from seckill.ledger.drift import Drift, DriftKind
from seckill.ledger.reconcile_sides import PART, RedisSide
from seckill.order import order_id_shard
from seckill.status import Status

__all__ = ["Waiting", "compare_queues", "is_order_id", "requeue"]

_QUEUES: Final = {"h": "holds", "p": "paying"}
_REFUSED: Final = {
    Status.CONFLICT: "the queue is too long to be mended while the sale runs: rebuild it",
    Status.FENCED: "the sale is fenced by now: rebuild it",
}


class Waiting:
    """The orders that a scan has shown waiting; some 100 bytes for each."""

    def __init__(self) -> None:
        self.orders: dict[str, set[str]] = {state: set() for state in _QUEUES}

    def feed(self, records: Mapping[str, str]) -> None:
        """Notes some orders by their records."""
        for order, record in records.items():
            waiting = self.orders.get(record[:1])
            if waiting is not None and is_order_id(order):
                waiting.add(order)


def is_order_id(order: str) -> bool:
    """Whether a field of Redis' orders can be an order at all."""
    try:
        order_id_shard(order)
    except ValueError:
        return False
    return True


async def compare_queues(redis: RedisSide, waiting: Waiting) -> list[Drift]:
    """The waiting orders that are in no queue. To be asked after the scan."""
    found: list[Drift] = []
    for state, orders in waiting.orders.items():
        missing = await _missing(redis, state, orders)
        if not missing:
            continue
        # Once more: another `--fix` may have moved what was not read yet.
        before = await redis.records(missing)
        missing = await _missing(redis, state, missing)
        now = await redis.records(missing)
        for order in missing:
            if now.get(order, "")[:1] == state and now[order] == before.get(order):
                text = f"it is not in the queue of {_QUEUES[state]} orders"
                found.append(Drift(DriftKind.ORDER_NOT_QUEUED, text, order))
    return found


async def _missing(redis: RedisSide, state: str, orders: Collection[str]) -> list[str]:
    missing = set(orders)
    if missing:
        async for part in redis.queue(state):
            missing.difference_update(part)
    return sorted(missing)


async def requeue(engine: Engine, sale: str, drifts: list[Drift]) -> list[Drift]:
    """Puts orders back, and says of each whether that was done. Raises what a script raises."""
    done: list[Drift] = []
    for at in range(0, len(drifts), PART):
        part = drifts[at : at + PART]
        packed = msgspec.msgpack.encode([drift.order for drift in part])
        status, _ = await engine._calls.run("requeue", shard_keys(sale), packed)
        problem = "" if status == Status.DONE else _REFUSED.get(Status(status), "not put back")
        for drift in part:
            text = problem or "put back in order of deadline"
            done.append(
                Drift(drift.kind, f"{text} ({drift.text})", drift.order, mended=not problem)
            )
    return done
