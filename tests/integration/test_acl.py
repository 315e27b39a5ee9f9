"""The user of docs/redis.md: with just those rights a sale goes from its first order to its end."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from seckill.consumer import Consumer
from seckill.dead import DeadLetters, with_letters
from seckill.doctor import examine
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import Refused, ScriptFailed
from seckill.groups import drop_group
from seckill.keys import shard_keys
from seckill.ledger.drift import DriftKind
from seckill.ledger.fence import check
from seckill.ledger.rebuild import rebuild
from seckill.ledger.remove import remove
from seckill.status import Status
from seckill.stream import Event
from seckill.trim import trim
from seckill.verify import verify
from tests.cli.conftest import run_seckill
from tests.faults.topologies import HOST, Node
from tests.ledger.shop import Shop, open_shop
from tests.queued import admission, called, close_list, joined, until
from tests.support import async_client, make_sale, travel
from tests.unit.test_proxy_rules import COMMANDS

GUIDE = Path(__file__).parents[2] / "docs" / "redis.md"
PASSWORD = "guarded"  # noqa: S105 - of a server that lives as long as this test
# What a single server is not asked: who is master, who has which slot, who has a copy, a database
# that is not the first; and what ends a transaction that somebody else has been too quick for.
ELSEWHERE = {"cluster|nodes", "cluster|slots", "role", "select", "unwatch", "wait"}


class House(NamedTuple):
    """A server with that user. ``url`` is the user's, ``admin`` may do everything."""

    url: str
    admin: redis.Redis

    def refused(self) -> list[tuple[str, str]]:
        """What the user has asked for in vain. redis-py tells newer servers its own name, and does
        without when it may not."""
        log: Any = self.admin.acl_log()
        told = {(str(entry["reason"]), str(entry["object"])) for entry in log}
        return sorted(told - {("command", "client|setinfo")})

    def used(self) -> set[str]:
        """The commands that this server was asked, in a script or not."""
        return {name.removeprefix("cmdstat_") for name in self.admin.info("commandstats")}


def rights(user: str = "seckill") -> list[str]:
    """The rights that the guide gives a user, as ``ACL SETUSER`` takes them."""
    shown = re.search(
        rf"(?ms)^\$ redis-cli [^\n]*ACL SETUSER {user} (.*?)(?<!\\)\n", GUIDE.read_text("utf-8")
    )
    assert shown is not None, f"docs/redis.md does not show {user}"
    words = shlex.split(shown[1].replace("\\\n", " "))
    return [word for word in words if not word.startswith((">", "#"))]


def allowed() -> set[str]:
    return {word[1:] for word in rights() if word.startswith("+")}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with EmbeddedServer(tmp_path / "data") as server, redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "seckill", *rights(), f">{PASSWORD}")
        admin.config_resetstat()
        yield House(f"{server.url}?username=seckill&password={PASSWORD}", admin)


@pytest.mark.slow
async def test_a_sale_goes_from_its_first_order_to_its_end(house: House, tmp_path: Path) -> None:
    async with (
        Engine(house.url, sweep_ms=20, timeout_ms=60_000) as engine,
        open_shop(engine, house.admin, f"sqlite:///{tmp_path}/ledger.db") as shop,
    ):
        await _consume(shop)
        await _lose_and_rebuild(shop)
        await _queue(engine)
        await _draw(engine)
        assert {finding.check for finding in await examine(shop.sale.id, house.url)}
        await _inspect(shop, tmp_path)
        await _end(shop)
    assert house.refused() == []
    spare = allowed() - _subcommands(house.used()) - ELSEWHERE
    assert spare == set(), "the guide gives rights that nobody needs"


async def _consume(shop: Shop) -> None:
    """A worker that fails once, its dead letter, and one that waits for what comes."""
    sale, seen = shop.sale.id, []

    async def take(event: Event) -> None:
        seen.append(event.seq)
        if len(seen) == 1:
            raise Refused("never")

    consumer = Consumer(shop.engine, "mall", take, sales=(sale,), once=True)
    assert (await consumer.run()).dead == 1
    assert await with_letters(shop.engine.url, sale, "mall", _drop_letters) > 0
    waiting, before = Consumer(shop.engine, "mall", take, sales=(sale,)), len(seen)
    running = asyncio.create_task(waiting.run())
    for change, count in ((shop.engine.pause, 1), (shop.engine.resume, 2)):
        assert (await change(sale)).ok

        async def has_come(count: int = count) -> bool:
            return len(seen) >= before + count

        await until(has_come)
    waiting.stop()
    await running
    await shop.keep()
    async for batch in shop.engine.events(sale, group="points", follow=False):
        assert batch
    async with async_client(shop.engine.url) as client:
        await drop_group(client, sale, "mall", force=True)
        await drop_group(client, sale, "points", force=True)
        await trim(client, sale, keep_ms=0)


async def _drop_letters(letters: DeadLetters) -> int:
    assert await letters.index()
    assert await letters.retrying() == set()
    return await letters.drop(await letters.letters())


async def _lose_and_rebuild(shop: Shop) -> None:
    await shop.is_clean()
    shop.client.delete(shop.keys[4])
    assert set((await shop.compare(fix=True)).mended) == {DriftKind.ORDER_NOT_QUEUED}
    shop.client.delete(*shard_keys(shop.sale.id))
    await check(shop.engine, shop.ledger)
    assert (await shop.engine.reserve(shop.sale.id, "b", "k", {"a": 1})).status is Status.FENCED
    assert (await rebuild(shop.engine, shop.ledger, shop.sale.id)).done
    assert (await shop.engine.resume(shop.sale.id)).ok
    outcome = await shop.engine.reserve(shop.sale.id, "b", "k", {"a": 1})
    assert outcome.order is not None
    shop.orders["b"] = outcome.order.id


