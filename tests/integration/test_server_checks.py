"""The wrong server, or none: each a clear typed error, and nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, RedisUnavailable, SeckillError, UnsuitableServer
from seckill.status import Status
from tests.databases import free_port
from tests.faults.proxy import Command, Fate, Proxy
from tests.support import make_sale

# -- the wrong server ---------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts servers of this test's own, with directives that the shared one must not have."""
    servers: list[EmbeddedServer] = []

    def start(appendfsync: str = "always", **config: str) -> EmbeddedServer:
        directives = {name.replace("_", "-"): value for name, value in config.items()}
        server = EmbeddedServer(
            tmp_path / str(len(servers)), appendfsync=appendfsync, config=directives
        )
        servers.append(server)
        server.start()
        return server

    yield start
    # A master that is told to stop waits for its replicas, so these go first.
    for server in reversed(servers):
        server.stop()


async def refused(url: str, match: str, **options: Any) -> None:
    engine = Engine(url, **options)
    with pytest.raises(UnsuitableServer, match=match):
        await engine.start()
    # What was opened for the check is closed again; the same engine may be tried once more.
    with pytest.raises(UnsuitableServer, match=match):
        await engine.start()


def is_empty(server: EmbeddedServer) -> bool:
    with redis.Redis.from_url(server.url) as client:
        return client.dbsize() == 0


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_a_server_that_evicts(start: Callable[..., EmbeddedServer], policy: str) -> None:
    server = start(maxmemory_policy=policy)
    match = f"maxmemory-policy is '{policy}': .*evicts.*CONFIG SET maxmemory-policy noeviction"
    await refused(server.url, match)
    await refused(server.url, match, durability="memory")
    await refused(server.url, match, durability="memory", allow_unverified=True)
    assert is_empty(server)


@pytest.mark.parametrize(
    ("appendfsync", "config", "match"),
    [
        ("everysec", {}, "appendfsync is 'everysec'.*before they are on disk.*CONFIG SET"),
        ("no", {}, "appendfsync is 'no'"),
        ("always", {"appendonly": "no"}, "appendonly is 'no'.*no append-only file"),
        (
            "always",
            {"no_appendfsync_on_rewrite": "yes"},
            "no-appendfsync-on-rewrite is 'yes'.*while it rewrites",
        ),
    ],
)
async def test_a_server_that_may_lose_orders(
    start: Callable[..., EmbeddedServer], appendfsync: str, config: dict[str, str], match: str
) -> None:
    server = start(appendfsync, **config)
    await refused(server.url, match)
    await refused(server.url, 'durability="memory"', allow_unverified=True)
    await refused(server.url, r'--durability\): "replicas:N" .* \(0 follow this server\), or "mem')
    assert is_empty(server)
    async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
        assert engine.facts is not None
        assert engine.facts.durability == "memory"


async def test_the_server_that_suits(start: Callable[..., EmbeddedServer]) -> None:
    async with Engine(start().url) as engine:
        assert engine.facts is not None
        assert engine.facts.unverified == ()
        assert len(engine.facts.run_id) == 40


async def test_a_replica(start: Callable[..., EmbeddedServer]) -> None:
    port = free_port()
    master = start(port=str(port), bind="127.0.0.1")
    replica = start(replicaof=f"127.0.0.1 {port}")
    await refused(replica.url, rf"is a slave; connect to the master \(127\.0\.0\.1:{port}\)")
    await refused(replica.url, "is a slave", durability="memory", allow_unverified=True)
    assert is_empty(master)
    async with Engine(f"redis://127.0.0.1:{port}") as engine:
        assert (await engine.create(make_sale())).status is Status.CREATED


