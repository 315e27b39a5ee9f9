"""What the commands say of keys that somebody has edited: what is damaged, and all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES, group_keys, shard_keys, stream_key
from tests.cli.conftest import Ran, run_seckill

SaleFile = Callable[..., tuple[str, Path]]
Seckill = Callable[..., Ran]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One of its own: --all means all sales that are there."""
    with EmbeddedServer(tmp_path / "redis", appendfsync="no") as server:
        yield server


@pytest.fixture
def seckill(server: EmbeddedServer, tmp_path: Path) -> Seckill:
    env = {
        "SECKILL_REDIS": server.url,
        "SECKILL_REDIS__DURABILITY": "memory",
        "SECKILL_LEDGER": f"sqlite:///{tmp_path}/ledger.db",
    }

    def run(*args: str, **more: str) -> Ran:
        options = () if args[:2] in (("ledger", "run"), ("ledger", "migrate")) else MEMORY
        done = run_seckill(*args, *options, cwd=tmp_path, **(env | more))
        assert "a bug" not in done.err, done.err
        return done

    return run


MEMORY = ("--durability", "memory")


@pytest.fixture
def sold(seckill: Seckill, sale_file: SaleFile, server: EmbeddedServer) -> str:
    """A sale with an order, of which the ledger has everything."""
    sale, path = sale_file()
    assert seckill("sale", "create", str(path), "--open").code == 0

    async def reserve() -> None:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            await engine.reserve(sale, "b1", "k", {"phone": 1})

    asyncio.run(reserve())
    assert seckill("ledger", "run", "--once").code == 0
    return sale


# -- reconcile --------------------------------------------------------------------------------


def wrong_type(client: redis.Redis, key: str) -> None:
    client.delete(key)
    client.set(key, "x")


DAMAGES: list[tuple[str, Callable[[redis.Redis, tuple[str, ...]], Any]]] = [
    (":stock is b'abc', not a number", lambda client, keys: client.hset(keys[1], "0:held", "abc")),
    (":orders is a string, not a hash", lambda client, keys: wrong_type(client, keys[3])),
    (":holds is a string, not a list", lambda client, keys: wrong_type(client, keys[4])),
    ("is damaged: InvalidInput(", lambda client, keys: client.hset(keys[0], "definition", "{")),
]


@pytest.mark.slow
def test_one_damaged_sale_hides_no_other(
    seckill: Seckill, sold: str, sale_file: SaleFile, client: redis.Redis
) -> None:
    other, path = sale_file()
    assert seckill("sale", "create", str(path), "--open").code == 0
    assert seckill("ledger", "run", "--once").code == 0
    keys = shard_keys(sold)
    before = {key: client.dump(key) for key in keys}
    for words, damage in DAMAGES:
        damage(client, keys)
        done = seckill("reconcile", "--all", "--json")
        assert (done.code, done.err) == (2, "")
        reports = {report["sale"]: report for report in done.data["sales"]}
        assert (reports[other]["ok"], reports[other]["decided"]) == (True, True)
        [said] = reports[sold]["undecided"]
        assert words in said
        assert ("(redis-cli RENAME), then see" in said) == ("is a string" in said)
        assert f"see docs/recovery.md, edited keys (seckill rebuild {sold} --force)" in said
        for key, value in before.items():
            client.delete(key)
            if value is not None:
                client.restore(key, 0, value)  # type: ignore[arg-type]
    assert seckill("reconcile", "--all").code == 0


def test_letters_that_nobody_wrote(seckill: Seckill, sold: str, client: redis.Redis) -> None:
    key = group_keys(sold, "ledger").dead
    client.hset(key, mapping={"junk": "x", "2:sale": "{", "3:sale": '{"cause": "real"}'})
    done = seckill("reconcile", sold, "--json")
    assert (done.code, done.err) == (1, "")
    [report] = done.data["sales"]
    assert report["left"] == {"dead_letter": 3}
    assert [(each["seq"], each["text"]) for each in report["drifts"]] == [
        (0, f"no letters, take them out (1): HDEL {key} junk"),
        (2, f"the letter can't be read, take it out: HDEL {key} 2:sale"),
        (3, "real"),
    ]


