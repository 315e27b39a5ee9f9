"""What the doctor reads of a server, once, before the checks judge it. Nothing is written but one
probe, a key that expires by itself.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from seckill.durability import Durability
from seckill.embedded import running_url
from seckill.keys import PROBE, SALES, queue_keys, shard_keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Plan", "Reading", "SlowCommand", "is_local", "read_server", "shown_url"]

"""A string that is written to see how long a write takes; it expires after ten seconds."""

TRIPS: Final = 9
WRITES: Final = 5
SLOW_READ: Final = 64
SALES_READ: Final = 1_000

_SETTINGS: Final = (
    "appenddirname",
    "appendfilename",
    "appendfsync",
    "appendonly",
    "dir",
    "disable-thp",
    "maxclients",
    "maxmemory-policy",
    "min-replicas-to-write",
    "no-appendfsync-on-rewrite",
    "save",
    "stop-writes-on-bgsave-error",
)


class SlowCommand(msgspec.Struct, frozen=True):
    """An entry of the server's slow log. Only the command's name: arguments may be personal."""

    command: str
    at_s: int
    took_ms: float


class Plan(msgspec.Struct, frozen=True):
    """Of all sales of the server that are not over: their number, units, and orders so far; and how
    many of them have a queue."""

    sales: int = 0
    units: int = 0
    orders: int = 0
    queues: int = 0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A server as it presents itself. ``config`` lacks what it would not tell.

    ``durability`` is what is asked of it, and ``connections`` how many more clients tonight brings.
    ``embedded``: it is one of our own, which is started anew with every intake.
    ``skew_ms`` is how far its clock is ahead of this host's, known to ``round_trip_ms / 2``.
    ``write_ms`` is None when it refused the probe, for the reason ``write_refusal``.
    """

    url: str
    durability: Durability
    connections: int
    info: dict[str, Any]
    config: dict[str, str]
    now_ms: int
    skew_ms: float
    round_trip_ms: float
    trip_ms: float
    write_ms: float | None
    write_refusal: str
    slow: tuple[SlowCommand, ...] | None
    plan: Plan
    embedded: bool

    @property
    def is_master(self) -> bool:
        """Whether it takes writes; a server that does not say so is believed to."""
        return self.info.get("role") in (None, "master")

    @property
    def local(self) -> bool:
        """Whether it runs on this host, as far as its address tells."""
        return is_local(self.url)


def is_local(url: str) -> bool:
    """Whether the address is one of this host's own."""
    parts = urlsplit(url)
    return parts.scheme == "unix" or (parts.hostname or "localhost") in (
        "localhost",
        "127.0.0.1",
        "::1",
    )


def shown_url(url: str) -> str:
    """The URL without user and password."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


async def read_server(
    client: Redis, url: str, *, durability: Durability, connections: int
) -> Reading:
    """Reads the server. Raises what redis-py raises when it is away or refuses INFO."""
    info: dict[str, Any] = await client.info()
    loading = bool(info.get("loading"))
    skew_ms, round_trip_ms, now_ms = await _clock(client)
    is_master = info.get("role") in (None, "master")
    write_ms, refusal = None, "it is loading" if loading else "it is not a master"
    if is_master and not loading:
        write_ms, refusal = await _probe(client)
    config = await _config(client)
    # Not PING: a server that refuses writes refuses that, too.
    trip_ms = 0.0 if loading else await _median_ms(client.time, TRIPS)
    return Reading(
        url=url,
        durability=durability,
        connections=connections,
        info=info,
        config=config,
        now_ms=now_ms,
        skew_ms=skew_ms,
        round_trip_ms=round_trip_ms,
        trip_ms=trip_ms,
        write_ms=write_ms,
        write_refusal=refusal,
        slow=await _slow(client),
        plan=Plan() if loading else await _plan(client),
        embedded="dir" in config and running_url(config["dir"]) == url,
    )


async def _config(client: Redis) -> dict[str, str]:
    # One by one: a managed server may hide one and tell another.
    async with client.pipeline(transaction=False) as pipe:
        for name in _SETTINGS:
            pipe.execute_command("CONFIG GET", name)
        answers = await pipe.execute(raise_on_error=False)
    told: dict[str, str] = {}
    for answer in answers:
        if isinstance(answer, dict):
            told |= answer
    return told


async def _clock(client: Redis) -> tuple[float, float, int]:
    """Skew, round trip and the server's time, all in ms, of the quickest of five questions."""
    best = (0.0, float("inf"), 0)
    for _ in range(5):
        before_ms, began = time() * 1_000, perf_counter()
        seconds, micros = await client.time()
        took_ms = (perf_counter() - began) * 1_000
        there_ms = int(seconds) * 1_000 + int(micros) / 1_000
        if took_ms < best[1]:
            best = (there_ms - before_ms - took_ms / 2, took_ms, int(there_ms))
    return best


async def _median_ms(call: Callable[[], Awaitable[Any]], times: int) -> float:
    taken = []
    for _ in range(times):
        began = perf_counter()
        await call()
        taken.append((perf_counter() - began) * 1_000)
    return median(taken)


async def _probe(client: Redis) -> tuple[float | None, str]:
    """How long a write takes, which with appendfsync always is until it is on disk."""
    from redis.exceptions import ResponseError

    try:
        return await _median_ms(lambda: client.set(PROBE, "probe", ex=10), WRITES), ""
    except ResponseError as error:
        return None, str(error)


async def _slow(client: Redis) -> tuple[SlowCommand, ...] | None:
    from redis.exceptions import ResponseError

    try:
        entries: Any = await client.slowlog_get(SLOW_READ)
    except ResponseError:
        return None
    return tuple(
        SlowCommand(
            entry["command"].split(b" ", 1)[0].decode("utf-8", "replace").upper(),
            int(entry["start_time"]),
            entry["duration"] / 1_000,
        )
        for entry in entries
    )


async def _plan(client: Redis) -> Plan:
    """What the sales that are not over may still sell; all share the server's memory."""
    members: Any = await client.smembers(SALES)
    names = sorted(name.decode("utf-8", "replace") for name in members)
    sales = units = orders = queues = 0
    for name in names[:SALES_READ]:
        keys = shard_keys(name)
        async with client.pipeline(transaction=False) as pipe:
            pipe.execute_command("HGET", keys[0], "state")
            pipe.execute_command("HGETALL", keys[1])
            pipe.execute_command("HLEN", keys[3])
            pipe.execute_command("EXISTS", queue_keys(name)[0])
            state, stock, made, queue = await pipe.execute(raise_on_error=False)
        if state in (None, b"closed", b"settled") or isinstance(state, Exception):
            continue
        if not isinstance(stock, dict) or not isinstance(made, int):
            continue  # Damaged; its own examination says so.
        sales += 1
        orders += made
        queues += queue == 1
        units += sum(
            int(value)
            for field, value in stock.items()
            if field.endswith(b":total") and value.isdigit()
        )
    return Plan(sales, units, orders, queues)
