"""The queue over HTTP: a ticket, its place, the token of its turn, and what each costs Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yaml

from seckill import queue as queue_module
from seckill import queues as queues_module
from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.keys import queue_keys
from seckill.queue import Place, Queue
from seckill.sale import Sale
from seckill.server import create_app
from seckill.server.etas import EtaErrors
from seckill.server.wire_queue import poll_after_ms
from seckill.status import Status
from seckill.tokens import Keys
from tests.support import async_client, make_sale
from tests.web.intake import Answer, Intake
from tests.web.intake import serving as serving_app
from tests.web.test_gate import by_header
from tests.web.test_hot_route import serving, token

ALERTS = Path(__file__).parents[2] / "deploy" / "alerts.yml"
ORDER = {"items": [{"sku": "a", "quantity": 1}]}


def queued(**fields: Any) -> dict[str, Any]:
    """What makes a sale one with a queue."""
    return {"admission": Admission(**({"mode": "queue", "rate_per_s": 1_000} | fields))}


async def until(asked: Callable[[], Awaitable[Answer]], is_so: Callable[[Any], bool]) -> Any:
    """Asks until the answer is so."""
    async with asyncio.timeout(60):
        while True:
            said = (await asked()).json
            if is_so(said):
                return said
            await asyncio.sleep(0.05)


def tickets(sale: Sale) -> str:
    return f"/v1/sales/{sale.id}/tickets"


async def join(intake: Intake, sale: Sale, buyer: str) -> Answer:
    return await intake.post(tickets(sale), buyer=buyer)


async def place(intake: Intake, sale: Sale, buyer: str, ticket: str | None) -> Answer:
    headers = {"Seckill-Buyer": buyer} | ({} if ticket is None else {"Seckill-Ticket": ticket})
    return await intake.call("GET", f"{tickets(sale)}/me", headers=headers)


async def called(intake: Intake, sale: Sale, buyer: str) -> str:
    """The token of a buyer who joins, once it is the buyer's turn."""
    ticket = (await join(intake, sale, buyer)).json["place"]["ticket"]
    said = await until(
        lambda: place(intake, sale, buyer, ticket), lambda said: said["phase"] == "called"
    )
    return str(said["token"])


async def order(
    intake: Intake, sale: Sale, buyer: str, token: str | None, key: str = "k"
) -> Answer:
    return await intake.post(f"/v1/sales/{sale.id}/orders", ORDER | {"token": token}, buyer, key)


def queue_of(intake: Intake, sale: Sale) -> Queue:
    shard = intake.engine.at_hand(sale.id)
    assert shard is not None
    assert shard.queue is not None
    return shard.queue


# -- the way to the till ------------------------------------------------------------------------


async def test_the_way_to_the_till(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 5}, **queued())
    first = await join(intake, sale, "b1")
    assert (first.http, first.code) == (201, "created")
    assert first.headers["Cache-Control"] == "no-store"
    again = await join(intake, sale, "b1")
    assert (again.http, again.code) == (200, "exists")
    was, now = first.json["place"], again.json["place"]
    assert (now["ticket"], now["number"]) == (was["ticket"], 0)
    assert (was["token"], was["expires_ms"], was["salt"]) == (None, None, None)
    assert was["phase"] == "waiting"
    assert 1_000 <= was["poll_after_ms"] <= 30_000

    token = await called(intake, sale, "b1")
    said = (await place(intake, sale, "b1", was["ticket"])).json
    assert (said["phase"], said["token"], said["ahead"], said["eta_ms"]) == ("called", token, 0, 0)
    assert said["poll_after_ms"] is None
    assert 0 < said["expires_ms"] - said["at_ms"] <= 120_000

    for nothing in ("", None):
        said = await order(intake, sale, "b1", nothing)
        assert said.is_problem(403, "queue_token_needed"), nothing
    line = {"buyer": "b1", "key": "k", "token": None} | ORDER
    batch = await intake.post(f"/v1/sales/{sale.id}/orders:batch", {"orders": [line]})
    assert batch.json["answers"] == [{"status": 403, "code": "queue_token_needed"}]
    bought = await order(intake, sale, "b1", token)
    assert (bought.http, bought.code) == (201, "created")
    # A retry finds its order, with the token or without.
    for retry in (token, ""):
        answer = await order(intake, sale, "b1", retry)
        assert (answer.http, answer.code) == (200, "exists")