async def _queue(engine: Engine) -> None:
    """One that calls in turn, and an order that nobody pays."""
    sale = make_sale({"a": 2}, admission=admission())
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    await joined(engine, sale, "ann")
    token = (await called(engine, sale, "ann")).token
    assert (await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=token)).ok
    await travel(engine, sale.id, sale.hold_ms)

    async def has_lapsed() -> bool:
        return sum(line.held for line in (await engine.snapshot(sale.id)).stock.values()) == 0

    await until(has_lapsed)
    await joined(engine, sale, "bob")
    assert (await engine.queue.leave(sale.id, "bob")).ok


async def _draw(engine: Engine) -> None:
    """A ticket that is given up before and one after the list is closed, and one that is drawn."""
    sale = make_sale({"a": 2}, admission=admission("draw"))
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    for buyer in ("ann", "bob", "cat"):
        await joined(engine, sale, buyer)
    assert (await engine.queue.leave(sale.id, "bob")).ok
    await close_list(engine, sale)
    assert (await called(engine, sale, "ann")).token


async def _inspect(shop: Shop, folder: Path) -> None:
    ask = ("inspect", shop.sale.id, "--redis", shop.engine.url, "--json")
    done = await asyncio.to_thread(run_seckill, *ask, cwd=folder)
    assert done.code == 0, done.err
    assert None not in done.data["memory_bytes"].values()


async def _end(shop: Shop) -> None:
    sale = shop.sale.id
    for order in shop.orders.values():
        await shop.engine.release(sale, order)
    assert (await shop.engine.close(sale)).ok
    assert (await verify(shop.engine, sale, ledger=shop.ledger)).ok
    await shop.keep()
    assert (await remove(shop.engine, shop.ledger, sale)).keys


def _subcommands(used: set[str]) -> set[str]:
    """Redis 6 counts ``config``, later ones ``config|get``; the guide's words are for both."""
    return (
        used
        | {name.partition("|")[0] for name in used}
        | {right for right in allowed() if right.partition("|")[0] in used}
    )


async def test_a_right_that_is_missing_is_noticed(house: House) -> None:
    house.admin.execute_command("ACL", "SETUSER", "seckill", "-xadd")
    sale = make_sale()
    async with Engine(house.url, sweep_ms=0, timeout_ms=60_000) as engine:
        with pytest.raises(ScriptFailed):
            await engine.create(sale)
    assert house.refused() == [("command", "xadd")]


async def test_who_may_not_ask_for_memory_sees_all_the_rest(house: House, tmp_path: Path) -> None:
    house.admin.execute_command("ACL", "SETUSER", "seckill", "-memory|usage")
    sale = make_sale()
    async with Engine(house.url, sweep_ms=0, timeout_ms=60_000) as engine:
        assert (await engine.create(sale)).ok
    ask = ("inspect", sale.id, "--redis", house.url)
    shown = await asyncio.to_thread(run_seckill, *ask, cwd=tmp_path)
    assert (shown.code, shown.out.count("unknown")) == (0, len(shard_keys(sale.id)))
    assert "+memory|usage" in shown.err
    told = await asyncio.to_thread(run_seckill, *ask, "--json", cwd=tmp_path)
    assert told.data["memory_bytes"] == dict.fromkeys(shard_keys(sale.id))


def test_the_user_sees_nothing_else(house: House) -> None:
    house.admin.set("mall:cart", "1")
    with redis.Redis.from_url(house.url) as client:
        for command in (("GET", "mall:cart"), ("FLUSHALL",), ("CONFIG", "SET", "save", "")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_a_node_of_a_cluster_tells_it_where_everybody_is(tmp_path: Path) -> None:
    with Node(tmp_path / "node", {"cluster-enabled": "yes"}) as node:
        node.ask("ACL", "SETUSER", "seckill", *rights(), f">{PASSWORD}")
        with _as_user(node, "seckill") as client:
            assert client.execute_command("CLUSTER SLOTS") == []
            assert b"myself" in client.execute_command("CLUSTER NODES").encode()
            assert client.execute_command("ROLE")[0] == "master"
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command("CLUSTER FORGET", "x")


def test_a_sentinel_tells_its_own_user_who_is_master(tmp_path: Path) -> None:
    with Node(tmp_path / "watch", sentinel=True) as node:
        node.ask("ACL", "SETUSER", "seckill-watch", *rights("seckill-watch"), f">{PASSWORD}")
        with _as_user(node, "seckill-watch") as client:
            assert client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "sale") is None
            with pytest.raises(redis.exceptions.ResponseError, match="No such master"):
                client.execute_command("SENTINEL MASTER", "sale")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command("SENTINEL FAILOVER", "sale")


@contextmanager
def _as_user(node: Node, user: str) -> Iterator[Any]:
    with redis.Redis(
        HOST, node.port, username=user, password=PASSWORD, protocol=2, decode_responses=True
    ) as client:
        # As they come: redis-py would make a dict of some.
        client.response_callbacks.clear()
        yield client


def test_the_scripts_may_call_what_they_call() -> None:
    assert {name.lower() for name in COMMANDS} <= allowed()
