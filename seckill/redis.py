"""Connecting to Redis or Valkey: from a URL to a client, and whether that server may carry a sale.

redis-py takes longer to import than all of this package, so it is imported when a connection is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from seckill.address import CONNECT_SECONDS, read_address
from seckill.durability import Durability, replicas_of
from seckill.errors import (
    InvalidInput,
    RedisUnavailable,
    ScriptFailed,
    SeckillError,
    ServerFull,
    UnsuitableServer,
)

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.connection import AbstractConnection

__all__ = [
    "AT_LEAST",
    "CONNECT_SECONDS",
    "IN_CLUSTER",
    "Command",
    "ServerFacts",
    "ask",
    "check_server",
    "connect_client",
    "connect_pool",
    "is_transient",
    "never_connected",
    "our_errors",
    "refusal_of",
    "wanted",
]

Command = tuple[Any, ...]
"""A command and its arguments."""

VERSION_MIN: Final = (6, 2)


class ServerFacts(msgspec.Struct, frozen=True):
    """What the server said of itself. ``unverified`` lists what it would not tell; ``replicas`` is
    how many follow it."""

    version: str
    run_id: str
    durability: Durability
    unverified: tuple[str, ...] = ()
    replicas: int = 0


def connect_pool(url: str, *, connections: int, timeout_s: float | None) -> BlockingConnectionPool:
    """A pool for a URL of one server, see address.py. Raises InvalidInput."""
    address = read_address(url)
    if address.kind != "single":
        problem = "names several servers, and this talks to one"
        raise InvalidInput("url", problem, "write redis://host:6379/0 with the master's address")
    return address.pool(address.nodes[0], connections=connections, timeout_s=timeout_s)


def connect_client(pool: BlockingConnectionPool) -> Redis:
    """A client on this pool. Stream entries come as the server sends them: redis-py would make a
    dict of an entry's fields, in which a repeated field, proof of a double sale, would be lost."""
    from redis.asyncio import Redis

    client = Redis(connection_pool=pool)
    for command in ("XAUTOCLAIM", "XRANGE", "XREADGROUP"):
        client.set_response_callback(command, _as_sent)
    return client


def _as_sent(response: Any, **options: Any) -> Any:
    return response


# Errors that redis-py has no class for: the server is busy with a script, cannot write its file,
# misses its replicas, or became a replica while somebody waited for its own. It may be itself again
# in a moment. Redis 6.2 puts what a command inside a script answered behind words of its own: "ERR
# Error running script … -READONLY …".
_TRANSIENT_WORDS: Final = re.compile(
    r"^(BUSY|MISCONF|NOREPLICAS|UNBLOCKED) |^WAIT cannot be used with replica "
    r"|^.{0,200}-(MISCONF|NOREPLICAS|READONLY|MASTERDOWN) "
)


def is_transient(error: Exception) -> bool:
    """Whether to send the same call again: the connection broke, or the server is not itself."""
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError):
        return False  # A ConnectionError to redis-py, but no retry finds the right password.
    known = (
        exceptions.AskError,
        exceptions.ClusterDownError,
        exceptions.ConnectionError,
        exceptions.MasterDownError,
        exceptions.MovedError,
        exceptions.ReadOnlyError,
        exceptions.TimeoutError,
        exceptions.TryAgainError,
    )
    if isinstance(error, (*known, OSError, EOFError)):
        return True
    return _TRANSIENT_WORDS.match(str(error)) is not None


