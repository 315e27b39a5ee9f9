"""The canonical queue: the sale of workload.py with an admission, and buyers with 24-character ids
who stand in line before the doors open, as most of them do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import msgspec

from benchmarks.workload import Wire, make_sale
from seckill.admission import Admission, Mode
from seckill.engine import Engine
from seckill.queue import Place
from seckill.sale import Sale

__all__ = ["NAME", "calls_of", "create_queue", "join_all", "used_memory"]

NAME: Final = "queue"


async def create_queue(
    engine: Engine, name: str, *, mode: Mode = "queue", rate_per_s: int = 10_000
) -> Sale:
    """Creates the canonical sale with a queue. Until it is opened nobody is called."""
    sale = make_sale(name)
    admission = Admission(mode="queue", rate_per_s=rate_per_s)
    if mode != "queue":
        draw_at = sale.ends_at - timedelta(hours=1)  # Longer than it takes to fill the line.
        admission = msgspec.structs.replace(admission, mode=mode, draw_at=draw_at)
    sale = msgspec.structs.replace(sale, admission=admission)
    assert (await engine.create(sale)).ok
    await engine.queue.look(sale.id)
    return sale


async def join_all(
    engine: Engine, sale: str, buyers: Sequence[str], *, callers: int = 256
) -> list[str]:
    """All of these buyers join, each of the callers one after the other; their tickets."""
    tickets = [""] * len(buyers)
    numbers = iter(range(len(buyers)))

    async def caller() -> None:
        for i in numbers:
            joined = await engine.queue.join(sale, buyers[i])
            assert isinstance(joined.place, Place), joined
            tickets[i] = joined.place.ticket

    await asyncio.gather(*(caller() for _ in range(callers)))
    return tickets


def calls_of(wire: Wire) -> dict[str, tuple[int, int]]:
    """How often each command was called since CONFIG RESETSTAT, from scripts as well, and the µs
    that took. What is called to find that out is left out."""
    found = {}
    for line in wire.call("INFO", "commandstats").decode().splitlines():
        name, _, fields = line.removeprefix("cmdstat_").partition(":")
        if line.startswith("cmdstat_") and name not in ("config|resetstat", "info"):
            values = dict(field.split("=") for field in fields.split(","))
            found[name] = int(values["calls"]), int(values["usec"])
    return found


def used_memory(wire: Wire) -> int:
    """Bytes that the server has allocated, but for what comes and goes with its clients' commands
    and with the AOF's."""
    lines: str = wire.call("INFO", "memory").decode()
    facts = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    passing = int(facts["mem_clients_normal"]) + int(facts["mem_aof_buffer"])
    return int(facts["used_memory"]) - passing
