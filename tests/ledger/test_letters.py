"""A poison event ends in the dead letters with its error and stops nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import event, text

import seckill.ledger.letters as letters_module
from seckill.dead import DeadLetters, Letter, with_letters
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import group_keys, shard_keys, stream_key
from seckill.ledger import Ledger, rows
from seckill.ledger.run import GROUP, LedgerRunner, Written
from seckill.order import Outcome, Wish
from seckill.sale import Sale
from seckill.stream import ORDER_KINDS, EventKind
from tests.cli.conftest import run_seckill
from tests.databases import DatabaseServer
from tests.ledger.stories import differences, running, until
from tests.support import make_sale

ORDER = "00" + 22 * "a"

# Poison, and what its letter says. Each holds words that nobody may read in a log or a cause.
POISON = {
    "a kind of a later version": (ORDER, "shipped||c2------900000|0|secret|p", "kind 'shipped'"),
    "a kind of a later version of the sale": ("sale", "moved|secret", "kind 'moved'"),
    "no words at all": (ORDER, "secret secret", "can't be read"),
    "no record": (ORDER, "held||", "can't be read"),
    "a number that is none": (ORDER, "held||h1------secret|0|secret|", "can't be read"),
    "a cart that is none": (ORDER, "held||h1------900000|secret|secret|", "can't be read"),
    "an SKU that the sale has not": (ORDER, "held||h1------900000|77|secret|", "can't be read"),
    "a state that is none": (ORDER, "held||q1------900000|0|secret|", "can't be read"),
    "no text": (ORDER, b"\xff\xfe|secret", "can't be read"),
    "a number out of range": (ORDER, f"held||h1------{9 * 10**20}|0|secret|", "RowRefused: "),
}


@pytest.fixture
async def sale(engine: Engine) -> Sale:
    return await make(engine)


@pytest.fixture
async def ledger(tmp_path: Path) -> Any:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


async def make(engine: Engine) -> Sale:
    sale = make_sale({"a": 20_000, "b": 10})
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale


async def sell(engine: Engine, sale: Sale, count: int, first: int = 0) -> None:
    wishes = [Wish(f"b{n}", "k", {"a": 1}, "room=1") for n in range(first, first + count)]
    for outcome in await engine.reserve_many(sale.id, wishes):
        assert isinstance(outcome, Outcome)
        assert outcome.ok


def poison(client: redis.Redis, sale: Sale, subject: str, value: Any) -> int:
    """Adds an event as a script would; its seq."""
    seq = client.hincrby(shard_keys(sale.id)[0], "seq", 1)
    last_ms: Any = client.hget(shard_keys(sale.id)[0], "last_ms")
    client.xadd(stream_key(sale.id), {subject: value}, id=f"{int(last_ms)}-{seq}")
    return int(seq)  # type: ignore[arg-type]


async def run_once(engine: Engine, ledger: Ledger, *sales: Sale) -> Written:
    names = [sale.id for sale in sales]
    return await LedgerRunner(engine, ledger, sales=names, once=True).run()


async def letters_of(engine: Engine, sale: Sale) -> list[Letter]:
    return await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.letters())


async def retry(engine: Engine, sale: Sale, *subjects: str) -> None:
    await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.retry(subjects))


def learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a later version knows."""
    monkeypatch.setitem(ORDER_KINDS, "shipped", EventKind.CONFIRMED)
    monkeypatch.setitem(rows._ORDER_TEXTS, "shipped", str(EventKind.CONFIRMED))


async def has(ledger: Ledger, sale: Sale, *counts: int) -> bool:
    return await ledger.counts(sale.id) == counts