async def test_whoever_leaves_has_no_ticket(intake: Intake) -> None:
    opens_at = datetime.now(UTC) + timedelta(minutes=10)
    sale = await intake.open_sale({"a": 5}, **queued(), opens_at=opens_at)
    mine = (await join(intake, sale, "b1")).json["place"]
    behind = (await join(intake, sale, "b2")).json["place"]
    assert (mine["ahead"], behind["ahead"]) == (0, 1)
    # It begins in ten minutes, so nobody needs to ask every second.
    assert mine["poll_after_ms"] == behind["poll_after_ms"] == 30_000
    gone = await intake.call("DELETE", f"{tickets(sale)}/me", headers={"Seckill-Buyer": "b1"})
    assert (gone.http, gone.json) == (200, {"code": "done", "sale": sale.id})
    again = await intake.call("DELETE", f"{tickets(sale)}/me", headers={"Seckill-Buyer": "b1"})
    assert again.is_problem(404, "unknown_ticket")
    # Whoever comes back stands at the end.
    assert (await join(intake, sale, "b1")).json["place"]["number"] == 2


async def test_a_ticket_is_its_buyers_and_its_sales(intake: Intake) -> None:
    sale, other = [await intake.open_sale({"a": 5}, **queued()) for _ in range(2)]
    mine = (await join(intake, sale, "b1")).json["place"]["ticket"]
    assert (await place(intake, sale, "b1", mine)).http == 200
    await join(intake, other, "b1")
    for at, buyer, ticket in (
        (sale, "b2", mine),
        (other, "b1", mine),
        (sale, "b1", ""),
        (sale, "b1", mine[:-1]),
        (sale, "b1", f"{mine[:-1]}{'B' if mine[-1] == 'A' else 'A'}"),
        (sale, "b1", "秒" * 28),
    ):
        assert (await place(intake, at, buyer, ticket)).is_problem(404, "unknown_ticket"), ticket
    missing = await place(intake, sale, "b1", None)
    assert missing.is_problem(404, "unknown_ticket")
    assert missing.json["field"] == "Seckill-Ticket"
    assert "POST" in missing.json["detail"]
    twice = [("Seckill-Buyer", "b1"), ("Seckill-Ticket", mine), ("Seckill-Ticket", mine)]
    assert (await intake.call("GET", f"{tickets(sale)}/me", headers=twice)).is_problem(
        400, "invalid_input"
    )


async def test_a_ticket_whose_key_was_retired(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "ROTATE_S", 0.0)
    sale = await intake.open_sale({"a": 5}, **queued())
    old = (await join(intake, sale, "b1")).json["place"]
    for rotated in range(3):
        assert (await place(intake, sale, "b1", old["ticket"])).http == 200, rotated
        assert (await intake.engine.queue.rotate(sale.id)).ok
    gone = await place(intake, sale, "b1", old["ticket"])
    assert gone.is_problem(404, "unknown_ticket")
    assert "its key was retired" in gone.json["detail"]
    # What it says is so.
    again = await join(intake, sale, "b1")
    assert (again.code, again.json["place"]["number"]) == ("exists", old["number"])
    assert (await place(intake, sale, "b1", again.json["place"]["ticket"])).http == 200


async def test_sales_where_nobody_stands_in_line(intake: Intake) -> None:
    plain = await intake.open_sale()
    late = await intake.open_sale(
        **queued(joins_at=datetime.now(UTC) + timedelta(minutes=5)),
        opens_at=datetime.now(UTC) + timedelta(minutes=10),
    )
    assert (await join(intake, plain, "b1")).is_problem(409, "no_queue")
    assert (await place(intake, plain, "b1", "x")).is_problem(409, "no_queue")
    early = await join(intake, late, "b1")
    assert early.is_problem(409, "not_open")
    assert "joins_ms" in early.json["detail"]
    assert (await intake.post("/v1/sales/none/tickets", buyer="b1")).is_problem(404, "unknown_sale")
    nobody = await intake.post(tickets(plain))
    assert nobody.is_problem(400, "buyer_required")
    assert nobody.json["title"].startswith("this needs a user token")
    # A token where none is asked for is in nobody's way.
    assert (await order(intake, plain, "b1", "whatever")).http == 201
    # What a token can't be is not carried any further.
    assert (await order(intake, plain, "b1", "x" * 201)).json["field"] == "token"


