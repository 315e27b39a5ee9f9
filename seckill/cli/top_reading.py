"""What ``seckill top`` sees: one frame a second, and the rates that follow from two of them."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill import redis as servers
from seckill.errors import RedisUnavailable, SeckillError, UnknownSale
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

_RANK: Final = {"fenced": 0, "open": 1, "paused": 2, "created": 3}
_OVER: Final = 4
_DAMAGED: Final = -1


class ServerView(msgspec.Struct, frozen=True, kw_only=True):
    """One master's own numbers. ``fsync`` is "always", "everysec", "no", "off" or "?".

    ``address`` is empty for a server that stays where it is. ``sales`` counts those of it that are
    not over, None where only one sale is looked at. ``problem`` says why it tells nothing; then
    there are no numbers.
    """

    address: str = ""
    name: str = ""
    role: str = "master"
    sales: int | None = None
    ops_per_s: int = 0
    used_bytes: int = 0
    limit_bytes: int = 0
    clients: int = 0
    blocked: int = 0
    fsync: str = "?"
    fsync_delayed: int = 0
    trip_ms: float = 0.0
    problem: str = ""


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

    ``problem`` says why it could not be read; then there is no snapshot. ``server`` is the address
    of its server where that is one of several.
    """

    id: str
    server: str = ""
    sale: Sale | None = None
    snapshot: Snapshot | None = None
    groups: tuple[GroupLag, ...] = ()
    orders_per_s: float | None = None
    events_per_s: float | None = None
    queue: QueueView | None = None
    problem: str = ""