def pending(client: redis.Redis, sale: Sale) -> int:
    (group,) = client.xinfo_groups(stream_key(sale.id))
    return group["pending"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", POISON)
async def test_one_among_many(
    engine: Engine, client: redis.Redis, ledger: Ledger, sale: Sale, what: str, caplog: Any
) -> None:
    subject, value, cause = POISON[what]
    await sell(engine, sale, 500)
    seq = poison(client, sale, subject, value)
    await sell(engine, sale, 500, 500)
    other = await make(engine)
    await sell(engine, other, 100)
    with caplog.at_level(logging.ERROR, "seckill.ledger"):
        done = await run_once(engine, ledger, sale, other)
    assert (done.events, done.dead, done.left) == (1_002 + 102, 1, 0)
    assert await ledger.counts(sale.id) == (1_002, 1_000)
    assert await differences(ledger, engine, other.id) == []
    (letter,) = await letters_of(engine, sale)
    assert (letter.seq, letter.subject, letter.parked, letter.attempts) == (seq, subject, False, 1)
    assert letter.value == (value if isinstance(value, str) else value.decode(errors="replace"))
    assert cause in letter.cause
    assert f"{sale.id}:{seq}" in caplog.text
    assert "secret" not in letter.cause + caplog.text
    assert len(letter.cause) <= 300
    assert pending(client, sale) == 0


async def test_what_the_database_refuses(
    engine: Engine, client: redis.Redis, database_server: DatabaseServer, sale: Sale
) -> None:
    """Several of them, among thousands, of an order that goes on."""
    await sell(engine, sale, 1_500)
    told = {"postgresql": "NUL character", "mariadb": "too long for column 'buyer'"}
    value = "held||h1------900000|0|secret\0|"
    if database_server.name == "mariadb":
        value = f"held||h1------900000|0|{'secret' * 20}|"
    seqs = []
    for number in range(5):
        seqs.append(poison(client, sale, "00" + 22 * str(number), value))
        await sell(engine, sale, 100, 1_500 + 100 * number)
    later = poison(client, sale, "00" + 22 * "0", "paying||p2------900000|0|buyer-0")
    async with database_server.database() as url, Ledger(url) as ledger:
        done = await run_once(engine, ledger, sale)
        assert (done.dead, done.left) == (5, 0)
        assert await ledger.counts(sale.id) == (later - 5, 2_001)
    letters = await letters_of(engine, sale)
    assert [letter.seq for letter in letters] == seqs
    assert told[database_server.name] in letters[0].cause
    assert "secret" not in letters[0].cause


@pytest.mark.slow
async def test_retried_after_the_fix(
    engine: Engine,
    client: redis.Redis,
    ledger: Ledger,
    sale: Sale,
    server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the command line, as the person on duty has it; the fix is a version that knows more."""

    def dead(*words: str) -> Any:
        options = ("--group", "ledger", "--redis", server.url, "--durability", "memory")
        return run_seckill("dead", *words, *options, cwd=tmp_path)

    seq = poison(client, sale, ORDER, "shipped||c3------900000|0|b1|p")
    poison(client, sale, ORDER, "released||r4------900000|0|b1")
    assert (await run_once(engine, ledger, sale)).dead == 1
    listed = dead("list", sale.id)
    assert listed.code == 1
    assert "events of the kind" in " ".join(listed.out.split())
    assert dead("retry", sale.id, "00" + 22 * "f").code == 1

    # Too early: it is tried, and stays.
    assert "1 event" in dead("retry", sale.id, ORDER).out
    assert (await run_once(engine, ledger, sale)).events == 0
    (letter,) = await letters_of(engine, sale)
    assert (letter.seq, letter.attempts) == (seq, 2)

    learn(monkeypatch)
    assert dead("retry", sale.id, "--all").code == 0
    assert (await run_once(engine, ledger, sale)).events == 1
    assert dead("list", sale.id).code == 0
    assert client.exists(*group_keys(sale.id, GROUP)) == 0
    orders = [row async for part in ledger.orders(sale.id, "state", "version") for row in part]
    # It came last, and moved nothing back.
    assert orders == [("released", 4)]
    assert await ledger.counts(sale.id) == (4, 1)


async def test_retried_after_the_column_was_made_longer(
    engine: Engine, client: redis.Redis, database_server: DatabaseServer, sale: Sale
) -> None:
    """Beside the runner that made it a dead letter."""
    poison(client, sale, ORDER, f"held||h1------900000|0|{'b' * 80}|")
    keys = group_keys(sale.id, GROUP)
    change = "ALTER COLUMN buyer TYPE VARCHAR(100)"
    if database_server.name == "mariadb":
        change = "MODIFY COLUMN buyer VARCHAR(100) NOT NULL"
    async with database_server.database() as url, Ledger(url) as ledger:
        async with running(engine, ledger, sales=[sale.id]):
            await until(lambda: client.hlen(keys.dead) == 1)
            async with ledger.engine.begin() as connection:
                await connection.execute(text(f"ALTER TABLE seckill_orders {change}"))
            await retry(engine, sale, ORDER)
            await until(lambda: not client.exists(*keys))
        assert await ledger.counts(sale.id) == (3, 1)


async def test_a_dropped_letter_stays_away(
    engine: Engine, client: redis.Redis, ledger: Ledger, sale: Sale
) -> None:
    poison(client, sale, ORDER, "shipped||")
    await run_once(engine, ledger, sale)
    letters = await letters_of(engine, sale)

    async def drop(dead: DeadLetters) -> int:
        return await dead.drop(letters)

    assert await with_letters(engine.url, sale.id, GROUP, drop) == 1
    assert (await run_once(engine, ledger, sale)).events == 0
    assert client.exists(*group_keys(sale.id, GROUP)) == 0


async def test_what_is_no_poison(
    engine: Engine, client: redis.Redis, database_url: str, sale: Sale, caplog: Any
) -> None:
    """A table that is missing is nobody's fault among the events; they wait for it."""
    await sell(engine, sale, 50)
    rename = "ALTER TABLE {} RENAME TO {}"

    async def run(ledger: Ledger, statement: str) -> None:
        async with ledger.engine.begin() as connection:
            await connection.execute(text(statement))

    async with Ledger(database_url) as ledger:
        await run(ledger, rename.format("seckill_orders", "gone"))
        with caplog.at_level(logging.WARNING, "seckill.ledger"):
            async with running(engine, ledger, sales=[sale.id]) as runner:
                await until(lambda: "seckill ledger migrate" in caplog.text)
                assert pending(client, sale) > 0
                await run(ledger, rename.format("gone", "seckill_orders"))
                await until(lambda: has(ledger, sale, 52, 50))
        assert runner.written.dead == 0
        assert await differences(ledger, engine, sale.id) == []
    assert client.exists(group_keys(sale.id, GROUP).dead) == 0


@pytest.mark.slow
async def test_a_full_disk_is_no_poison(
    engine: Engine, client: redis.Redis, ledger: Ledger, sale: Sale, caplog: Any
) -> None:
    """As SQLite says it when it may not have another page."""
    await sell(engine, sale, 2_000)
    await ledger.aclose()
    limits = {"pages": 40}

    @event.listens_for(ledger.engine.sync_engine, "checkout")
    def limit(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {limits['pages']}")
        cursor.close()

    with caplog.at_level(logging.WARNING, "seckill.ledger"):
        async with running(engine, ledger, sales=[sale.id], reclaim_ms=500) as runner:
            await until(lambda: "free some space" in caplog.text)
            limits["pages"] = 1_000_000
            await until(lambda: has(ledger, sale, 2_002, 2_000))
    assert runner.written.dead == 0
    assert client.exists(group_keys(sale.id, GROUP).dead) == 0
    assert await differences(ledger, engine, sale.id) == []


async def test_there_is_an_end_to_letters(
    engine: Engine,
    client: redis.Redis,
    ledger: Ledger,
    sale: Sale,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    """A version that is too old for a sale must not fill Redis: the rest waits in the stream."""
    monkeypatch.setattr(letters_module, "DEAD_MAX", 3)
    other = await make(engine)
    for number in range(6):
        poison(client, sale, f"00{number:022d}", "shipped||c1------900000|0|b1|p")
    key = group_keys(sale.id, GROUP).dead
    with caplog.at_level(logging.ERROR, "seckill.ledger"):
        async with running(engine, ledger, sales=[sale.id, other.id]):
            await sell(engine, other, 50)
            await until(lambda: has(ledger, other, 52, 50))
            await until(lambda: "is left out for now" in caplog.text)
            assert client.hlen(key) == 3
            assert pending(client, sale) > 0
            # A newer version comes, and what was waiting goes in by itself.
            learn(monkeypatch)
            await retry(engine, sale, *(each.subject for each in await letters_of(engine, sale)))
            await until(lambda: has(ledger, sale, 8, 6))
    assert client.hlen(key) == 0
    assert pending(client, sale) == 0