async def lots(intake: Intake, sale: Sale, buyer: str) -> int:
    """How many lots the buyer's ticket has in the draw."""
    async with async_client(intake.engine.url) as client:
        text = await client.hget(queue_keys(sale.id)[1], buyer)
    assert text is not None
    return int(text.decode().partition(":")[2] or 1)


async def test_a_backend_names_the_tier_of_whom_it_joins(intake: Intake) -> None:
    draw_at = datetime.now(UTC) + timedelta(minutes=10)
    fields = {"mode": "draw", "draw_at": draw_at, "weights": (("gold", 3), ("vip", 5))}
    sale = await intake.open_sale({"a": 5}, admission=Admission(**fields), opens_at=draw_at)
    at = tickets(sale)
    for buyer, body, count in (
        ("b1", {"tier": "gold"}, 3),
        ("b2", {"tier": "vip"}, 5),
        ("b3", {"tier": "nobody's"}, 1),
        ("b4", {"tier": None}, 1),
        ("b5", {}, 1),
        ("b6", None, 1),
        ("b7", {"tier": "金"}, 1),
    ):
        assert (await intake.post(at, body, buyer)).http == 201
        assert await lots(intake, sale, buyer) == count
    # The ticket there is stays as it is.
    assert (await intake.post(at, {"tier": "vip"}, "b1")).code == "exists"
    assert await lots(intake, sale, "b1") == 3
    for body, field in (
        ({"tier": "x" * 65}, "tier"),
        ({"tier": ""}, "tier"),
        ({"tier": 3}, "tier"),
        ({"tiers": "gold"}, "tiers"),
    ):
        answer = await intake.post(at, body, "b8")
        assert answer.is_problem(400, "invalid_input")
        assert answer.json["field"] == field
    assert (await intake.post(at, b"gold", "b8")).is_problem(400, "malformed_json")


async def test_a_buyer_names_no_tier(redis_server: EmbeddedServer) -> None:
    """It is in the user token, signed by the mall."""
    engine = Engine(redis_server.url, durability="memory", sweep_ms=0, timeout_ms=30_000)
    async with (
        engine,
        serving_app(create_app(engine, identify=by_header)) as base,
        aiohttp.ClientSession() as session,
    ):
        intake = Intake(session, base, engine)
        draw_at = datetime.now(UTC) + timedelta(minutes=10)
        fields = {"mode": "draw", "draw_at": draw_at, "weights": (("gold", 3), ("vip", 5))}
        sale = await intake.open_sale({"a": 5}, admission=Admission(**fields), opens_at=draw_at)
        who = {"Test-Buyer": "b1"}
        for tier in ("vip", "gold"):
            named = await intake.call("POST", tickets(sale), json={"tier": tier}, headers=who)
            assert named.is_problem(403, "forbidden")
            assert named.json["field"] == "tier"
            assert "user token" in named.json["detail"]
        for body in ({}, {"tier": None}):
            plain = await intake.call("POST", tickets(sale), json=body, headers=who)
            assert plain.json["place"]["number"] == 0
        assert await lots(intake, sale, "b1") == 3


async def test_the_page_says_how_to_get_to_the_till(intake: Intake) -> None:
    opens_at = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10)
    joins_at = opens_at - timedelta(minutes=5)
    sale = await intake.open_sale(**queued(joins_at=joins_at), opens_at=opens_at)
    assert (await intake.get(f"/v1/sales/{sale.id}")).json["admission"] == {
        "mode": "queue",
        "joins_ms": int(joins_at.timestamp() * 1_000),
        "draw_ms": None,
        "token_life_ms": 120_000,
        "weights": {},
        "public_value": None,
    }
    plain = await intake.open_sale()
    assert (await intake.get(f"/v1/sales/{plain.id}")).json["admission"] is None


# -- when to ask again --------------------------------------------------------------------------


def asked_again(phase: Any, life_ms: int = 120_000, **fields: Any) -> int | None:
    sale = make_sale(**queued(token_life_ms=life_ms))
    return poll_after_ms(
        Place(**({"ticket": "t", "number": 0, "phase": phase, "at_ms": 0} | fields)), sale
    )


