"""What ``seckill top`` sees: one frame a second, and the rates that follow from two of them."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill import redis as servers
from seckill.errors import SeckillError, UnknownSale
from seckill.keys import SALES, queue_keys, shard_keys
from seckill.sale import Sale
from seckill.scripts import FORMAT, script
from seckill.servers import Servers
from seckill.snapshot import Snapshot, read_snapshot
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["Frame", "GroupLag", "QueueView", "SaleView", "ServerView", "Watcher"]

CALL_S: Final = 3.0
"""A server that takes longer is shown as away."""

DETAILED_MAX: Final = 20
"""A sale's snapshot carries all of its SKUs, so not every one of a hundred is asked for."""

_RANK: Final = {"open": 0, "paused": 1, "created": 2}


class ServerView(msgspec.Struct, frozen=True):
    """The server's own numbers. ``fsync`` is "always", "everysec", "no", "off" or "?"."""

    name: str
    role: str
    ops_per_s: int
    used_bytes: int
    limit_bytes: int
    clients: int
    blocked: int
    fsync: str
    fsync_delayed: int
    trip_ms: float


class GroupLag(msgspec.Struct, frozen=True):
    """A consumer group. ``behind`` is None where the server can't tell (before Redis 7)."""

    name: str
    behind: int | None
    pending: int


class QueueView(msgspec.Struct, frozen=True):
    """A sale's queue. ``called`` counts all who were ever called, ``lapses`` those of them who let
    their turn lapse. Before a draw nobody has a place, so all who have a ticket wait."""

    mode: str
    waiting: int
    called: int
    lapses: int
    called_per_s: float | None


class SaleView(msgspec.Struct, frozen=True, kw_only=True):
    """One sale. Rates are per second since the last frame, None in the first.

    ``problem`` says why it could not be read; then there is no snapshot.
    """

    id: str
    sale: Sale | None = None
    snapshot: Snapshot | None = None
    groups: tuple[GroupLag, ...] = ()
    orders_per_s: float | None = None
    events_per_s: float | None = None
    queue: QueueView | None = None
    problem: str = ""


class Frame(msgspec.Struct, frozen=True):
    """One look. ``others`` counts sales that are not over and are not shown."""

    at_ms: int
    server: ServerView
    sales: tuple[SaleView, ...]
    others: int


