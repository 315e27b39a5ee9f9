"""Orders and questions on the hot route are answered as aiohttp's way answers them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import shard_keys
from tests.support import async_client, make_sale
from tests.web.hot import (
    BODY,
    Site,
    order,
    question,
    serving,
    token,
)


@pytest.fixture
async def site(redis_server: EmbeddedServer) -> AsyncIterator[Site]:
    async with serving(redis_server.url) as site:
        await site.known("ann", "bob")
        yield site


def story(sale: str) -> list[tuple[str, bool]]:
    """Requests, and whether they are the hot route's."""
    plain = order(sale)
    chunked = re.sub(r"Content-Length: \d+", "Transfer-Encoding: chunked", plain)
    chunked = chunked.replace(BODY, f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n")
    return [
        (plain, True),
        (plain, True),
        (order(sale, body='{"items":[{"sku":"a","quantity":2}]}'), True),
        (order(sale, buyer="bob", key="k2"), True),
        (order(sale, key="k3", body='{"items":[{"sku":"x","quantity":1}]}'), True),
        (order(sale, key="k4", body='{"items":[{"sku":"a","quantity":3}]}'), True),
        (order(sale, key="k9", body='{"items":[{"sku":"a","quantity":1}],"token":null}'), True),
        (order(sale, body="{"), True),
        (order(sale, body='{"items":[]}'), True),
        (order(sale, body='{"items":[{"sku":"a","quantity":0}]}'), True),
        (order(sale, key="b b"), True),
        (plain.replace("Host", "hOST").replace("Idempotency-Key", "idempotency-key"), True),
        (order(sale, query="?a=1"), False),
        (order(sale, buyer="eve", key="k5"), True),
        (order(sale, buyer="eve", key="k6"), True),
        (plain.replace("Idempotency-Key: k1\r\n", ""), False),
        (plain.replace("application/json", "text/plain"), False),
        (plain.replace("application/json", "application/json; charset=utf-8"), False),
        (order(sale, more="Content-Encoding: gzip\r\n"), False),
        (order(sale, more="Content-Encoding: identity\r\n"), False),
        (order(sale, more="Idempotency-Key: k1\r\n"), False),
        (order(sale, more=f"Authorization: Bearer {token('bob')}\r\n"), False),
        (order(sale, more="Seckill-Buyer: bob\r\n"), False),
        (order(sale, more="Expect: 100-continue\r\n"), False),
        (order(sale, more="Upgrade: h2c\r\n"), False),
        (order(sale, body=" " * 70_000 + BODY), False),
        (chunked, False),
        (re.sub(r"Authorization: .*\r\n", "", plain), False),
        (re.sub(r"Bearer \S+", "Bearer nonsense", plain), True),
        (re.sub(r"Bearer \S+", "nonsense", plain), True),
        (re.sub(r"Bearer \S+", "Bearer sk_nonsense", plain), False),
        (plain.replace(token("ann"), token("ann", -60)), True),
        (plain.replace(token("ann"), token("ann")[:-4] + "AAAA"), True),
        (plain.replace(token("ann"), token("a nn")), True),
        (plain.replace("Bearer", "bEARER"), True),
        (order("nope"), False),
        (order(f"%{ord(sale[0]):x}{sale[1:]}"), False),
        (order("n" * 41), False),
        (plain.replace("POST", "PUT", 1), False),
        (plain.replace("POST", "GET", 1), False),
        (plain.replace("/orders", "/orders/", 1), False),
        (plain.replace("POST ", "POST http://x", 1), False),
        (order(sale, more="Connection: close\r\n"), False),
        (plain.replace("HTTP/1.1", "HTTP/1.0"), False),
        (order(sale, more="Connection: keep-alive\r\n").replace("HTTP/1.1", "HTTP/1.0"), False),
    ]


async def test_both_ways_answer_alike(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot}) as site:
            await site.known("ann", "bob")
            sale = await site.open_sale(units=4)
            client, answers = await site.connect(), []
            for raw, is_hot in story(sale.id):
                before = site.hits
                answer = await client.ask(raw)
                answers.append(answer.plain())
                assert site.hits - before == (hot and is_hot), raw
                if not is_hot:
                    # aiohttp may end it.
                    client.writer.close()
                    client = await site.connect()
            assert site.intake.in_flight == 0
            counted = {
                key: answers.count
                for key, answers in site.intake.metrics._answers.items()
                if key[0] == "reserve"
            }
        said.append((answers, counted))
    for (raw, _), quick, slow in zip(story("…"), said[0][0], said[1][0], strict=True):
        assert quick == slow, raw
    assert said[0][1] == said[1][1]
    lines = [line.split()[1] for line, *_ in said[0][0]]
    assert lines[:6] == ["201", "200", "409", "201", "422", "409"]


