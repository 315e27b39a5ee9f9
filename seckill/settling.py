"""Waiting until replicas have what was answered, for ``durability="replicas:N"``.

WAIT answers for what its own connection has written, and on a connection that has written nothing
it answers at once. So every batch of commands ends with a write of its own (lua/note.lua) and a
WAIT behind it, and all of them leave in one write on one connection: what was answered before, by
whomever it was written, is in the stream of replication before that note.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from seckill.redis import Command, ask
from seckill.scripts import FORMAT, script

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

__all__ = ["WAIT_MS", "ask_settled", "read_settled"]

WAIT_MS: Final = 1_000
"""How long Redis waits for the replicas before it says how many have come so far."""


async def ask_settled(
    connection: AbstractConnection,
    commands: Sequence[Command],
    replicas: int,
    sale_key: str,
    wait_ms: int = WAIT_MS,
) -> list[Any]:
    """``ask``, and waits for so many replicas. ``sale_key`` is any sale's of the same server.

    Raises redis-py's exceptions: also when there are too few replicas in time, and then the same is
    to be asked again."""
    from redis.exceptions import ConnectionError as Lost

    if not replicas:
        return await ask(connection, commands)
    replies = await _ask(connection, commands, replicas, sale_key, wait_ms)
    if replies[-1] < replicas:
        raise Lost(f"{replies[-1]} of {replicas} replicas have it so far")
    return replies[:-2]


async def _ask(
    connection: AbstractConnection,
    commands: Sequence[Command],
    replicas: int,
    sale_key: str,
    wait_ms: int = WAIT_MS,
) -> list[Any]:
    """The replies, and behind them that of the note and how many replicas have it."""
    from redis.exceptions import NoScriptError

    note, wait = script("note"), ("WAIT", replicas, max(1, wait_ms))
    words = (1, sale_key, FORMAT)
    replies = await ask(connection, (*commands, ("EVALSHA", note.sha, *words), wait))
    if isinstance(replies[-2], NoScriptError):
        replies[-2:] = await ask(connection, (("EVAL", note.source, *words), wait))
    for reply in replies[-2:]:
        if isinstance(reply, Exception):
            raise reply
    return replies


async def read_settled(client: Redis, replicas: int, sale_key: str, *command: Any) -> Any:
    """The reply of a consumer group's read, once the replicas have all that it tells of: what is
    handed on must not be lost by a failover. Waits for as long as the connection lasts. Raises
    redis-py's exceptions."""
    if not replicas:
        return await client.execute_command(*command)
    pool = client.connection_pool
    connection = await pool.get_connection()
    try:
        [reply] = await ask(connection, [command])
        if isinstance(reply, Exception):
            raise reply
        # XREADGROUP says nothing when there is nothing, XAUTOCLAIM has an empty list behind the
        # cursor.
        while reply and reply[1:2] != [[]]:
            if (await _ask(connection, (), replicas, sale_key))[-1] >= replicas:
                break
        return reply
    except BaseException:
        # Whatever is still in this socket must not be read as another command's reply.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