class Watcher:
    """Looks at one sale or at all that are not over. It needs no engine: what an engine refuses
    about a server is no reason not to look at it."""

    def __init__(self, url: str, sale: str | None) -> None:
        self._sale = sale
        self._where = Servers(url, connections=1, timeout_s=CALL_S)
        self._definitions: dict[str, Sale] = {}
        self._before: dict[str, tuple[float, Snapshot]] = {}
        self._called: dict[str, int] = {}

    async def aclose(self) -> None:
        """Disconnects."""
        await self._where.aclose()

    @property
    def _client(self) -> Redis:
        return self._where.client(SALES)

    async def look(self) -> Frame:
        """The next frame. Raises RedisUnavailable, ScriptFailed, or UnknownSale for the one."""
        with servers.our_errors():
            # Each time: it may be another one by now.
            self._where.lost(SALES)
            await self._where.look()
            began = monotonic()
            seconds, micros = await self._client.time()
            trip_ms = (monotonic() - began) * 1_000
            info: dict[str, Any] = await self._client.info()
            names, others = await self._names()
            views = [await self._view(name) for name in names]
            if self._sale is not None and not views[0].problem and views[0].sale is None:
                raise UnknownSale(self._sale)
            return Frame(
                int(seconds) * 1_000 + int(micros) // 1_000,
                _server(info, await self._fsync(), trip_ms),
                tuple(view for view in views if view.sale or view.problem),
                others,
            )

    async def _fsync(self) -> str:
        from redis.exceptions import ResponseError

        try:
            told: Any = await self._client.config_get("append*")
        except ResponseError:
            return "?"
        return "off" if told.get("appendonly") == "no" else str(told.get("appendfsync", "?"))

    async def _names(self) -> tuple[list[str], int]:
        """The sales to show: those that sell first, then by their time. And how many are left."""
        if self._sale is not None:
            return [self._sale], 0
        members: Any = await self._client.smembers(SALES)
        names = sorted(member.decode("utf-8", "replace") for member in members)
        async with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.execute_command("HMGET", shard_keys(name)[0], "state", "opens_ms")
            headers = await pipe.execute(raise_on_error=False)
        ranked = []
        for name, header in zip(names, headers, strict=True):
            if isinstance(header, Exception):
                ranked.append((-1, 0, name))  # Damaged: what is wrong comes first.
                continue
            state, opens_ms = header
            if state is not None and state.decode() in _RANK:
                ranked.append((_RANK[state.decode()], int(opens_ms), name))
        ranked.sort()
        shown = [name for _, _, name in ranked[:DETAILED_MAX]]
        return shown, len(ranked) - len(shown)

    async def _view(self, name: str) -> SaleView:
        from redis.exceptions import ResponseError

        try:
            reply = await self._inspect(name)
            if reply[0] == Status.UNKNOWN_SALE:
                return SaleView(id=name)
            if reply[0] != Status.DONE:
                return SaleView(id=name, problem=Status(reply[0]).meaning)
            sale = self._definition(name, reply[2])
            snapshot = read_snapshot(sale, reply)
            groups: Any = await self._client.xinfo_groups(shard_keys(name)[-1])
        except (ResponseError, SeckillError, KeyError, ValueError) as error:
            return SaleView(id=name, problem=f"can't be read: {error}")
        if snapshot is None:
            return SaleView(id=name, problem="its definition changed while it was read")
        lags = tuple(
            GroupLag(group["name"].decode("utf-8", "replace"), group.get("lag"), group["pending"])
            for group in groups
        )
        now_s = monotonic()
        before_s, before = self._before.get(name, (now_s, snapshot))
        self._before[name] = now_s, snapshot
        passed_s = now_s - before_s
        queue = None if sale.admission is None else await self._queue(name, passed_s)
        return SaleView(
            id=name,
            sale=sale,
            snapshot=snapshot,
            groups=lags,
            orders_per_s=_rate(snapshot.orders - before.orders, passed_s),
            events_per_s=_rate(snapshot.seq - before.seq, passed_s),
            queue=queue,
        )

    async def _queue(self, name: str, passed_s: float) -> QueueView | None:
        """A queue as it is, for this calls nobody; None before it is opened, or where it can't be
        read."""
        from redis.exceptions import ResponseError

        keys = queue_keys(name)
        names = ("mode", "next", "closed", "ranked", "head", "lapses")
        try:
            header: Any = await self._client.hmget(keys[0], *names)
            left = await self._client.zcard(keys[3])
        except ResponseError:
            return None
        if header[0] is None:
            return None
        mode = header[0].decode()
        given, closed, ranked, head, lapses = (int(text or 0) for text in header[1:])
        tail = given if mode == "queue" or header[3] is None else ranked + given - closed
        before = self._called.get(name, head)
        self._called[name] = head
        waiting = max(0, tail - head - left)
        return QueueView(mode, waiting, head, lapses, _rate(head - before, passed_s))

    async def _inspect(self, name: str) -> list[Any]:
        from redis.exceptions import NoScriptError

        code, keys = script("inspect"), shard_keys(name)
        try:
            reply: Any = await self._client.evalsha(code.sha, len(keys), *keys, FORMAT)
        except NoScriptError:
            reply = await self._client.eval(code.source, len(keys), *keys, FORMAT)
        return list(reply)

    def _definition(self, name: str, header: list[bytes]) -> Sale:
        fields = dict(zip(header[::2], header[1::2], strict=True))
        known = self._definitions.get(name)
        if known is None or known.definition_id.encode() != fields[b"definition_id"]:
            known = self._definitions[name] = Sale.from_definition(fields[b"definition"])
        return known


def _rate(change: int, passed_s: float) -> float | None:
    # A sale that was made anew under the same id starts from nothing.
    return max(0.0, change / passed_s) if passed_s > 0 else None


def _server(info: dict[str, Any], fsync: str, trip_ms: float) -> ServerView:
    valkey = info.get("valkey_version")
    return ServerView(
        name=f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '?')}",
        role=str(info.get("role", "?")),
        ops_per_s=int(info.get("instantaneous_ops_per_sec", 0)),
        used_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        clients=int(info.get("connected_clients", 0)),
        blocked=int(info.get("blocked_clients", 0)),
        fsync=fsync,
        fsync_delayed=int(info.get("aof_delayed_fsync", 0)),
        trip_ms=trip_ms,
    )
