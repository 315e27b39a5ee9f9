"""The queue of a sale through the engine, on a real server: tickets, places, tokens and draws."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
import redis

from seckill import queues as queues_module
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import SALES, queue_keys, shard_keys
from seckill.lane import ORDERS_BY_TOKEN
from seckill.queue import LOOK_S, Queue
from seckill.sale import Sale
from seckill.scripts import script
from seckill.status import Status
from seckill.stream import EventKind
from seckill.tokens import Keys, new_key
from seckill.verify import verify
from tests.conftest import MakeEngine, MakeSale
from tests.queued import CROWD, admission, called, close_list, joined, place, until
from tests.support import async_client, make_sale


def queue_of(engine: Engine, sale: Sale) -> Queue:
    shard = engine.at_hand(sale.id)
    assert shard is not None
    assert shard.queue is not None
    return shard.queue


@asynccontextmanager
async def monitored(url: str) -> AsyncIterator[list[str]]:
    """Every command that the server gets meanwhile. Complete at the end."""
    commands: list[str] = []
    async with async_client(url) as client, client.monitor() as monitor:
        yield commands
        async with async_client(url) as other:
            await other.echo("that was all")
        while not (text := (await monitor.next_command())["command"]).endswith("that was all"):
            commands.append(text)


@pytest.fixture(params=["queue", "shuffle", "draw"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- tickets ----------------------------------------------------------------------------------


async def test_a_buyer_has_one_ticket_everywhere(
    make_engine: MakeEngine, open_sale: MakeSale
) -> None:
    sale = await open_sale(admission=admission())
    one, two = await make_engine(), await make_engine()
    first = await one.queue.join(sale.id, "ann")
    again = await two.queue.join(sale.id, "ann")
    assert (first.status, again.status) == (Status.CREATED, Status.EXISTS)
    assert first.place is not None
    assert again.place is not None
    assert again.place.ticket == first.place.ticket
    other = await joined(two, sale, "bob")
    assert other.number == first.place.number + 1
    asked = await one.queue.place(sale.id, "bob", other.ticket)
    assert asked.status is Status.DONE
    assert asked.place is not None
    assert asked.place.number == other.number
    for buyer, ticket in (("ann", other.ticket), ("bob", "x" * 28), ("bob", "")):
        assert (await one.queue.place(sale.id, buyer, ticket)).status is Status.UNKNOWN_TICKET


async def test_where_and_when_nobody_can_join(engine: Engine, open_sale: MakeSale) -> None:
    plain = await open_sale()
    assert (await engine.queue.join(plain.id, "ann")).status is Status.NO_QUEUE
    assert (await engine.queue.leave(plain.id, "ann")).status is Status.NO_QUEUE
    assert await engine.queue.look(plain.id) is Status.NO_QUEUE
    assert (await engine.queue.join("nope", "ann")).status is Status.UNKNOWN_SALE
    later = datetime.now(UTC) + timedelta(minutes=30)
    early = await open_sale(admission=admission(joins_at=later))
    assert (await engine.queue.join(early.id, "ann")).status is Status.NOT_OPEN
    over = await open_sale(admission=admission("draw"))
    await joined(engine, over, "ann")
    await close_list(engine, over)
    assert await engine.queue.draw(over.id) is Status.DONE
    assert (await engine.queue.join(over.id, "bob")).status is Status.JOINS_CLOSED
    assert (await engine.queue.join(over.id, "ann")).status is Status.EXISTS
    ended = await open_sale(admission=admission())
    await engine.close(ended.id)
    assert (await engine.queue.join(ended.id, "ann")).status is Status.ENDED


async def test_the_commitment_is_public_from_the_creation_on(engine: Engine, mode: str) -> None:
    sale = make_sale(admission=admission(mode))
    assert (await engine.create(sale)).status is Status.CREATED
    assert (await engine.create(sale)).status is Status.EXISTS
    events = [event async for event in engine.history(sale.id)]
    assert [event.kind for event in events] == [EventKind.SALE_CREATED, EventKind.QUEUE_OPENED]
    found = await engine.queue.commitment(sale.id)
    assert found == (Status.NO_QUEUE if mode == "queue" else events[1].detail)


async def test_each_mode_sells_everything_to_those_it_calls(
    make_engine: MakeEngine, open_sale: MakeSale, mode: str
) -> None:
    sale = await open_sale({"a": 3}, admission=admission(mode, token_life_ms=60_000))
    engines = [await make_engine(), await make_engine()]
    for number, buyer in enumerate(CROWD):
        found = await joined(engines[number % 2], sale, buyer)
        assert found.number == number
        assert found.phase in (("waiting", "called") if mode == "queue" else ("joined",))
    if mode != "queue":
        await close_list(engines[0], sale)
        assert await engines[0].queue.draw(sale.id) is Status.DONE
    bought: list[str] = []

    async def sold_out() -> bool:
        for buyer in CROWD:
            found = await place(engines[0], sale, buyer)
            if found.token and buyer not in bought:
                wish = engines[1].reserve(sale.id, buyer, "k", {"a": 1}, token=found.token)
                if (await wish).status is Status.CREATED:
                    bought.append(buyer)
        return len(bought) >= 3

    await until(sold_out)
    assert len(bought) == 3
    if mode == "queue":
        # Nobody is called before who came before.
        first = CROWD[: 1 + max(map(CROWD.index, bought))]
        assert {(await place(engines[0], sale, buyer)).phase for buyer in first} == {"called"}
    assert (await engines[0].snapshot(sale.id)).stock["a"].available == 0
    assert (await verify(engines[0], sale.id)).violations == ()


async def test_who_does_not_come_is_passed_over(engine: Engine, open_sale: MakeSale) -> None:
    sale = await open_sale({"a": 1}, admission=admission(token_life_ms=1_000, overbook_max=1))
    for buyer in CROWD[:4]:
        await joined(engine, sale, buyer)

    async def bought() -> bool:
        # On a busy machine the turn may be over before the order is there; then the next one comes.
        turn = await place(engine, sale, CROWD[3])
        if not turn.token:
            return False
        outcome = await engine.reserve(sale.id, CROWD[3], "k", {"a": 1}, token=turn.token)
        return outcome.status is Status.CREATED

    await until(bought)
    view = await engine.queue.look(sale.id)
    assert not isinstance(view, Status)
    assert view.lapses >= 3


async def test_who_leaves_gives_the_turn_up_and_begins_at_the_end(
    engine: Engine, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 5}, admission=admission())
    before = await joined(engine, sale, "ann")
    await joined(engine, sale, "bob")
    turn = await called(engine, sale, "ann")
    assert turn.ticket == before.ticket
    assert (await engine.queue.leave(sale.id, "ann")).status is Status.DONE
    assert (await engine.queue.leave(sale.id, "ann")).status is Status.UNKNOWN_TICKET
    refused = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert refused.status is Status.UNKNOWN_TICKET
    again = await engine.queue.join(sale.id, "ann")
    assert again.status is Status.CREATED
    assert again.place is not None
    assert again.place.number == 2
    # The old token is void for ever, the new ticket's is good.
    refused = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert refused.status is Status.UNKNOWN_TICKET
    turn = await called(engine, sale, "ann")
    bought = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert bought.status is Status.CREATED


async def test_a_sale_that_is_made_anew_has_a_queue_of_its_own(
    make_engine: MakeEngine, open_sale: MakeSale, client: redis.Redis
) -> None:
    sale = await open_sale(admission=admission())
    engine, other = await make_engine(), await make_engine()
    old = [await joined(engine, sale, buyer) for buyer in CROWD[:3]]
    client.delete(*shard_keys(sale.id), *queue_keys(sale.id))
    client.srem(SALES, sale.id)
    assert (await engine.queue.join(sale.id, "x")).status is Status.UNKNOWN_SALE
    anew = make_sale({"a": 7}, id=sale.id, admission=admission(rate_per_s=5))
    assert (await other.create(anew)).status is Status.CREATED
    assert (await other.open(anew.id)).ok
    found = await joined(engine, anew, CROWD[2])
    assert found.number == 0
    for buyer, ticket in zip(CROWD, old, strict=False):
        answer = await engine.queue.place(sale.id, buyer, ticket.ticket)
        assert answer.status is Status.UNKNOWN_TICKET


async def test_a_restart_keeps_the_queue(tmp_path: Path) -> None:
    sale = make_sale({"a": 1}, admission=admission(overbook_max=1, token_life_ms=60_000))
    async with Engine.embedded(tmp_path / "data", timeout_ms=30_000) as engine:
        await engine.create(sale)
        await engine.open(sale.id)
        before = [await joined(engine, sale, buyer) for buyer in CROWD]
        turn = await called(engine, sale, CROWD[0])
    async with Engine.embedded(tmp_path / "data", timeout_ms=30_000) as engine:
        assert [(await joined(engine, sale, buyer)).ticket for buyer in CROWD] == [
            found.ticket for found in before
        ]
        after = await called(engine, sale, CROWD[0])
        assert (after.token, after.expires_ms) == (turn.token, turn.expires_ms)
        bought = await engine.reserve(sale.id, CROWD[0], "k", {"a": 1}, token=turn.token)
        assert bought.status is Status.CREATED
        assert (await verify(engine, sale.id)).ok


# -- what it costs ----------------------------------------------------------------------------


async def test_a_place_costs_no_call(tmp_path: Path, mode: str) -> None:
    sale = make_sale({"a": 2}, admission=admission(mode))
    with EmbeddedServer(tmp_path / "data", appendfsync="no") as server:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            await engine.create(sale)
            await engine.open(sale.id)
            tickets = [(buyer, await joined(engine, sale, buyer)) for buyer in CROWD]
            if mode != "queue":
                await close_list(engine, sale)
                assert await engine.queue.draw(sale.id) is Status.DONE
            asked, began_s = 0, monotonic()
            async with monitored(server.url) as commands:
                while monotonic() - began_s < 1:
                    for buyer, ticket in tickets:
                        answer = await engine.queue.place(sale.id, buyer, ticket.ticket)
                        assert answer.status is Status.DONE
                        asked += 1
                    await asyncio.sleep(0)
                took_s = monotonic() - began_s
            sha = script("admit").sha
            looks = [text for text in commands if text.upper().startswith(f"EVALSHA {sha.upper()}")]
            others = [
                text
                for text in commands
                if text.upper().startswith("EVALSHA") and text not in looks and ":crew" not in text
            ]
            assert others == []
            assert len(looks) <= took_s / LOOK_S + 1
            assert asked > 10 * len(looks)


def rotations(commands: list[str], sale: Sale) -> list[list[str]]:
    """The keys of a sale, each time they were written."""
    key = re.escape(queue_keys(sale.id)[0])
    written = re.compile(rf"HSET {key} keys ([0-9a-f,]+)", re.IGNORECASE)
    return [found[1].split(",") for text in commands if (found := written.match(text))]


async def test_rotations_at_the_same_time_lose_no_key(
    make_engine: MakeEngine, open_sale: MakeSale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "ROTATE_S", 0.02)
    sale = await open_sale({"a": 9}, admission=admission())
    engines = [await make_engine() for _ in range(3)]
    await engines[0].queue.look(sale.id)
    signed = [queue_of(engines[0], sale).tokens.texts[0]]
    async with monitored(engines[0].url) as commands:
        for _ in range(3):
            done = await asyncio.gather(*(engine.queue.rotate(sale.id) for engine in engines))
            assert [one.status for one in done] == [Status.DONE] * len(engines)
    accepted = set(signed)
    for keys in rotations(commands, sale):
        if keys[0] != signed[-1]:
            assert keys[0] in accepted, "it signs, and not everybody knows it"
            signed.append(keys[0])
        assert set(signed[-2:]) <= set(keys), "a key that has signed is lost"
        accepted = set(keys)
    # Each round has brought a new one, and all know it.
    assert len(signed) > 3
    for engine in engines:
        await engine.queue.look(sale.id)
        assert queue_of(engine, sale).tokens.texts[0] == signed[-1]


async def test_a_rotation_that_was_cut_off_is_ended_by_the_next(
    engine: Engine, open_sale: MakeSale, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = await open_sale({"a": 9}, admission=admission())
    await engine.queue.look(sale.id)
    before = queue_of(engine, sale).tokens.texts
    cut_off = asyncio.create_task(engine.queue.rotate(sale.id))

    async def is_coming() -> bool:
        await engine.queue.look(sale.id)
        return queue_of(engine, sale).tokens.texts != before

    await until(is_coming)
    cut_off.cancel()
    await asyncio.wait({cut_off})
    assert cut_off.cancelled()
    coming = queue_of(engine, sale).tokens.texts
    assert coming[:-1] == before
    monkeypatch.setattr(queues_module, "ROTATE_S", 0.0)
    assert (await engine.queue.rotate(sale.id)).status is Status.DONE
    assert queue_of(engine, sale).tokens.texts == (coming[-1], *before)


async def test_a_bad_token_is_refused_before_redis_is_asked(
    engine: Engine, open_sale: MakeSale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "ROTATE_S", 0.0)
    sale = await open_sale({"a": 9}, admission=admission())
    elsewhere = await open_sale({"a": 9}, admission=admission())
    for buyer in ("ann", "bob"):
        await joined(engine, sale, buyer)
        await joined(engine, elsewhere, buyer)
    good = await called(engine, sale, "ann")
    for _ in range(2):
        assert (await engine.queue.rotate(sale.id)).status is Status.DONE
    # What the last two keys have signed goes on working, and what is asked for now is signed anew.
    bought = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=good.token)
    assert bought.status is Status.CREATED
    assert (await place(engine, sale, "ann")).token != good.token
    assert (await engine.queue.rotate(sale.id)).status is Status.DONE
    fresh, keys = await place(engine, sale, "ann"), queue_of(engine, sale).tokens
    forger = Keys(sale.id, (new_key(),))
    forged = keys.token("ann", 0, 1, fresh.expires_ms)
    last = "A" if forged[-1] != "A" else "B"
    refused = {
        Status.TOKEN_INVALID: [
            f"{forged[:-1]}{last}",
            "x",
            "\u00e9" * 72,
            "=" * 72,
            fresh.ticket,
        ],
        Status.TOKEN_EXPIRED: [keys.token("ann", 0, 1, 1_000)],
        Status.TOKEN_OTHER_BUYER: [(await place(engine, sale, "bob")).token],
        Status.TOKEN_OTHER_SALE: [(await place(engine, elsewhere, "ann")).token],
        Status.TOKEN_RETIRED: [good.token],
    }
    by_nobody = forger.token("ann", 0, 1, fresh.expires_ms)
    assert await ask(engine, sale, by_nobody) in (Status.TOKEN_INVALID, Status.TOKEN_RETIRED)
    shard = engine.at_hand(sale.id)
    assert shard is not None
    before = shard.refusals.counts.copy()
    async with monitored(engine.url) as commands:
        for status, tokens in refused.items():
            for token in tokens:
                assert await ask(engine, sale, token) is status, token
    assert orders_sent(commands) == 0
    counted = {status: shard.refusals.counts[status] - before[status] for status in refused}
    assert counted == {status: len(tokens) for status, tokens in refused.items()}
    async with monitored(engine.url) as commands:
        # Nobody's order, and yet looked for: who has lost the token may repeat an order.
        assert await ask(engine, sale, "") is Status.TOKEN_NEEDED
        assert await ask(engine, sale, fresh.token) is Status.CREATED
    assert orders_sent(commands) == 2


async def ask(engine: Engine, sale: Sale, token: str) -> Status:
    return (await engine.reserve(sale.id, "ann", "k2", {"a": 1}, token=token)).status


def orders_sent(commands: list[str]) -> int:
    shas = (script(ORDERS_BY_TOKEN.verb).sha, "EVAL ")
    return sum(
        text.upper().startswith("EVAL") and any(sha.upper() in text.upper() for sha in shas)
        for text in commands
    )


async def test_a_retry_finds_its_order_when_the_token_is_over(
    make_engine: MakeEngine, open_sale: MakeSale
) -> None:
    sale = await open_sale({"a": 9}, admission=admission(token_life_ms=60_000))
    one, two = await make_engine(), await make_engine()
    await joined(one, sale, "ann")
    turn = await called(one, sale, "ann")
    # The other engine has never seen this buyer.
    bought = await two.reserve(sale.id, "ann", "k", {"a": 1}, token=turn.token)
    assert bought.status is Status.CREATED
    # As a token of the same turn is when its time is over.
    just_over_ms = int(queue_of(one, sale).turn_ms) - 1_000
    over = queue_of(one, sale).tokens.token("ann", turn.number, 1, just_over_ms)
    for engine in (one, two):
        for token in (over, ""):
            again = await engine.reserve(sale.id, "ann", "k", {"a": 1}, token=token)
            assert again.status is Status.EXISTS
            assert again.order == bought.order
        refused = await engine.reserve(sale.id, "ann", "k2", {"a": 1}, token=over)
        assert refused.status is Status.TOKEN_EXPIRED