class Frame(msgspec.Struct, frozen=True):
    """One look. ``servers`` is one, or the masters of a cluster; ``others`` counts sales that are
    not over and are not shown."""

    at_ms: int
    servers: tuple[ServerView, ...]
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
        self._members: list[str] | None = None
        # Of each sale its place in the picture, as it was when its server could be asked.
        self._ranks: dict[str, tuple[int, int]] = {}
        self._away: set[str] = set()

    async def aclose(self) -> None:
        """Disconnects."""
        await self._where.aclose()

    async def look(self) -> Frame:
        """The next frame. Raises RedisUnavailable, ScriptFailed, or UnknownSale for the one.

        One master of several that is away takes neither the others nor their sales out of sight."""
        with servers.our_errors():
            # Each time: it may be another one by now.
            self._where.lost(SALES)
            await self._where.look()
            at_ms, seen = await self._servers()
            names, others = await self._names()
            views = [await self._view(name) for name in names]
            if self._sale is not None and not views[0].problem and views[0].sale is None:
                raise UnknownSale(self._sale)
            return Frame(
                at_ms,
                self._counted(seen),
                tuple(view for view in views if view.sale or view.problem),
                others,
            )

    async def _servers(self) -> tuple[int, list[ServerView]]:
        """A clock, and every master. Raises what the last of them raised when none answers."""
        masters = self._where.named_masters()
        looks = (self._server(address, client) for address, client in masters)
        seen: list[ServerView] = []
        at_ms, self._away = 0, set()
        for (address, _), found in zip(
            masters, await asyncio.gather(*looks, return_exceptions=True), strict=True
        ):
            if isinstance(found, Exception):
                if len(self._away) == len(masters) - 1:
                    raise found
                self._away.add(address)
                problem = str(found) or type(found).__name__
                seen.append(ServerView(address=address, problem=problem))
            elif isinstance(found, BaseException):
                raise found
            else:
                told_ms, view = found
                at_ms = at_ms or told_ms
                seen.append(view)
        return at_ms, seen

    async def _server(self, address: str, client: Redis) -> tuple[int, ServerView]:
        began = monotonic()
        seconds, micros = await client.time()
        trip_ms = (monotonic() - began) * 1_000
        info: dict[str, Any] = await client.info()
        view = _server_view(info, await _fsync(client), trip_ms)
        if self._where.may_move:
            view = msgspec.structs.replace(view, address=address)
        return int(seconds) * 1_000 + int(micros) // 1_000, view

    def _counted(self, seen: list[ServerView]) -> tuple[ServerView, ...]:
        """With the number of sales that each has, where there are several."""
        if self._sale is not None or len(seen) == 1:
            return tuple(seen)
        homes = [self._home(name) for name, (rank, _) in self._ranks.items() if rank < _OVER]
        return tuple(
            msgspec.structs.replace(view, sales=homes.count(view.address)) for view in seen
        )

    def _home(self, name: str) -> str:
        """The address of a sale's server, empty when it has none."""
        try:
            return self._where.address(shard_keys(name)[0])
        except RedisUnavailable:
            return ""

    def _missing(self, home: str) -> str:
        """What is wrong with the sales of this server if it can't be asked, empty if it can."""
        if not home:
            return "no node of the cluster has its slot"
        return f"its server {home} is away" if home in self._away else ""

    async def _names(self) -> tuple[list[str], int]:
        """The sales to show: those that sell first, then by their time. And how many are left."""
        if self._sale is not None:
            return [self._sale], 0
        names = await self._listed()
        asked = [name for name in names if not self._missing(self._home(name))]
        headers = await self._headers(asked)
        ranks = {name: self._ranks.get(name, (_OVER - 1, 0)) for name in names}
        for name, header in headers.items():
            if isinstance(header, Exception):
                ranks[name] = _DAMAGED, 0  # What is wrong comes first.
                continue
            state, opens_ms = header
            known = state is not None and state.decode() in _RANK
            ranks[name] = (_RANK[state.decode()], int(opens_ms)) if known else (_OVER, 0)
        self._ranks = ranks
        ranked = sorted((*rank, name) for name, rank in ranks.items() if rank[0] < _OVER)
        shown = [name for _, _, name in ranked[:DETAILED_MAX]]
        return shown, len(ranked) - len(shown)

    async def _listed(self) -> list[str]:
        """All sales; while the one server that has their list is away, those that were there."""
        home = self._where.address(SALES)
        if home not in self._away:
            members: Any = await self._where.client(SALES).smembers(SALES)
            self._members = sorted(member.decode("utf-8", "replace") for member in members)
        elif self._members is None:
            raise RedisUnavailable(f"{home}, which has the list of sales, is away")
        return self._members

    async def _headers(self, names: list[str]) -> dict[str, Any]:
        """State and time of each, or what its server answered instead; one question to each."""
        keys = {shard_keys(name)[0]: name for name in names}
        headers: dict[str, Any] = {}
        for part in self._where.apart(keys):
            async with self._where.client(part[0]).pipeline(transaction=False) as pipe:
                for key in part:
                    pipe.execute_command("HMGET", key, "state", "opens_ms")
                replies = await pipe.execute(raise_on_error=False)
            headers |= zip((keys[key] for key in part), replies, strict=True)
        return headers

    async def _view(self, name: str) -> SaleView:
        from redis.exceptions import RedisError, ResponseError

        home = self._home(name)
        if missing := self._missing(home):
            return SaleView(id=name, problem=missing)
        try:
            reply = await self._inspect(name)
            if reply[0] == Status.UNKNOWN_SALE:
                return SaleView(id=name)
            if reply[0] != Status.DONE:
                return SaleView(id=name, problem=Status(reply[0]).meaning)
            sale = self._definition(name, reply[2])
            snapshot = read_snapshot(sale, reply)
            groups: Any = await self._client(name).xinfo_groups(shard_keys(name)[-1])
        except (ResponseError, SeckillError, KeyError, ValueError) as error:
            return SaleView(id=name, problem=f"can't be read: {error}")
        except (RedisError, OSError):
            if not self._where.is_cluster:
                raise
            # It was there a moment ago. Its other sales must not wait for it as well.
            self._away.add(home)
            return SaleView(id=name, problem=self._missing(home))
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
            server=home if self._where.is_cluster else "",
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

        keys, client = queue_keys(name), self._client(name)
        names = ("mode", "next", "closed", "ranked", "head", "lapses")
        try:
            header: Any = await client.hmget(keys[0], *names)
            left = await client.zcard(keys[3])
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

        code, keys, client = script("inspect"), shard_keys(name), self._client(name)
        try:
            reply: Any = await client.evalsha(code.sha, len(keys), *keys, FORMAT)
        except NoScriptError:
            reply = await client.eval(code.source, len(keys), *keys, FORMAT)
        return list(reply)

    def _client(self, name: str) -> Redis:
        return self._where.client(shard_keys(name)[0])

    def _definition(self, name: str, header: list[bytes]) -> Sale:
        fields = dict(zip(header[::2], header[1::2], strict=True))
        known = self._definitions.get(name)
        if known is None or known.definition_id.encode() != fields[b"definition_id"]:
            known = self._definitions[name] = Sale.from_definition(fields[b"definition"])
        return known


def _rate(change: int, passed_s: float) -> float | None:
    # A sale that was made anew under the same id starts from nothing.
    return max(0.0, change / passed_s) if passed_s > 0 else None


async def _fsync(client: Redis) -> str:
    from redis.exceptions import ResponseError

    try:
        told: Any = await client.config_get("append*")
    except ResponseError:
        return "?"
    return "off" if told.get("appendonly") == "no" else str(told.get("appendfsync", "?"))


def _server_view(info: dict[str, Any], fsync: str, trip_ms: float) -> ServerView:
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