def test_dead_list_of_an_edited_letter(seckill: Seckill, sold: str, client: redis.Redis) -> None:
    key = group_keys(sold, "webhook").dead
    client.hset(
        key,
        mapping={
            "7:sale; rm": "junk",
            "1:sale": '{"seq":1,"at_ms":1,"subject":"sale","value":"opened|","parked":false,'
            '"cause":"HTTP 410","attempts":3,"since_ms":1}',
        },
    )
    done = seckill("dead", "list", sold)
    assert done.code == 1
    assert "HTTP 410" in done.out
    assert "the letter '7:sale; rm' can't be read" in done.err
    assert f"redis-cli HDEL '{key}' '7:sale; rm'" in done.err
    assert seckill("dead", "drop", sold, "--all").code == 0
    alone = seckill("dead", "list", sold, "--json")
    assert (alone.code, alone.data) == (1, [])
    client.hdel(key, "7:sale; rm")
    assert seckill("dead", "list", sold).code == 0


# -- verify -----------------------------------------------------------------------------------


def test_verify_names_what_can_not_be_read(
    seckill: Seckill, sold: str, client: redis.Redis
) -> None:
    header, stock, buyers, orders, *_ = shard_keys(sold)
    [order] = [bytes(name).decode() for name in client.hkeys(orders)]  # type: ignore[union-attr]
    assert seckill("verify", sold).code == 0
    client.hset(orders, order, "junk")
    client.hset(buyers, "b1", "x")
    client.hset(stock, "0:held", "abc")
    client.hdel(stock, "0:total")
    client.hset(stock, "1:held", 9)
    last = int(client.hget(header, "seq") or 0)  # type: ignore[arg-type]
    client.xadd(stream_key(sold), {"junk": "foo"})
    [(junk_id, _)] = client.xrevrange(stream_key(sold), count=1)  # type: ignore[misc]
    for ledger in ("", None):
        env = {} if ledger is None else {"SECKILL_LEDGER": ledger}
        done = seckill("verify", sold, "--json", **env)
        assert done.code == 1
        assert done.data["events"] == last
        told = [(each["rule"], each["text"]) for each in done.data["violations"]]
        assert told[:5] == [
            (
                "damage",
                f"entry {junk_id.decode()} of {stream_key(sold)} can't be read: 'junk' 'foo'",
            ),
            (
                "damage",
                f"field 0:held of {stock} (SKU phone) is 'abc', which is no number",
            ),
            ("damage", f"field 0:total of {stock} (SKU phone) is missing"),
            ("damage", f"order {order} of {orders} is 'junk', which is no order's record"),
            ("damage", f"buyer b1 of {buyers} is 'x', which is no count of units"),
        ]
        # What is damaged is told once, and what else is wrong as well.
        assert [rule for rule, _ in told[5:]] == ["drift", "conservation"][: len(told) - 5]
        assert told[5][1].startswith("SKU rice: ")
    assert f"order {order}" in seckill("verify", sold, "--all").err


def test_verify_of_an_event_that_can_not_be_read(
    seckill: Seckill, sold: str, client: redis.Redis
) -> None:
    """The ledger has it still, so what follows can be replayed."""
    key = stream_key(sold)
    entries: Any = client.xrange(key)
    last_id, fields = entries[-1]
    assert len(fields) == 1
    client.xtrim(key, maxlen=len(entries) - 1, approximate=False)
    client.delete(key)
    for entry_id, its in entries[:-1]:
        client.xadd(key, its, id=entry_id)
    [subject] = fields
    client.xadd(key, {subject: "held||zz"}, id=last_id)
    done = seckill("verify", sold, "--json")
    assert done.code == 1
    assert [(each["seq"], each["rule"]) for each in done.data["violations"]] == [
        (len(entries), "damage")
    ]
    alone = seckill("verify", sold, "--json", SECKILL_LEDGER="")
    assert alone.code == 1
    assert {each["rule"] for each in alone.data["violations"]} == {"damage", "seq", "drift"}


def test_verify_with_another_ledger(seckill: Seckill, sold: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    assert seckill("ledger", "migrate", SECKILL_LEDGER=other).code == 0
    done = seckill("verify", sold, "--ledger", other)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("seckill: this Redis belongs to the ledger ")
    assert seckill("verify", sold).code == 0


# -- the list of sales ------------------------------------------------------------------------


def test_a_sale_that_is_not_in_the_list(seckill: Seckill, sold: str, client: redis.Redis) -> None:
    client.srem(SALES, sold)
    done = seckill("ledger", "status", "--json")
    assert done.code == 1
    [row] = done.data
    assert (row["state"], row["seq"], row["ledger_seq"]) == ("not in list", 3, 3)
    remedy = f"put it back: redis-cli SADD {SALES} {sold}"
    assert remedy in done.err
    assert "removed" not in seckill("ledger", "status").out
    for args in ([sold], ["--all"]):
        assert remedy in seckill("reconcile", *args).err
    client.sadd(SALES, sold)
    back = seckill("ledger", "status")
    assert (back.code, back.err) == (0, "")
    assert seckill("reconcile", sold).err == ""