def test_when_to_ask_again() -> None:
    for phase in ("called", "lapsed", "ended"):
        assert asked_again(phase, ahead=0, eta_ms=0) is None
    assert asked_again("waiting", ahead=0, eta_ms=0) == 1_000
    assert asked_again("waiting", ahead=0, eta_ms=40_000) == 10_000
    assert asked_again("unlikely", ahead=9, eta_ms=3_600_000) == 30_000
    # Often enough to notice a turn that came sooner than was foretold, while it lasts.
    assert asked_again("waiting", life_ms=20_000, ahead=0, eta_ms=3_600_000) == 5_000
    assert asked_again("waiting", life_ms=1_000, ahead=0, eta_ms=3_600_000) == 1_000
    # Nobody can tell: those in front ask more often.
    assert asked_again("waiting", ahead=100) == 2_000
    assert asked_again("waiting", ahead=1_000_000) == 30_000
    assert asked_again("sold_out", ahead=3) == 30_000


def test_who_waits_for_a_draw_asks_in_turn() -> None:
    draw_at = datetime.now(UTC) + timedelta(minutes=5)
    sale = make_sale(
        admission=Admission(mode="draw", draw_at=draw_at),
        opens_at=draw_at,
        ends_at=draw_at + timedelta(hours=1),
    )

    def after(number: int, left_ms: int, phase: Any = "joined") -> int | None:
        at_ms = sale.draw_ms - left_ms
        return poll_after_ms(Place(ticket="t", number=number, phase=phase, at_ms=at_ms), sale)

    assert after(0, 300_000) == 30_000
    assert after(0, 4_000) == 5_000
    assert after(500_000, 4_000) == 15_000
    assert after(10_000_000, 4_000) == 25_000
    assert after(0, -1_000, "drawing") == 1_000
    assert after(100_000, -1_000, "drawing") == 3_000
    # After it, by how many turns must lapse.
    waiting = Place(ticket="t", number=0, phase="unlikely", at_ms=sale.draw_ms, ahead=20)
    assert poll_after_ms(waiting, sale) == 20_000
    assert poll_after_ms(msgspec.structs.replace(waiting, ahead=0), sale) == 1_000
    # A public value may be hours away.
    named = msgspec.structs.replace(sale.admission, public_value="tonight's lottery")
    sale = msgspec.structs.replace(sale, admission=named)
    assert after(0, -1_000, "drawing") == 30_000


# -- what it costs Redis ------------------------------------------------------------------------


