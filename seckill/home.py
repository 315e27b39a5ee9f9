"""The server of one sale, as those see it who talk to it: which connections lead there, and what
was told of the sale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from seckill.fencing import Greeting, Told
from seckill.patience import Patience

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from seckill.pipe import Pipe

__all__ = ["Home", "Servers"]


class Servers(Protocol):
    """What a home needs of the calls of its engine."""

    replicas: int

    def connection(self, key: str) -> AbstractConnection:
        """A connection of the caller's own to the server that has this key, not yet connected."""

    def pipe(self, key: str) -> Pipe:
        """The pipe to that server."""

    async def look(self) -> None:
        """Finds out which server has what, if that is in doubt."""

    def lost(self, key: str) -> None:
        """Whoever asked that server met an error which says "not here", or "not now"."""

    def met_new_server(self, key: str) -> None:
        """The server of this sale is not the one it was sold on before, or lacks what was told."""


class Home:
    """One sale's. ``sale_key`` is the key of its header; ``replicas`` is how many must have what is
    answered."""

    def __init__(self, servers: Servers, sale_key: str) -> None:
        self._servers = servers
        self.sale_key = sale_key
        self.told = Told()
        self.patience = Patience()
        self.replicas = servers.replicas

    async def connection(self, greeting: Greeting) -> AbstractConnection:
        """A connection of the caller's own, not yet connected, that will ask for ``greeting``."""
        await self._servers.look()
        connection = self._servers.connection(self.sale_key)
        greeting.meet(connection)
        return connection

    def pipe(self) -> Pipe:
        """The pipe to that server."""
        return self._servers.pipe(self.sale_key)

    def lost(self) -> None:
        """A connection broke, or its server is not the master any more."""
        self._servers.lost(self.sale_key)

    def met_new_server(self) -> None:
        """A script answered NEW_SERVER."""
        self._servers.met_new_server(self.sale_key)
