"""Waiting until replicas have what was answered, for ``durability="replicas:N"``.

WAIT answers for what its own connection has written, and on a connection that has written nothing
it answers at once. So a batch of commands ends with a write of its own (lua/note.lua) and a WAIT
behind it, and all of them leave in one write on one connection: what was answered before, by
whomever it was written, is in the stream of replication before that note. Who expects the commands
to write themselves saves the note, and only where they have not it is asked for afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from seckill.redis import Command, ask
from seckill.scripts import FORMAT, script
from seckill.status import Status

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

__all__ = ["WAIT_MS", "HasWritten", "ask_settled", "read_settled"]

HasWritten = Callable[[list[Any]], bool]

WAIT_MS: Final = 1_000
"""How long Redis waits for the replicas before it says how many have come so far."""


async def ask_settled(
    connection: AbstractConnection,
    commands: Sequence[Command],
    replicas: int,
    sale_key: str,
    wait_ms: int = WAIT_MS,
    *,
    has_written: HasWritten | None = None,
    others: Sequence[str] = (),
) -> list[Any]:
    """``ask``, and waits for so many replicas. ``sale_key`` is that of a sale which the commands
    are about, and ``others`` those of more: a note can only be left with one that is there.
    ``has_written`` says of the replies whether the last of these commands that could tell anything
    has written something: given where that is likely.

    Raises redis-py's exceptions: also when there are too few replicas in time, and then the same is
    to be asked again."""
    from redis.exceptions import ConnectionError as Lost

    if not replicas:
        return await ask(connection, commands)
    if has_written is not None:
        wait = ("WAIT", replicas, max(1, wait_ms))
        *replies, count = await ask(connection, (*commands, wait))
        if not has_written(replies):
            count = await _note(connection, replicas, sale_key, wait_ms)
    else:
        replies, count = await _ask(connection, commands, replicas, sale_key, wait_ms)
        for other in others:
            if count is not None:
                break
            count = await _note(connection, replicas, other, wait_ms)
    if isinstance(count, Exception):
        raise count
    # Of sales that are not there nothing was told.
    if count is not None and count < replicas:
        raise Lost(f"{count} of {replicas} replicas have it so far")
    return replies


async def _ask(
    connection: AbstractConnection,
    commands: Sequence[Command],
    replicas: int,
    sale_key: str,
    wait_ms: int = WAIT_MS,
) -> tuple[list[Any], int | None]:
    """The replies, and how many replicas have a note that was written behind them; None where there
    is no such sale."""
    from redis.exceptions import NoScriptError

    note, wait = script("note"), ("WAIT", replicas, max(1, wait_ms))
    words = (1, sale_key, FORMAT)
    replies = await ask(connection, (*commands, ("EVALSHA", note.sha, *words), wait))
    if isinstance(replies[-2], NoScriptError):
        replies[-2:] = await ask(connection, (("EVAL", note.source, *words), wait))
    for reply in replies[-2:]:
        if isinstance(reply, Exception):
            raise reply
    is_written = replies[-2][0] == Status.DONE
    return replies[:-2], replies[-1] if is_written else None


async def _note(
    connection: AbstractConnection, replicas: int, sale_key: str, wait_ms: int = WAIT_MS
) -> int | None:
    return (await _ask(connection, (), replicas, sale_key, wait_ms))[1]


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
            count = await _note(connection, replicas, sale_key)
            if count is None or count >= replicas:
                break
        return reply
    except BaseException:
        # Whatever is still in this socket must not be read as another command's reply.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
