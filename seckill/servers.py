"""The servers that an engine talks to: which one has a key, and a pool of connections to it.

One server stays where it is. Who is the master behind sentinels, or of a key in a cluster, is asked
by ``look`` and believed until a caller meets an error that says otherwise and calls ``lost``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from seckill.address import CONNECT_SECONDS, Node, read_address, spoken
from seckill.errors import EngineClosed, RedisUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from seckill.cluster import SlotMap
    from seckill.pools import Pool

__all__ = ["LOOK_S", "OwnClient", "Servers"]

LOOK_S: Final = 0.05
"""Looks begin at least this long after each other, however many callers want one."""


class _Home(NamedTuple):
    """One server that we talk to."""

    pool: Pool
    client: Redis


class Servers:
    """Not thread-safe: it belongs to one event loop. ``connections`` is the most that each pool
    has, ``timeout_s`` the time limit of each of their replies, None for none. Connections never
    retry by themselves.

    Raises InvalidInput (the URL).
    """

    def __init__(self, url: str, *, connections: int, timeout_s: float | None) -> None:
        self._address = read_address(url)
        self._connections = connections
        self._timeout_s = timeout_s
        self._homes: dict[Node, _Home] = {}
        self._owner_of: Callable[[str], Node] | None = None
        self._masters: frozenset[Node] = frozenset()
        self._slots: SlotMap | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = -LOOK_S
        self._is_lost = self._address.kind != "single"
        if self._address.kind == "single":
            self._believe(self._address.nodes[0])

    @property
    def may_move(self) -> bool:
        """Whether another server may become the one to talk to."""
        return self._address.kind != "single"

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over several servers."""
        return self._address.kind == "cluster"

    async def look(self) -> None:
        """Finds out who is master of what, unless that is known. Concurrent calls share one look,
        and a cancelled one harms no other. It takes two seconds at the longest, as a rule some
        milliseconds.

        Raises RedisUnavailable when nobody knows, or who should be the master is not; then who was
        the master goes on being taken for it.
        """
        if self._looking is None:
            if not self._is_lost:
                return
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        looking = self._looking
        try:
            await asyncio.shield(looking)
        except asyncio.CancelledError:
            if looking.cancelled():
                raise EngineClosed("the engine was stopped; nothing was sent") from None
            raise

    def lost(self, key: str) -> None:
        """Says that the server of this key answered "not here" or "not now", or not at all: the
        next ``look`` asks again."""
        self._is_lost = self._address.kind != "single"

    def pool(self, key: str) -> Pool:
        """The pool of the server that has this key, as it was last seen; another one after it was
        found elsewhere, so it is not to be kept. Raises RedisUnavailable."""
        return self._home(self._node(key)).pool

    def client(self, key: str) -> Redis:
        """A client on that pool, see ``redis.connect_client``. Raises RedisUnavailable."""
        return self._home(self._node(key)).client

    def address(self, key: str) -> str:
        """Host and port, or the path, of the server that has this key. Raises RedisUnavailable."""
        return spoken(self._node(key))

    def apart(self, keys: Iterable[str]) -> list[list[str]]:
        """These keys by the server that has them: for one pipeline to each, which a client of the
        part's first key leads to. Raises RedisUnavailable."""
        parts: dict[Node, list[str]] = {}
        for key in keys:
            parts.setdefault(self._node(key), []).append(key)
        return list(parts.values())

    def masters(self) -> list[Redis]:
        """A client for each server that has keys; none before the first look."""
        return [self._home(node).client for node in sorted(self._masters)]

    def named_masters(self) -> list[tuple[str, Redis]]:
        """The same, each with its address."""
        return [(spoken(node), self._home(node).client) for node in sorted(self._masters)]

    async def aclose(self) -> None:
        """Cuts all connections, also those that others got from a pool. Can be repeated."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        homes, self._homes = self._homes, {}
        for home in homes.values():
            await home.pool.retire()

    def _node(self, key: str) -> Node:
        if self._owner_of is None:
            raise RedisUnavailable("nobody has told yet who the master is")
        return self._owner_of(key)

    def _home(self, node: Node) -> _Home:
        home = self._homes.get(node)
        if home is None:
            from seckill.redis import connect_client

            pool = self._address.pool(
                node, connections=self._connections, timeout_s=self._timeout_s
            )
            home = self._homes[node] = _Home(pool, connect_client(pool))
        return home

    async def _look(self) -> None:
        await asyncio.sleep(self._looked_s + LOOK_S - monotonic())
        self._looked_s = monotonic()
        # Who loses a server from here on may have seen more than this look does.
        self._is_lost = False
        try:
            await self._ask()
        except BaseException:
            self._is_lost = True
            raise
        gone = [node for node in self._homes if node not in self._masters]
        for node in gone:
            await self._homes.pop(node).pool.retire()

    async def _ask(self) -> None:
        # Only who needs them pays for importing them.
        from seckill.cluster import read_slots
        from seckill.sentinel import find_master

        if self._address.kind == "sentinel":
            self._believe(await find_master(self._address))
        else:
            known = self._slots.nodes if self._slots else frozenset()
            self._slots = await read_slots(self._address, known)
            self._owner_of, self._masters = self._slots.owner_of, self._slots.masters

    def _believe(self, master: Node) -> None:
        self._owner_of = lambda key: master
        self._masters = frozenset((master,))

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled():
            # Marked as seen: whoever asked for this look may have gone.
            task.exception()


class OwnClient:
    """A client with connections of the caller's own to the server that has a key now, as a context
    manager: for reads that block, and for who needs no engine. No generator: a loop that ends
    closes all of those at once, also one inside another.

    Raises InvalidInput (the URL), and on entering RedisUnavailable.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        connections: int = 1,
        timeout_s: float | None = CONNECT_SECONDS,
    ) -> None:
        self._servers = Servers(url, connections=connections, timeout_s=timeout_s)
        self._key = key

    async def __aenter__(self) -> Redis:
        try:
            await self._servers.look()
            return self._servers.client(self._key)
        except BaseException:
            await self._servers.aclose()
            raise

    async def __aexit__(self, *exc: object) -> None:
        await self._servers.aclose()
