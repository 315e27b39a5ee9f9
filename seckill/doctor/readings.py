"""What the doctor reads of a server, once, before the checks judge it. Nothing is written but one
probe, a key that expires by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from seckill.doctor.places import Place, is_at, shown_place
from seckill.durability import Durability
from seckill.embedded import running_url
from seckill.errors import RedisUnavailable
from seckill.keys import SALES, queue_keys, shard_keys
from seckill.redis import is_transient

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Plan", "Reading", "SlowCommand", "is_local", "read_server"]

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
    ``address`` is how it is shown, ``name`` tells it from the others of a cluster. ``may_move``:
    others say who the master is. ``embedded``: it is one of our own, which is started anew with
    every intake.
    ``skew_ms`` is how far its clock is ahead of this host's, known to ``round_trip_ms / 2``.
    ``write_ms`` is None when it refused the probe, for the reason ``write_refusal``.
    """

    address: str
    name: str
    has_sale: bool
    in_cluster: bool
    may_move: bool
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
    def has_keys(self) -> bool:
        """Whether it can be asked for keys that belong to it. A cluster's own answer for all others
        with where they are, and its replicas for all."""
        if self.info.get("loading"):
            return False
        return not self.info.get("cluster_enabled") or (self.in_cluster and self.is_master)

    @property
    def local(self) -> bool:
        """Whether it runs on this host, as far as its address tells."""
        return is_local(self.address)


def is_local(url: str) -> bool:
    """Whether the address, a URL or host and port, is one of this host's own."""
    parts = urlsplit(url if "//" in url or url.startswith("/") else f"//{url}")
    return parts.scheme == "unix" or (parts.hostname or "localhost") in (
        "localhost",
        "127.0.0.1",
        "::1",
    )


async def read_server(place: Place, *, durability: Durability, connections: int) -> Reading:
    """Reads the server. Raises what redis-py raises when it is away or refuses INFO."""
    client = place.client
    info: dict[str, Any] = await client.info()
    loading = bool(info.get("loading"))
    skew_ms, round_trip_ms, now_ms = await _clock(client)
    is_master = info.get("role") in (None, "master")
    is_stranger = info.get("cluster_enabled") and not place.in_cluster
    write_ms, refusal = None, "it is loading" if loading else "it is not a master"
    if is_stranger:
        refusal = "it is part of a cluster"
    elif is_master and not loading:
        write_ms, refusal = await _probe(client, place.probe)
    config = await _config(client)
    # Not PING: a server that refuses writes refuses that, too.
    trip_ms = 0.0 if loading else await _median_ms(client.time, TRIPS)
    return Reading(
        address=shown_place(place),
        name=place.name,
        has_sale=place.has_sale,
        in_cluster=place.in_cluster,
        may_move=place.servers.may_move,
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
        plan=Plan() if loading or is_stranger else await _plan(place),
        embedded="dir" in config and running_url(config["dir"]) == place.url,
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


async def _probe(client: Redis, key: str) -> tuple[float | None, str]:
    """How long a write takes, which with appendfsync always is until it is on disk."""
    from redis.exceptions import ResponseError

    try:
        return await _median_ms(lambda: client.set(key, "probe", ex=10), WRITES), ""
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


async def _names(place: Place) -> list[str]:
    """The sales of this server. In a cluster another one may have the list of all."""
    from redis.exceptions import RedisError

    if not place.in_cluster:
        members: Any = await place.client.smembers(SALES)
        return sorted(name.decode("utf-8", "replace") for name in members)
    try:
        members = await place.servers.client(SALES).smembers(SALES)
    except (RedisError, OSError, RedisUnavailable) as error:
        if not isinstance(error, RedisUnavailable) and not is_transient(error):
            raise
        # Whoever has the list is red for it. Of this server's sales one at least is known.
        return [place.sale] if place.has_sale else []
    names = sorted(name.decode("utf-8", "replace") for name in members)
    return [name for name in names if is_at(place.servers, name, place.address)]


async def _plan(place: Place) -> Plan:
    """What the sales that are not over may still sell; all share the server's memory."""
    client = place.client
    sales = units = orders = queues = 0
    for name in (await _names(place))[:SALES_READ]:
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
