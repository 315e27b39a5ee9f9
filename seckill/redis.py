"""Connecting to Redis or Valkey: from a URL to a client, and whether that server may carry a sale.

redis-py takes longer to import than all of this package, so it is imported when a connection is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

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

__all__ = [
    "Durability",
    "ServerFacts",
    "check_server",
    "connect_client",
    "connect_pool",
    "is_transient",
    "never_connected",
    "our_errors",
    "refusal_of",
]

Durability = Literal["aof", "memory"]
VERSION_MIN: Final = (6, 2)
CONNECT_SECONDS: Final = 5.0


class ServerFacts(msgspec.Struct, frozen=True):
    """What the server said of itself. ``unverified`` lists what it would not tell."""

    version: str
    run_id: str
    durability: Durability
    unverified: tuple[str, ...] = ()


def connect_pool(url: str, *, connections: int, timeout_s: float | None) -> BlockingConnectionPool:
    """A pool for this URL, whose connections never retry by themselves.

    A retry below us would run a script again that its caller has given up, so every retry is ours.
    RESP2 is spoken because every server and proxy does.
    """
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    if not re.match(r"(rediss?|unix)://", str(url)):
        raise InvalidInput(
            "url",
            f"{str(url)[:60]!r} is not a Redis URL",
            "write redis://host:6379/0, rediss://… for TLS, or unix:///path/to/socket",
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInput("url", str(error), "write redis://host:6379/0") from None
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        problem = f"{parts.path[:40]!r} is not a database"
        raise InvalidInput("url", problem, "write its number, as in redis://host:6379/0")
    for option in parse_qs(parts.query, keep_blank_values=True):
        if option not in _URL_OPTIONS:
            known = ", ".join(sorted(_URL_OPTIONS))
            raise InvalidInput("url", f"{option!r} can't be set in a URL", f"write one of {known}")
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=CONNECT_SECONDS,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise InvalidInput("url", str(error), "write redis://host:6379/0") from None


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


# Errors that redis-py has no class for: the server is busy with a script, cannot write its file, or
# misses its replicas. It may be itself again in a moment. Redis 6.2 puts what a command inside a
# script answered behind words of its own: "ERR Error running script … -READONLY …".
_TRANSIENT_WORDS: Final = re.compile(
    r"^(BUSY|MISCONF|NOREPLICAS) |^.{0,200}-(MISCONF|NOREPLICAS|READONLY|MASTERDOWN) "
)
# What a URL may say beyond the address; everything else about a connection is the engine's to say.
_URL_OPTIONS: Final = frozenset(
    {
        "client_name",
        "db",
        "password",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        "username",
    }
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
            raise RedisUnavailable(f"the connection to Redis broke: {error}") from None
        raise refusal_of(error) from None


async def check_server(
    client: Redis, durability: Durability, *, allow_unverified: bool = False
) -> ServerFacts:
    """Asks the server whether it may carry a sale.

    Raises UnsuitableServer with the setting to change, RedisUnavailable when nobody answers.
    ``allow_unverified`` accepts a managed server that hides its configuration.
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
    if info.get("cluster_enabled"):
        raise UnsuitableServer("this server is part of a cluster, which is not supported yet")
    if info.get("role") not in (None, "master"):
        raise UnsuitableServer(
            f"this server is a {info['role']}; connect to the master"
            f" ({info.get('master_host', '?')}:{info.get('master_port', '?')})"
        )
    wanted = {"maxmemory-policy": ("noeviction", "evicts keys, so orders could vanish")}
    if durability == "aof":
        wanted["appendonly"] = ("yes", "keeps no append-only file")
        wanted["appendfsync"] = ("always", "acknowledges orders before they are on disk")
        wanted["no-appendfsync-on-rewrite"] = ("no", "stops syncing while it rewrites its file")
    unverified = []
    for name, (value, danger) in wanted.items():
        try:
            got = (await client.config_get(name)).get(name)
        except RedisError:
            got = None
        if got is None:
            unverified.append(name)
        elif got != value:
            remedy = f"set `CONFIG SET {name} {value}`"
            if durability == "aof" and name != "maxmemory-policy":
                remedy += ', or accept that acknowledged orders may be lost: durability="memory"'
            raise UnsuitableServer(f"{name} is {got!r}: this server {danger}; {remedy}")
    if unverified and not allow_unverified:
        raise UnsuitableServer(
            f"this server does not tell {', '.join(unverified)}; check them with its operator,"
            " then pass allow_unverified=True"
        )
    return ServerFacts(version, str(info.get("run_id", "")), durability, tuple(unverified))
