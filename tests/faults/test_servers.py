"""An engine finds the master again: behind real sentinels and in a real cluster."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.errors import EngineClosed, RedisUnavailable
from seckill.keys import shard_keys
from seckill.redis import is_transient
from seckill.servers import LOOK_S, Servers
from tests.faults.topologies import (
    HOST,
    PATIENCE_S,
    SERVICE,
    SLOTS,
    ClusterGroup,
    Node,
    SentinelGroup,
    slot_of,
)

# So long that nobody is taken for dead who is only slow; and for the time that somebody is dead.
CALM_MS = 10_000
QUICK_MS = 1_000
CALLERS = 200


@asynccontextmanager
async def servers_of(url: str, **options: Any) -> AsyncIterator[Servers]:
    servers = Servers(url, **({"connections": 8, "timeout_s": None} | options))
    try:
        yield servers
    finally:
        await servers.aclose()


def by_sentinels(ports: Iterable[int]) -> str:
    return f"redis+sentinel://{','.join(f'{HOST}:{port}' for port in ports)}/{SERVICE}"


def by_cluster(group: ClusterGroup) -> str:
    return f"redis+cluster://{','.join(f'{host}:{port}' for host, port in group.addresses)}"


async def find(servers: Servers, key: str, port: int) -> None:
    """Looks as a caller whose calls fail, until the key is found there. More than once also where
    one look should do: on a slow machine the node that knows better may come too late for it."""
    began_s = time.monotonic()
    async with asyncio.timeout(2 * PATIENCE_S):
        while True:
            servers.lost(key)
            with suppress(RedisUnavailable):
                await servers.look()
                if servers.address(key) == f"{HOST}:{port}":
                    break
    print(f"found after {time.monotonic() - began_s:.3f} s")


async def write(servers: Servers, key: str) -> None:
    """Writes as an engine does: whatever breaks or refuses, it looks and tries again."""
    async with asyncio.timeout(2 * PATIENCE_S):
        while True:
            try:
                await servers.look()
                await servers.client(key).set(key, "v")
                return
            except (redis.RedisError, OSError) as error:
                if not is_transient(error):
                    raise
                servers.lost(key)
                await asyncio.sleep(0.01)


async def gone(waiting: asyncio.Task[Any]) -> None:
    """Whoever waited for an answer on this connection was told that it is broken."""
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(redis.ConnectionError):
            await waiting


# -- one server -----------------------------------------------------------------------------------


async def test_one_server_stays_where_it_is(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node:
        async with servers_of(f"redis://{HOST}:{node.port}/1") as servers:
            await servers.look()
            pool = servers.pool("k")
            await servers.client("k").set("k", "v")
            servers.lost("k")
            await servers.look()
            assert servers.pool("k") is pool is servers.pool("other")
            assert servers.address("k") == f"{HOST}:{node.port}"
            assert [await client.get("k") for client in servers.masters()] == [b"v"]
        # Also what others have got from the pool.
        with pytest.raises(redis.ConnectionError, match="no longer"):
            pool.make_connection()
        assert int(node.info("clients")["connected_clients"]) == 1


# -- looks ----------------------------------------------------------------------------------------


@pytest.mark.once
async def test_many_callers_share_few_looks() -> None:
    """Whom they ask hangs up at once, so nobody ever finds a master."""
    asked = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    async def caller(servers: Servers, looks: int) -> None:
        for _ in range(looks):
            servers.lost("k")
            with pytest.raises(RedisUnavailable, match=r"^127\.0\.0\.1:\d+: "):
                await servers.look()

    listener = await asyncio.start_server(hang_up, HOST, 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with servers_of(by_sentinels([port])) as servers:
            with pytest.raises(RedisUnavailable, match="nobody has told yet"):
                servers.pool("k")
            began_s = time.monotonic()
            await asyncio.gather(*(caller(servers, 3) for _ in range(1_000)))
            await caller(servers, 10)
            looks = 1 + (time.monotonic() - began_s) / LOOK_S
            assert 13 <= asked <= looks


@pytest.mark.once
async def test_a_look_outlives_who_asked_for_it_but_not_the_engine() -> None:
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(say_nothing, HOST, 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with servers_of(by_sentinels([port])) as servers:
            first = asyncio.create_task(servers.look())
            await connected.wait()
            second = asyncio.create_task(servers.look())
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(RedisUnavailable, match="does not answer"):
                await second
            third = asyncio.create_task(servers.look())
            await asyncio.sleep(0)
        with pytest.raises(EngineClosed):
            await third


# -- sentinels ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    folder = tmp_path_factory.mktemp("sentinels")
    with SentinelGroup(folder, down_after_ms=CALM_MS) as group:
        yield group


@pytest.mark.slow
async def test_callers_find_who_took_a_killed_masters_place(
    sentinels: SentinelGroup, tmp_path: Path
) -> None:
    old = await asyncio.to_thread(sentinels.wait_until_whole)
    ports = [port for _, port in sentinels.addresses]
    async with servers_of(by_sentinels(ports)) as servers:
        await servers.look()
        assert servers.address("k") == f"{HOST}:{old.port}"
        pool = servers.pool("k")
        await write(servers, "before")
        sentinels.set_down_after(QUICK_MS)
        old.kill()
        await asyncio.gather(*(write(servers, f"k{number}") for number in range(CALLERS)))
        sentinels.set_down_after(CALM_MS)
        new = await asyncio.to_thread(sentinels.wait_until_whole)
        assert new is not old
        await find(servers, "k", new.port)
        assert new.ask("GET", "k0") == "v"
        with pytest.raises(redis.ConnectionError, match="no longer"):
            await pool.get_connection()

        # One that knows of no failover, because all that it has ever heard of is the dead master.
        with Node(tmp_path / "a", sentinel=True) as one, Node(tmp_path / "b", sentinel=True) as two:
            for stale in (one, two):
                stale.ask("SENTINEL", "MONITOR", SERVICE, HOST, old.port, 2)
            wrong = by_sentinels([one.port, two.port])
            async with servers_of(wrong) as misled:
                with pytest.raises(RedisUnavailable, match=f":{old.port}: Error 111 "):
                    await misled.look()
            async with servers_of(by_sentinels([one.port, two.port, ports[0]])) as right:
                await find(right, "k", new.port)
    old.start()
    await asyncio.to_thread(sentinels.wait_until_whole)


@pytest.mark.slow
async def test_nobody_waits_for_a_master_that_hangs_once_there_is_another(
    sentinels: SentinelGroup,
) -> None:
    old = await asyncio.to_thread(sentinels.wait_until_whole)
    async with servers_of(by_sentinels(port for _, port in sentinels.addresses)) as servers:
        await write(servers, "before")
        own = servers.pool("k").make_connection()
        await own.connect()
        sentinels.set_down_after(QUICK_MS)
        old.pause()
        call = asyncio.create_task(servers.client("k").set("k", "v"))
        await own.send_command("PING")
        reading = asyncio.create_task(own.read_response())
        new = await asyncio.to_thread(sentinels.wait_for_new_master, old)
        sentinels.set_down_after(CALM_MS)
        assert not call.done()
        await find(servers, "k", new.port)
        await gone(call)
        await gone(reading)
        await own.disconnect()
        await write(servers, "after")
        # Nor for a sentinel that hangs.
        silent = sentinels.sentinels[0]
        silent.pause()
        await find(servers, "k", new.port)
        silent.unpause()
        old.unpause()
        await asyncio.to_thread(sentinels.wait_until_whole)


@pytest.mark.slow
async def test_a_master_that_is_a_replica_again_is_not_believed(sentinels: SentinelGroup) -> None:
    """Whom the sentinels name is asked who it is."""
    master = await asyncio.to_thread(sentinels.wait_until_whole)
    replica = next(node for node in sentinels.nodes if node is not master)
    async with servers_of(by_sentinels(port for _, port in sentinels.addresses)) as servers:
        await servers.look()
        # For 4 s or so they let it be: it might have been told so by one of them.
        master.ask("REPLICAOF", HOST, replica.port)
        servers.lost("k")
        with pytest.raises(RedisUnavailable, match="is to be the master, and is not one yet"):
            await servers.look()
        master.ask("REPLICAOF", "NO", "ONE")
        await find(servers, "k", (await asyncio.to_thread(sentinels.wait_until_whole)).port)


@pytest.mark.parametrize(
    ("front", "said", "remedy"),
    [
        ("redis+sentinel", "unknown command", "url: this is a server and no sentinel; .*26379"),
        ("redis+cluster", "cluster support disabled", "url: this server is part of no .* redis://"),
    ],
)
async def test_one_server_is_taken_for_several(
    tmp_path: Path, front: str, said: str, remedy: str
) -> None:
    with Node(tmp_path / "node") as node:
        await no_master(f"{front}://{HOST}:{node.port}", f"{said}.*; {remedy}")


async def test_a_sentinel_is_asked_for_what_it_is_not(tmp_path: Path) -> None:
    with Node(tmp_path / "watch", sentinel=True) as node:
        at = f"{HOST}:{node.port}"
        remedy = f"No such master.*; url: these sentinels watch no master '{SERVICE}'; end it with"
        await no_master(f"redis+sentinel://{at}", remedy)
        await no_master(f"redis+cluster://{at}", r"; url: this is no node .* redis\+sentinel://")


@pytest.mark.parametrize("front", ["redis+sentinel", "redis+cluster"])
async def test_nobody_is_there(front: str) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))  # And never listens.
        port = taken.getsockname()[1]
        names = rf"url: {re.escape(front)}:// names .* runs and can be reached$"
        await no_master(f"{front}://{HOST}:{port}", f"Error 111 .*; {names}")


async def no_master(at: str, problem: str) -> None:
    async with servers_of(f"{at}/{SERVICE}" if "sentinel" in at else at) as servers:
        with pytest.raises(RedisUnavailable, match=problem):
            await servers.look()


# -- a cluster ------------------------------------------------------------------------------------


async def test_a_cluster_with_one_node_and_holes(tmp_path: Path) -> None:
    """Nobody has told this node its own address, so it says none."""
    with Node(tmp_path / "node", {"cluster-enabled": "yes"}) as node:
        at = f"{HOST}:{node.port}"
        async with servers_of(f"redis+cluster://{at}") as servers:
            await servers.look()
            assert servers.masters() == []
            node.ask("CLUSTER", "ADDSLOTS", slot_of("here"))
            servers.lost("here")
            await servers.look()
            assert servers.address("here") == at
            with pytest.raises(RedisUnavailable, match=f"has slot {slot_of('{there}')}, of {{the"):
                servers.address("{there}")
            assert len(servers.masters()) == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterGroup]:
    with ClusterGroup(tmp_path_factory.mktemp("cluster"), node_timeout_ms=CALM_MS) as group:
        yield group


@pytest.mark.slow
async def test_many_sales_spread_over_a_cluster(cluster: ClusterGroup) -> None:
    await asyncio.to_thread(cluster.wait_until_whole)
    sales = [shard_keys(f"evening-{number}") for number in range(60)]
    firsts = [keys[0] for keys in sales]
    async with servers_of(by_cluster(cluster)) as servers:
        await servers.look()
        for keys in sales:
            assert len({servers.address(key) for key in keys}) == 1
            await servers.client(keys[0]).hset(keys[0], "k", "v")
        found = {servers.address(key) for key in firsts}
        assert found == {f"{HOST}:{node.port}" for node in cluster.masters()}
        parts = servers.apart(firsts)
        assert [len({servers.address(key) for key in part}) for part in parts] == [1, 1, 1]
        assert sorted(chain(*parts)) == sorted(firsts)
        counts = [await client.dbsize() for client in servers.masters()]
        assert (sum(counts), all(counts)) == (len(sales), True)
        for client in servers.masters():
            await client.flushall()


@pytest.mark.slow
async def test_a_slot_that_was_moved_is_found(cluster: ClusterGroup) -> None:
    await asyncio.to_thread(cluster.wait_until_whole)
    source = cluster.node_of("k")
    target = next(node for node in cluster.masters() if node is not source)
    async with servers_of(by_cluster(cluster)) as servers:
        await write(servers, "k")
        pool = servers.pool("k")
        await asyncio.to_thread(cluster.migrate_slot, slot_of("k"), target)
        with pytest.raises(redis.exceptions.MovedError):
            await servers.client("k").get("k")
        await find(servers, "k", target.port)
        assert await servers.client("k").get("k") == b"v"
        # The other one is still a master, so its connections were left alone.
        assert pool in [client.connection_pool for client in servers.masters()]
    await asyncio.to_thread(cluster.migrate_slot, slot_of("k"), source)


@pytest.mark.slow
async def test_nodes_that_are_behind_do_not_count(cluster: ClusterGroup, tmp_path: Path) -> None:
    """Two that have every slot, as far as they know, against one that knows of newer claims."""
    await asyncio.to_thread(cluster.wait_until_whole)
    config = {"cluster-enabled": "yes"}
    with Node(tmp_path / "a", config) as one, Node(tmp_path / "b", config) as two:
        for behind in (one, two):
            behind.ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        owner = cluster.node_of("k")
        ports = [one.port, two.port, owner.port]
        url = f"redis+cluster://{','.join(f'{HOST}:{port}' for port in ports)}"
        async with servers_of(url) as servers:
            await find(servers, "k", owner.port)
            assert len(servers.masters()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_callers_find_who_took_a_nodes_place(cluster: ClusterGroup, how: str) -> None:
    await asyncio.to_thread(cluster.wait_until_whole)
    old = cluster.node_of("k")
    # The URL names only the one that will be missing; it has told of the others by then.
    async with servers_of(f"redis+cluster://{HOST}:{old.port}") as servers:
        await write(servers, "k")
        pool, others = servers.pool("k"), servers.masters()
        cluster.set_node_timeout(QUICK_MS)
        getattr(old, how)()
        call = asyncio.create_task(servers.client("k").set("k", "v"))
        new = await asyncio.to_thread(cluster.wait_for_new_master, "k", old)
        cluster.set_node_timeout(CALM_MS)
        await find(servers, "k", new.port)
        await gone(call)
        await write(servers, "k")
        assert new.ask("GET", "k") == "v"
        with pytest.raises(redis.ConnectionError, match="no longer"):
            pool.make_connection()
        # The other masters' connections were left alone.
        assert len(set(others) & set(servers.masters())) == 2
        getattr(old, {"kill": "start", "pause": "unpause"}[how])()
        await asyncio.to_thread(cluster.wait_until_whole)


@pytest.mark.slow
async def test_nodes_that_go_by_names_or_by_none(cluster: ClusterGroup) -> None:
    await asyncio.to_thread(cluster.wait_until_whole)

    def say(name: str, value: str) -> None:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", name, value)

    try:
        say("cluster-preferred-endpoint-type", "hostname")
    except redis.ResponseError:
        pytest.skip("this server knows no names of nodes")
    owner = cluster.node_of("k")
    async with servers_of(f"redis+cluster://{HOST}:{owner.port}") as servers:
        try:
            # None has a name yet, so each says "?", and its address beside it.
            await find(servers, "k", owner.port)
            say("cluster-announce-hostname", "localhost")
            async with asyncio.timeout(PATIENCE_S):
                while servers.address("k") != f"localhost:{owner.port}":
                    servers.lost("k")
                    await servers.look()
            say("cluster-preferred-endpoint-type", "unknown-endpoint")
            # All are where the one is that was asked.
            async with servers_of(by_cluster(cluster)) as others:
                await others.look()
                assert others.address("k") == f"{HOST}:{owner.port}"
        finally:
            say("cluster-preferred-endpoint-type", "ip")
            say("cluster-announce-hostname", "")