@pytest.fixture
def _no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen of a queue stays good for as long as the test takes."""
    monkeypatch.setattr(queue_module, "LOOK_S", 1_000)
    monkeypatch.setattr(queue_module, "STALE_S", 1_000)


async def commands(url: str) -> dict[str, int]:
    """How often Redis was asked for what, without what the test itself asks, and without what
    an intake and an engine do by the clock: looking whether Redis is there, and writing down how
    many were refused."""
    async with async_client(url) as client:
        found = await client.info("commandstats")
    ours = ("info", "client", "hello", "select", "time", "hincrby")
    return {
        name.removeprefix("cmdstat_"): int(stats["calls"])
        for name, stats in found.items()
        if not name.removeprefix("cmdstat_").startswith(ours)
    }


@pytest.mark.usefixtures("_no_looks")
async def test_bad_tokens_cost_redis_nothing(
    intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues_module, "ROTATE_S", 0.0)
    sale, other = [await intake.open_sale({"a": 500}, **queued()) for _ in range(2)]

    async def token_of(at: Sale, buyer: str) -> str:
        """As ``called``; here only the test looks."""
        ticket = (await join(intake, at, buyer)).json["place"]["ticket"]

        async def asked() -> Answer:
            await intake.engine.queue.look(at.id)
            return await place(intake, at, buyer, ticket)

        return str((await until(asked, lambda said: said["phase"] == "called"))["token"])

    retired = await token_of(sale, "b1")
    for _ in range(3):
        assert (await intake.engine.queue.rotate(sale.id)).ok
    good = await token_of(sale, "b1")
    assert good != retired
    others_sale, others = await token_of(other, "b1"), await token_of(sale, "b2")
    queue = queue_of(intake, sale)
    read = queue.tokens.genuine("b1", good)
    assert not isinstance(read, Status)
    past_ms = int(queue.turn_ms) - sale.hold_ms - 1_000
    expired = queue.tokens.token("b1", read.number, read.step, past_ms)
    changed = f"{good[:60]}{'B' if good[60] == 'A' else 'A'}{good[61:]}"
    # Of 256 names of keys, one that none of the sale's keys has.
    unknown = Keys(sale.id, [queue.tokens.another()])
    bad = {
        "queue_token_invalid": [changed, good[:-4], "nonsense", "A" * 72],
        "queue_token_retired": [retired, unknown.token("b1", 0, 1, 2**40)],
        "queue_token_other_sale": [others_sale],
        "queue_token_other_buyer": [others],
        "queue_token_expired": [expired],
    }
    # The lane is opened by whoever comes first.
    assert (await order(intake, sale, "b2", others)).http == 201
    before, refused = await commands(intake.engine.url), 0
    for code, tokens in bad.items():
        for one in tokens:
            for key in ("k1", "k2", "k3"):
                answer = await order(intake, sale, "b1", one, key)
                assert answer.code in (code, "queue_token_other_sale"), (code, one)
                refused += 1
            if code != "queue_token_invalid":
                assert answer.is_problem(403, code)
    assert (await order(intake, sale, "b1", bad["queue_token_invalid"][0])).is_problem(
        403, "queue_token_invalid"
    )
    batch = {"orders": [ORDER | {"buyer": "b1", "key": "k", "token": expired}]}
    many = await intake.post(f"/v1/sales/{sale.id}/orders:batch", batch)
    assert many.json["answers"] == [{"status": 403, "code": "queue_token_expired"}]
    after = await commands(intake.engine.url)
    assert after == before, (refused, before, after)
    # And the same counting sees an order that is taken.
    batch["orders"][0]["token"] = good
    many = await intake.post(f"/v1/sales/{sale.id}/orders:batch", batch)
    assert many.json["answers"][0]["code"] == "created"
    assert (await commands(intake.engine.url))["evalsha"] == before["evalsha"] + 1


async def test_a_token_that_has_just_expired_still_finds_its_order(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 5}, **queued())
    token = await called(intake, sale, "b1")
    assert (await order(intake, sale, "b1", token)).http == 201
    queue = queue_of(intake, sale)
    read = queue.tokens.genuine("b1", token)
    assert not isinstance(read, Status)
    old = queue.tokens.token("b1", read.number, read.step, int(queue.turn_ms) - 1_000)
    assert (await order(intake, sale, "b1", old)).code == "exists"
    assert (await order(intake, sale, "b1", old, "k2")).is_problem(403, "queue_token_expired")


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "aiohttp's way"])
@pytest.mark.usefixtures("_no_looks")
async def test_a_place_costs_redis_nothing(redis_server: EmbeddedServer, hot: bool) -> None:
    async with serving(redis_server.url, server={"hot_route": hot}) as site:
        sale = make_sale(**queued(), opens_at=datetime.now(UTC) + timedelta(minutes=10))
        assert (await site.engine.create(sale)).ok
        assert (await site.engine.open(sale.id)).ok
        joined = (await site.engine.queue.join(sale.id, "ann")).place
        assert joined is not None
        await site.known("ann")
        client = await site.connect()
        before = await commands(redis_server.url)
        for _ in range(50):
            answer = await client.ask(question(sale, "ann", joined.ticket))
            assert answer.http == 200
        assert await commands(redis_server.url) == before
        assert site.intake.metrics.hot_places == 50 * hot
        # A queue that nobody has seen for a while is looked at, and not guessed.
        queue = site.engine.at_hand(sale.id)
        assert queue is not None
        assert queue.queue is not None
        queue.queue._looked_s -= 2_000
        answer = await client.ask(question(sale, "ann", joined.ticket))
        assert answer.http == 200
        assert (await commands(redis_server.url))["evalsha"] == before["evalsha"] + 1
        assert site.intake.metrics.hot_places == 50 * hot


def question(sale: Sale, buyer: str, ticket: str) -> str:
    return (
        f"GET /v1/sales/{sale.id}/tickets/me HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {token(buyer)}\r\nSeckill-Ticket: {ticket}\r\n\r\n"
    )


# -- what is counted ----------------------------------------------------------------------------


async def test_what_is_counted(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine takes more than a second for a look at all that other tests have left.
    monkeypatch.setattr("seckill.server.metrics.LOOK_S", 60.0)
    sale = await intake.open_sale({"a": 5}, **queued())
    token = await called(intake, sale, "b1")
    await join(intake, sale, "b1")
    await place(intake, sale, "b1", "x")
    assert (await order(intake, sale, "b1", token)).http == 201
    await called(intake, sale, "b2")
    text = (await intake.get("/metrics")).body.decode()
    said = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert said[f'seckill_queue_waiting{{sale="{sale.id}"}}'] == "0.0"
    assert said[f'seckill_queue_called_total{{sale="{sale.id}"}}'] == "2.0"
    assert said[f'seckill_queue_lapsed_total{{sale="{sale.id}"}}'] == "0.0"
    assert said[f'seckill_queue_live_tokens{{sale="{sale.id}"}}'] == "1.0"
    assert said['seckill_joins_total{code="created"}'] == "2.0"
    assert said['seckill_joins_total{code="exists"}'] == "1.0"
    assert said['seckill_place_queries_total{code="unknown_ticket"}'] == "1.0"
    assert float(said['seckill_place_queries_total{code="ok"}']) >= 2
    assert float(said["seckill_queue_eta_error_seconds_count"]) >= 1


async def test_what_is_counted_of_a_queue_that_stands_still(intake: Intake) -> None:
    """The numbers that the alert goes by, as they are then; its rates are tried in test_alerts."""
    async with async_client(intake.engine.url) as client:
        # A look at all that other tests have left takes a busy machine too long.
        await client.flushall()
    sale = await intake.open_sale({"a": 5}, **queued())
    await called(intake, sale, "b1")
    assert (await intake.engine.queue.leave(sale.id, "b1")).ok
    async with async_client(intake.engine.url) as client:
        await client.hset(queue_keys(sale.id)[0], mapping={"paced_ms": 2**50, "credit": 0})
    assert (await join(intake, sale, "b2")).http == 201
    rule = next(
        rule
        for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
        for rule in group["rules"]
        if rule["alert"] == "SeckillQueueStandsStill"
    )
    compared = re.findall(r"(seckill_\w+)(?:{(\w+=\"\w+\")})? ([=>]+) (\d+)", rule["expr"])
    assert len(compared) == 4

    async def scraped() -> list[bool]:
        text = (await intake.get("/metrics")).body.decode()
        said = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        found = []
        for name, label, sign, number in compared:
            labels = sorted([f'sale="{sale.id}"', *([label] if label else [])])
            value = float(said.get(f"{name}{{{','.join(labels)}}}", "nan"))
            found.append(value > float(number) if sign == ">" else value == float(number))
        return found

    async def until_scraped(wanted: list[bool]) -> None:
        async with asyncio.timeout(60):
            while await scraped() != wanted:  # noqa: ASYNC110 - a look is cached
                await asyncio.sleep(0.2)

    await until_scraped([True] * 4)
    # Mended, it goes on: somebody is called, and nobody waits.
    async with async_client(intake.engine.url) as client:
        await client.hset(queue_keys(sale.id)[0], mapping={"paced_ms": 0})
    await called(intake, sale, "b2")
    await until_scraped([True, False, True, False])


async def test_the_error_of_a_forecast(intake: Intake) -> None:
    opens_at = datetime.now(UTC) + timedelta(seconds=2)
    sale = await intake.open_sale({"a": 5}, **queued(), opens_at=opens_at)
    joined = (await intake.engine.queue.join(sale.id, "b1")).place
    assert joined is not None
    assert joined.eta_ms is not None
    errors = EtaErrors(intake.engine)
    # Told an hour too much, which is then the error.
    told = Place(
        ticket=joined.ticket,
        number=joined.number,
        phase="waiting",
        at_ms=joined.at_ms,
        eta_ms=joined.eta_ms + 3_600_000,
    )
    errors.told(sale.id, told)
    # No more than some are looked at.
    errors.told(sale.id, told)
    errors.look()
    assert errors.seconds.total == 0
    async with asyncio.timeout(60):
        while not errors.seconds.total:
            await asyncio.sleep(0.05)
            await intake.engine.queue.look(sale.id)
            errors.look()
    assert errors.seconds.total == errors.seconds.counts[0] == 1
    assert -3_600 <= errors.seconds.sum < -3_590
    errors.look()
    assert errors.seconds.total == 1


async def test_forecasts_for_a_queue_that_stops_are_forgotten(intake: Intake) -> None:
    sale = await intake.open_sale({"a": 5}, **queued())
    joined = (await intake.engine.queue.join(sale.id, "b1")).place
    assert joined is not None
    errors = EtaErrors(intake.engine)
    errors.told(sale.id, Place(ticket="", number=9, phase="waiting", at_ms=0, eta_ms=2**50))
    errors.look()
    assert len(errors._told) == 1
    assert (await intake.engine.close(sale.id)).ok
    await intake.engine.queue.look(sale.id)
    errors.look()
    assert (errors._told, errors.seconds.total) == ([], 0)
