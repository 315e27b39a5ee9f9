"""A consumer of a sale's events, to be killed: logs each event before it is acknowledged.

    python -m tests.faults.consume URL SALE LOG GROUP CONSUMER DURABILITY

The log is described in checker_witness.py. Ends when its stdin ends; an outage it outlasts.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from seckill.engine import Engine
from seckill.errors import OutcomeUnknown, RedisUnavailable
from seckill.stream import Event
from tests.faults.load import connected

# What a killed consumer had taken goes to the next one after this.
RECLAIM_MS = 300
RETRY_S = 0.05


def line_of(group: str, consumer: str, event: Event) -> bytes:
    """An event as the log has it."""
    order = event.order
    entry = {
        "group": group,
        "consumer": consumer,
        "t": time.monotonic(),
        "seq": event.seq,
        "subject": "sale" if order is None else order.id,
        "kind": str(event.kind),
        "version": 0 if order is None else order.version,
    }
    return json.dumps(entry).encode() + b"\n"


async def consume(engine: Engine, sale: str, log: int, group: str, consumer: str) -> None:
    """Consumes until it is cancelled."""
    while True:
        with suppress(RedisUnavailable, OutcomeUnknown):
            async for batch in engine.events(sale, group, consumer=consumer, reclaim_ms=RECLAIM_MS):
                os.write(log, b"".join(line_of(group, consumer, event) for event in batch))
        await asyncio.sleep(RETRY_S)


async def main(url: str, sale: str, log: str, group: str, consumer: str, durability: Any) -> None:
    """Consumes until stdin ends."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    async with connected(url, durability, sweep_ms=0) as engine:
        task = asyncio.ensure_future(consume(engine, sale, descriptor, group, consumer))
        stdin = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin
        )
        told = asyncio.ensure_future(stdin.read())
        await asyncio.wait({told, task}, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