async def ask(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Sends commands in one write and returns their replies; error replies are exceptions among
    them. Raises redis-py's exceptions for a connection that breaks."""
    from redis.exceptions import ResponseError

    packed = connection.pack_commands(commands)
    await connection.send_packed_command(packed, check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def never_connected(error: Exception) -> bool:
    """Whether the connection could not even be made, so that nothing was sent."""
    if isinstance(error, TimeoutError):
        return False  # An OSError too, but one that says nothing of what was sent.
    return isinstance(error, OSError) or str(error).startswith(("Error 2 ", "Error 111 "))


def refusal_of(error: Exception) -> SeckillError:
    """Our exception for an error reply that no retry will change."""
    if isinstance(error, SeckillError):
        return error
    text = str(error)
    if "OOM" in text[:40] or "maxmemory" in text:
        return ServerFull("Redis is at maxmemory and took nothing; raise maxmemory, then retry")
    return ScriptFailed(text)


@contextmanager
def our_errors() -> Iterator[None]:
    """Turns redis-py's exceptions into ours, around calls that are not retried."""
    from redis.exceptions import RedisError

    try:
        yield
    except (RedisError, OSError) as error:
        if is_transient(error):
            said = str(error) or "no answer in time"
            raise RedisUnavailable(f"the connection to Redis broke: {said}") from None
        raise refusal_of(error) from None


async def check_server(
    client: Redis,
    durability: Durability,
    *,
    allow_unverified: bool = False,
    in_cluster: bool = False,
    may_move: bool = False,
) -> ServerFacts:
    """Asks the server whether it may carry a sale.

    Raises UnsuitableServer with the setting to change, RedisUnavailable when nobody answers.
    ``allow_unverified`` accepts a managed server that hides its configuration; ``in_cluster`` says
    whether it was reached as one of a cluster, ``may_move`` whether others say who the master is,
    so that one which is none any more is no mistake of anybody's.
    """
    from redis.exceptions import RedisError

    try:
        info: dict[str, Any] = await client.info()
    except (RedisError, OSError) as error:
        if is_transient(error):
            raise RedisUnavailable(f"no Redis answers there: {error}") from None
        raise UnsuitableServer(f"this server refused INFO: {error}") from None
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if "valkey_version" not in info and numbers < VERSION_MIN:
        raise UnsuitableServer(
            f"this server is Redis {version}; use Redis 6.2 or later, or any Valkey"
        )
    if bool(info.get("cluster_enabled")) is not in_cluster:
        what = "is not part of a cluster: write redis://" if in_cluster else IN_CLUSTER
        raise UnsuitableServer(f"this server {what}")
    if info.get("role") not in (None, "master"):
        raise (RedisUnavailable if may_move else UnsuitableServer)(
            f"this server is a {info['role']}; connect to the master"
            f" ({info.get('master_host', '?')}:{info.get('master_port', '?')})"
        )
    followers = int(info.get("connected_slaves", 0))
    if followers < (count := replicas_of(durability)):
        # One of them may be back in a moment.
        raise RedisUnavailable(
            f"{durability!r} waits for {count} replicas, and {followers} follow this server; add"
            " replicas, or wait for fewer"
        )
    unverified = []
    for name, (value, danger) in wanted(durability).items():
        try:
            got = (await client.config_get(name)).get(name)
        except (RedisError, OSError) as error:
            if is_transient(error):
                raise RedisUnavailable(f"no Redis answers there: {error}") from None
            got = None
        if got is None:
            unverified.append(name)
        elif got != value and (name not in AT_LEAST or int(got) < int(value)):
            remedy = f"set `CONFIG SET {name} {value}`"
            if name != "maxmemory-policy":
                remedy += _other_durability(durability, followers)
            raise UnsuitableServer(f"{name} is {got!r}: this server {danger}; {remedy}")
    if unverified and not allow_unverified:
        raise UnsuitableServer(
            f"this server does not tell {', '.join(unverified)}; check them with its operator,"
            " then pass allow_unverified=True"
        )
    run_id = str(info.get("run_id", ""))
    return ServerFacts(version, run_id, durability, tuple(unverified), followers)


def _other_durability(durability: Durability, followers: int) -> str:
    """What else may be asked of a server that is as it is meant to be."""
    copies = ""
    if durability == "aof":
        copies = f' "replicas:N" if the promise is N replicas ({followers} follow this server), or'
    return (
        f", or choose another durability (--durability):{copies}"
        ' "memory", that is durability="memory", if acknowledged orders may be lost'
    )


IN_CLUSTER: Final = "is part of a cluster: write redis+cluster://host:port,host:port"
AT_LEAST: Final = ("min-replicas-to-write",)


def wanted(durability: Durability) -> dict[str, tuple[str, str]]:
    """What the server's settings must be, each with the danger of anything else."""
    wanted = {"maxmemory-policy": ("noeviction", "evicts keys, so orders could vanish")}
    if durability == "memory":
        return wanted
    wanted["appendonly"] = ("yes", "keeps no append-only file")
    if durability == "aof":
        wanted["appendfsync"] = ("always", "acknowledges orders before they are on disk")
        wanted["no-appendfsync-on-rewrite"] = ("no", "stops syncing while it rewrites its file")
    else:
        danger = "goes on as a master when nobody follows it any more"
        wanted["min-replicas-to-write"] = ("1", danger)
    return wanted