def questions(sale: str, plain: str, tickets: list[str]) -> list[tuple[str, bool]]:
    """The same for questions of ann and bob for their places; ``plain`` is a sale without any."""
    mine, bobs = tickets
    good = question(sale, mine)
    return [
        (good, True),
        (question(sale, bobs, buyer="bob"), True),
        (question(sale, bobs), True),
        (question(sale, "x"), True),
        (question(sale, ""), True),
        (question(sale, "秒"), True),
        (good.replace("Seckill-Ticket", "seckill-ticket").replace("Host", "hOST"), True),
        (question(sale, mine, more="Content-Type: text/plain\r\n"), True),
        (question(sale, mine, more="Idempotency-Key: k\r\n"), True),
        (question(sale, mine, more="Content-Length: 0\r\n"), True),
        (question(sale, mine, more="If-None-Match: *\r\nRange: bytes=0-1\r\n"), True),
        (question(sale, mine, buyer="eve"), False),
        (question(sale, mine, buyer="eve"), True),
        (question(sale, mine, more=f"Seckill-Ticket: {mine}\r\n"), False),
        (good.replace(f"Seckill-Ticket: {mine}\r\n", ""), False),
        (question(sale, mine, more="Seckill-Buyer: bob\r\n"), False),
        (question(sale, mine, more=f"Authorization: Bearer {token('bob')}\r\n"), False),
        (question(sale, mine, more="Expect: 100-continue\r\n"), False),
        (question(sale, mine, more="Upgrade: h2c\r\n"), False),
        (question(sale, mine, more="Content-Encoding: identity\r\n"), False),
        (question(sale, mine, more="Content-Length: 2\r\n") + "{}", False),
        (question(sale, mine, more="Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", False),
        (re.sub(r"Authorization: .*\r\n", "", good), False),
        (re.sub(r"Bearer \S+", "Bearer nonsense", good), False),
        (good.replace(token("ann"), token("ann", -60)), False),
        (question(plain, mine), False),
        (question("none", mine), False),
        (good.replace("/me", "/me?a=1"), False),
        (good.replace("/me", "/me/"), False),
        (good.replace("/me", "/m%65"), False),
        (good.replace("GET ", "GET http://x"), False),
        (good.replace("GET", "HEAD", 1), False),
        (good.replace("GET", "POST", 1), False),
        (question(sale, mine, more="Connection: close\r\n"), False),
        (good.replace("HTTP/1.1", "HTTP/1.0"), False),
        (good.replace("GET", "DELETE", 1), False),
        (good, True),
        (order(sale), True),
    ]


async def test_places_are_told_alike(redis_server: EmbeddedServer) -> None:
    said = []
    for hot in (True, False):
        async with serving(redis_server.url, server={"hot_route": hot}) as site:
            await site.known("ann", "bob")
            plain = await site.open_sale()
            sale, tickets = await site.open_queue("ann", "bob")
            # The lane of its orders is opened by the first.
            assert not (await site.engine.reserve(sale.id, "ann", "k", {"a": 1})).ok
            client, answers = await site.connect(), []
            for raw, is_hot in questions(sale.id, plain.id, tickets):
                before = site.hits
                client.send(raw)
                answer = await client.answer(bodiless=raw.startswith("HEAD"))
                answers.append(answer.plain())
                assert site.hits - before == (hot and is_hot), raw
                if not is_hot:
                    client.writer.close()
                    client = await site.connect()
            assert site.intake.in_flight == 0
            counted = {
                key: answers.count
                for key, answers in site.intake.metrics._answers.items()
                if key[0] in ("place", "leave")
            }
        said.append((answers, counted))
    asked = questions("…", "…", ["…", "…"])
    for (raw, _), quick, slow in zip(asked, said[0][0], said[1][0], strict=True):
        assert quick == slow, raw
    assert said[0][1] == said[1][1]
    lines = [line.split()[1] for line, *_ in said[0][0]]
    assert lines[:4] == ["200", "200", "404", "404"]


async def test_a_queue_that_was_not_seen_for_a_while(site: Site) -> None:
    """What would have to be guessed is asked, by orders as well."""
    sale, (ticket,) = await site.open_queue("ann", opens_at=datetime.now(UTC))
    assert (await site.engine.reserve(sale.id, "ann", "k", {"a": 1})).ok is False
    client = await site.connect()
    shard = site.engine.at_hand(sale.id)
    assert shard is not None
    assert shard.queue is not None
    for raw in (question(sale.id, ticket), order(sale.id)):
        before = site.hits
        shard.queue._looked_s -= 60
        assert (await client.ask(raw)).http < 500
        assert site.hits == before
        assert (await client.ask(raw)).http < 500
        assert site.hits == before + 1


async def test_a_sale_made_anew(site: Site) -> None:
    sale = await site.open_sale()
    client = await site.connect()
    assert (await client.ask(order(sale.id))).http == 201
    async with async_client(site.engine.url) as redis:
        await redis.delete(*shard_keys(sale.id))
    anew = make_sale({"b": 1, "a": 2}, id=sale.id)
    async with Engine(site.engine.url, durability="memory", sweep_ms=0) as other:
        await other.create(anew)
        await other.open(sale.id)
    assert (await client.ask(order(sale.id, key="k2"))).http == 201
    assert site.hits == 2
    # Its lane is new as well.
    assert (await client.ask(order(sale.id, key="k3"))).http == 201
    assert (await client.ask(order(sale.id, key="k4"))).http == 409
    assert site.hits == 4
