"""Connections to one server, all of which can be cut when it is not the one to talk to any more.

This module imports redis-py, so it is imported where a connection is made.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import ConnectionError as BrokenConnection

from seckill.url_options import Tls

__all__ = ["Leaver", "Pool", "cut", "leaving"]


class Leaver(Protocol):
    """A call that wants to know whether it ever got a connection."""

    sent: bool


leaving: ContextVar[Leaver | None] = ContextVar("leaving", default=None)
"""The call that the current task makes. Whoever waits for a connection, or for one to be made, has
sent nothing yet; from outside it looks like the wait for an answer."""


class Pool(BlockingConnectionPool):
    """A pool for one server, whose connections use ``tls`` if it is given."""

    def __init__(self, *, tls: Tls | None = None, **options: Any) -> None:
        kind = options.pop("connection_class", Connection)
        super().__init__(connection_class=_cuttable(kind), **options)
        self._tls = tls
        self._made: WeakSet[AbstractConnection] = WeakSet()
        self._retired = False

    def make_connection(self) -> AbstractConnection:
        """A connection of the caller's own, not yet connected. Raises redis-py's ConnectionError
        when this pool was retired."""
        self._check()
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        if self._tls is not None:
            connection.ssl_context = self._tls  # type: ignore[attr-defined]
        self._made.add(connection)
        return connection

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connects it, if it is not. Raises as ``make_connection``."""
        self._check()
        await super().ensure_connection(connection)

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        """A connection that is made."""
        connection: AbstractConnection
        connection = await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        if (call := leaving.get()) is not None:
            call.sent = True
        return connection

    @property
    def is_retired(self) -> bool:
        """Whether its server is no longer the one to talk to."""
        return self._retired

    async def retire(self) -> None:
        """Cuts every connection that was ever made here, whoever has it, and makes no more. Who
        waits for an answer, perhaps from a server that hangs, meets a broken connection."""
        self._retired = True
        for connection in list(self._made):
            cut(connection)
        await self.disconnect()

    def _check(self) -> None:
        if self._retired:
            raise BrokenConnection("this server is no longer the one to ask")


@cache
def _cuttable(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same kind of connection, which knows what it is told of one that was cut."""

    class Cuttable(kind):  # type: ignore[misc, valid-type]
        async def send_packed_command(self, *args: Any, **options: Any) -> None:
            try:
                await super().send_packed_command(*args, **options)
            except RuntimeError as error:
                # uvloop's word for it; asyncio throws away what is written to such a transport.
                raise BrokenConnection(str(error)) from None

    return Cuttable


def cut(connection: AbstractConnection) -> None:
    """Ends a connection at once, as if the server had: what was to be sent is thrown away, and the
    connection itself finds out when it is used. ``disconnect`` would wait for a server that hangs
    to take what is still to be sent."""
    writer = connection._writer
    if writer is not None:
        writer.transport.abort()