async def test_a_server_that_hides_its_configuration(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as client:
        client.execute_command(
            "ACL", "SETUSER", "mall", "on", ">secret", "~sk:*", "+@all", "-config"
        )
    url = server.url.replace("unix://", "unix://mall:secret@")
    hidden = "maxmemory-policy, appendonly, appendfsync, no-appendfsync-on-rewrite"
    await refused(url, f"does not tell {hidden}.*allow_unverified=True")
    await refused(url, "does not tell maxmemory-policy; ", durability="memory")
    assert is_empty(server)
    async with Engine(url, allow_unverified=True, sweep_ms=0) as engine:
        assert engine.facts is not None
        assert ", ".join(engine.facts.unverified) == hidden
        sale = make_sale()
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
        assert (await engine.reserve(sale.id, "ann", "k", {"a": 1})).ok


async def test_a_connection_that_is_lost_while_it_is_checked(
    start: Callable[..., EmbeddedServer],
) -> None:
    """That says nothing of the server's fitness."""

    async def judge(command: Command) -> Fate:
        return Fate.CUT_BEFORE if command.args[0] == b"CONFIG" else Fate.PASS

    async with Proxy(start().url) as proxy:
        proxy.judge = judge
        with pytest.raises(RedisUnavailable):
            await Engine(proxy.url).start()


def test_an_embedded_server_has_no_replicas(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="needs a server with replicas"):
        Engine.embedded(tmp_path, durability="replicas:1")


async def test_a_server_whose_config_command_has_another_name(
    start: Callable[..., EmbeddedServer],
) -> None:
    server = start(rename_command='CONFIG ""')
    await refused(server.url, "does not tell")
    async with Engine(server.url, allow_unverified=True):
        pass


async def test_a_user_who_may_not_even_ask_who_it_is(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "mall", "on", ">secret", "~*", "+@all", "-info")
    await refused(server.url.replace("unix://", "unix://mall:secret@"), "refused INFO")


@asynccontextmanager
async def stand_in(**info: str) -> AsyncIterator[str]:
    """The URL of something that says OK to whatever it is asked, and to INFO what it is told to:
    no old server is at hand, and only its version matters."""
    text = "\r\n".join(f"{name}:{value}" for name, value in info.items()).encode()
    answer = b"$%d\r\n%s\r\n" % (len(text), text)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            writer.write(answer if words[0].upper() == b"INFO" else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"redis://{host}:{port}"


@pytest.mark.parametrize("version", ["5.0.14", "6.0.20", "2.8.19"])
async def test_a_server_that_is_too_old(version: str) -> None:
    async with stand_in(redis_version=version, role="master") as url:
        await refused(url, f"is Redis {version}; use Redis 6.2 or later, or any Valkey")


async def test_a_server_that_keeps_its_version_to_itself() -> None:
    async with stand_in(role="master") as url:
        await refused(url, "use Redis 6.2 or later")


async def test_a_server_that_wants_a_password(start: Callable[..., EmbeddedServer]) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "secret")
    with pytest.raises(SeckillError, match=r"NOAUTH|[Aa]uthentication"):
        await Engine(server.url).start()
    async with Engine(server.url.replace("unix://", "unix://:secret@")):
        pass


# -- no server ----------------------------------------------------------------------------------


async def test_nobody_there(tmp_path: Path) -> None:
    for url in (f"redis://127.0.0.1:{free_port()}", f"unix://{tmp_path}/nobody.sock"):
        engine = Engine(url, timeout_ms=500)
        with pytest.raises(RedisUnavailable, match="no Redis answers there"):
            await engine.start()
        await engine.aclose()


async def test_somebody_there_who_hangs_up() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RedisUnavailable):
            await Engine(f"redis://127.0.0.1:{port}", timeout_ms=500).start()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis:/localhost",
        "REDIS//x",
        "redis://localhost:port",
        "redis://localhost:6379/0?socket_timeout=soon",
    ],
)
async def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^url: "):
        await Engine(url).start()


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_ms": 0},
        {"timeout_ms": 1.5},
        {"timeout_ms": True},
        {"lane_depth": 0},
        {"lane_depth": -1},
        {"batch_max": 0},
        {"batch_max": 1_001},
        {"sweep_ms": -1},
        {"sweep_ms": "500"},
        {"durability": "disk"},
        {"durability": "replicas:0"},
    ],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"^{next(iter(options))}: "):
        Engine("redis://localhost", **options)
