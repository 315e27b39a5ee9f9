"""`seckill relay` against endpoints that misbehave: every event arrives, in order per order."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from seckill import webhook
from seckill.admission import Admission
from seckill.consumer import delivery, journal
from seckill.consumer.pace import Turns
from seckill.dead import with_letters
from seckill.draw import DrawRecord
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine, Wish
from seckill.errors import InvalidInput, UnknownSale
from seckill.keys import group_keys, queue_keys, shard_keys, stream_key
from seckill.ledger import Ledger
from seckill.ledger.rebuild import rebuild
from seckill.ledger.run import LedgerRunner
from seckill.order import Order
from seckill.relay import GROUP, Endpoint, Pace, Relay, Tally
from seckill.sale import Sale
from seckill.server import wire
from seckill.status import Status
from seckill.stream import Event, EventKind
from tests.children import child
from tests.conftest import MakeEngine, MakeSale
from tests.integration.receiver import QUICK, SECRET, Receiver, endpoint, receiving
from tests.support import make_item, make_sale, travel

ROOT = Path(__file__).parents[2]
QUEUE_KINDS = {kind for kind in EventKind if kind.startswith("queue_")}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver
        assert receiver.faults == []


async def sell(engine: Engine, sale: Sale, count: int, *, confirm: bool = True) -> list[Order]:
    """Orders of as many buyers, which come into the stream in entries of many."""
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, f"buyer-{n}", "k", {"a": 1}) for n in range(count))
    )
    orders = [outcome.order for outcome in outcomes if outcome.order]
    assert len(orders) == count
    if confirm:
        for order in orders:
            await engine.begin_payment(sale.id, order.id)
            await engine.confirm(sale.id, order.id, f"wx-{order.id}")
    return orders


def pending(client: redis.Redis, sale: str) -> int:
    summary: Any = client.xpending(stream_key(sale), GROUP)
    return int(summary["pending"])


async def relay_once(engine: Engine, to: Endpoint, sale: Sale, **options: Any) -> Tally:
    relay = Relay(engine, to, sales=(sale.id,), once=True, **({"pace": QUICK} | options))
    async with asyncio.timeout(60):
        return await relay.run()


@asynccontextmanager
async def relaying(engine: Engine, to: Endpoint, **options: Any) -> AsyncIterator[Relay]:
    relay = Relay(engine, to, **({"pace": QUICK} | options))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        async with asyncio.timeout(60):
            await task


async def until(happened: Any, seconds: float = 120) -> None:
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - what happens, happens in another process
            await asyncio.sleep(0.01)


# -- what arrives -----------------------------------------------------------------------------


async def test_every_kind_of_event(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis, tmp_path: Path
) -> None:
    sale = await open_sale({"a": 3, "b": 0})
    outcome = await engine.reserve(sale.id, "ann", "k", {"a": 2}, attrs="地址|7|room=3")
    assert outcome.order is not None
    order = outcome.order.id
    await engine.begin_payment(sale.id, order)
    await engine.confirm(sale.id, order, "wx-1")
    await engine.confirm(sale.id, order, "wx-2")
    await engine.refund(sale.id, order, "r-1", return_units=True, return_limit=False)
    await engine.pause(sale.id, "盘点")
    await engine.resume(sale.id)
    await engine.add_stock(sale.id, "b", 4, key="more")
    lapsed = (await engine.reserve(sale.id, "bob", "k", {"a": 1})).order
    await travel(engine, sale.id, sale.hold_ms)
    await engine._expire(sale.id, 10)
    released = (await engine.reserve(sale.id, "eve", "k", {"a": 1})).order
    assert lapsed is not None
    assert released is not None
    await engine.close(sale.id)
    await engine.release(sale.id, released.id)
    assert await receiver.expect(engine, sale.id) == 16

    tally = await relay_once(engine, endpoint(receiver), sale)
    assert (tally.delivered, tally.failed, tally.left) == (16, 0, 0)
    assert receiver.unseen() == {}
    bodies = [receiver.bodies[f"{sale.id}:{seq}"] for seq in range(1, 17)]
    definition = json.loads(sale.definition())
    assert [(body["kind"], body["data"]) for body in bodies] == [
        ("sale_created", {"definition": definition}),
        ("sale_opened", {}),
        ("order_held", {"attrs": "地址|7|room=3"}),
        ("order_paying", {}),
        ("order_confirmed", {"payment": "wx-1"}),
        ("refund_due", {"payment": "wx-2"}),
        ("order_refunded", {"refund": "r-1", "units_returned": True, "limit_returned": False}),
        ("sale_paused", {"reason": "盘点"}),
        ("sale_resumed", {}),
        ("stock_changed", {"key": "more", "sku": "b", "units": 4, "total": 4}),
        ("order_held", {"attrs": ""}),
        ("order_expired", {}),
        ("order_held", {"attrs": ""}),
        ("sale_closed", {}),
        ("order_released", {}),
        ("sale_settled", {"unsold": {"a": 3, "b": 4}}),
    ]
    kinds = {body["kind"] for body in bodies}
    assert kinds == set(EventKind) - {EventKind.SALE_REBUILT} - QUEUE_KINDS
    assert [body["seq"] for body in bodies] == list(range(1, 17))
    assert all(
        list(body) == ["id", "sale", "seq", "at_ms", "kind", "data", "order"] for body in bodies
    )
    # The order is the document of the HTTP API, field by field.
    document = wire.order_document(outcome.order)
    assert webhook.OrderDocument is wire.OrderDocument
    shifted = {"deadline_ms": bodies[2]["order"]["deadline_ms"]}  # By `travel`.
    assert bodies[2]["order"] == json.loads(wire.encode(document)) | shifted
    assert bodies[4]["order"]["deadline_ms"] is None
    assert receiver.headers["content-type"] == "application/json"
    assert pending(client, sale.id) == 0
    # There is nothing left, and nothing comes twice.
    assert (await relay_once(engine, endpoint(receiver), sale)).delivered == 0
    assert client.exists(*group_keys(sale.id, GROUP)) == 0
    # What was lost and made anew tells so, with a number that no event has had.
    await lose_and_rebuild(engine, sale, tmp_path)
    assert (await relay_once(engine, endpoint(receiver), sale)).delivered == 1
    body = receiver.bodies[f"{sale.id}:1000016"]
    assert (body["kind"], body["order"]) == ("sale_rebuilt", None)
    data = body["data"]
    assert data.pop("ledger_at_ms") == bodies[-1]["at_ms"]
    assert data.pop("spared_ms") >= body["at_ms"]
    counts = {"ledger_seq": 16, "orders": 3, "seen_seq": 16}
    assert data == counts | {"state": "settled"}


async def draw(engine: Engine, sale: Sale) -> DrawRecord:
    """Three tickets, of which one is given up, a public value, and the order."""
    for buyer in ("ann", "bob", "eve"):
        assert (await engine.queue.join(sale.id, buyer)).status is Status.CREATED
    assert (await engine.queue.leave(sale.id, "bob")).status is Status.DONE
    close_list(engine, sale)
    assert await engine.queue.draw(sale.id) is Status.NOT_OPEN
    assert (await engine.queue.name_value(sale.id, "19 03 22")).status is Status.DONE
    assert await engine.queue.draw(sale.id) is Status.DONE
    record = await engine.queue.record(sale.id)
    assert record is not None
    return record


def close_list(engine: Engine, sale: Sale) -> None:
    """The moment has come at which the list of tickets closes."""
    with redis.Redis.from_url(engine.url) as client:
        client.hset(queue_keys(sale.id)[0], "draw_ms", 0)


def drawn_sale() -> Sale:
    """A sale that opens in an hour, with a draw."""
    opens_at = datetime.now(UTC) + timedelta(hours=1)
    return make_sale(
        opens_at=opens_at,
        ends_at=opens_at + timedelta(hours=1),
        admission=Admission(mode="draw", public_value="the lottery's numbers"),
    )


async def test_every_kind_of_event_of_a_queue(engine: Engine, receiver: Receiver) -> None:
    sale = drawn_sale()
    await engine.create(sale)
    record = await draw(engine, sale)
    await relay_once(engine, endpoint(receiver), sale)
    bodies = [receiver.bodies[f"{sale.id}:{seq}"] for seq in range(2, 7)]
    assert [(body["kind"], body["data"], body["order"]) for body in bodies] == [
        ("queue_opened", {"commitment": record.commitment}, None),
        ("queue_closed", {"given_out": 3}, None),
        ("queue_listed", {"tickets": 2, "digest": record.digest}, None),
        ("queue_valued", {"public_value": "19 03 22"}, None),
        (
            "queue_drawn",
            {
                "tickets": 2,
                "digest": record.digest,
                "seed": record.seed,
                "public_value": "19 03 22",
            },
            None,
        ),
    ]
    assert {body["kind"] for body in bodies} == QUEUE_KINDS


def test_a_draw_without_a_public_value_says_so() -> None:
    event = Event("t", 9, 1, EventKind.QUEUE_DRAWN, None, f"2|{'d' * 64}|{'5' * 64}|")
    data = json.loads(webhook.event_body(make_sale(), event))["data"]
    assert data["public_value"] is None


async def lose_and_rebuild(engine: Engine, sale: Sale, folder: Path) -> None:
    """The ledger has all of the sale, Redis loses it, and it is brought back."""
    async with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
        await engine._calls.client_of("sk:sales").delete(*shard_keys(sale.id))
        assert (await rebuild(engine, ledger, sale.id)).done


def test_each_secret_signs() -> None:
    body = b'{"id": "t:1"}'
    new, old = b"n" * 32, b"o" * 32
    both = webhook.sign(body, (new, old), 1_700_000_000)
    at, first, second = both.split(",")
    assert at == "t=1700000000"
    assert webhook.sign(body, (new,), 1_700_000_000) == f"{at},{first}"
    assert webhook.sign(body, (old,), 1_700_000_000) == f"{at},{second}"
    assert webhook.sign(body, (new,), 1_700_000_001).partition(",")[2] != first
    assert webhook.sign(body + b" ", (new,), 1_700_000_000).partition(",")[2] != first


def test_the_guide_signs_as_the_relay_does() -> None:
    text = (ROOT / "docs" / "webhook.md").read_text(encoding="utf-8")
    found = re.search(
        r"(?s)Seckill-Signature: (t=(\d+),v1=\w+)\n```\n\n.*? body `(.*?)` by the secret `(\w+)`",
        text,
    )
    assert found
    header, at, body, secret = found.groups()
    assert header == webhook.sign(body.encode(), (secret.encode(),), int(at))


def matches(shown: Any, real: Any) -> bool:
    """Whether a guide's example shows this. "…" stands for any text, and as a key for those that
    are left out; numbers above a million are times."""
    if isinstance(shown, dict) and isinstance(real, dict):
        names = shown.keys() - {"…"}
        if names - real.keys() or ("…" not in shown and real.keys() != names):
            return False
        return all(matches(shown[name], real[name]) for name in names)
    if isinstance(shown, list) and isinstance(real, list):
        return len(shown) == len(real) and all(map(matches, shown, real))
    if type(shown) is int and shown > 10**6:
        return type(real) is int and real > 10**6
    return bool(shown in ("…", real))


async def test_the_guide_shows_what_arrives(
    engine: Engine, receiver: Receiver, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "webhook.md").read_text(encoding="utf-8")
    sale = make_sale(title="今晚八点", items=(make_item("MUG", total=3, price_fen=5_900),))
    await engine.create(sale)
    await engine.open(sale.id)
    carts = {"buyer-7": "addr=55", "buyer-8": "", "buyer-9": ""}
    orders = []
    for number, (buyer, attrs) in enumerate(carts.items()):
        outcome = await engine.reserve(sale.id, buyer, f"cart-{number}", {"MUG": 1}, attrs=attrs)
        assert outcome.order is not None
        orders.append(outcome.order.id)
    await engine.begin_payment(sale.id, orders[0])
    await engine.confirm(sale.id, orders[0], "wx-1")
    await engine.release(sale.id, orders[1])
    await engine.confirm(sale.id, orders[1], "wx-2")
    await travel(engine, sale.id, sale.hold_ms)
    await engine._expire(sale.id, 10)
    await engine.refund(sale.id, orders[0], "re-1", return_units=True, return_limit=False)
    await engine.pause(sale.id, "盘点")
    await engine.resume(sale.id)
    await engine.add_stock(sale.id, "MUG", 2, key="second-box")
    await engine.close(sale.id)
    await relay_once(engine, endpoint(receiver), sale)
    await lose_and_rebuild(engine, sale, tmp_path)
    await relay_once(engine, endpoint(receiver), sale)
    lottery = drawn_sale()
    await engine.create(lottery)
    await draw(engine, lottery)
    await relay_once(engine, endpoint(receiver), lottery)
    ids = {"tonight": sale.id, "lottery": lottery.id}
    real = {
        body["kind"]: body
        for body in receiver.bodies.values()
        if body["kind"] in QUEUE_KINDS or (body["sale"] == sale.id and body["seq"] not in (4, 5))
    }
    examples = re.findall(r"(?ms)^```\n(\{.*?\})\n```$", text)
    shown = {one["kind"]: one for one in map(json.loads, examples)}
    assert list(shown) == list(EventKind)
    for kind, example in shown.items():
        adapted = json.loads(re.sub("tonight|lottery", lambda m: ids[m[0]], json.dumps(example)))
        assert matches(adapted, real[kind]), (kind, real[kind])


# -- misbehaviour -----------------------------------------------------------------------------

MISDEEDS = (
    "500",
    "hang",
    "404",
    "reset",
    "close",
    "garbage",
    "redirect",
    "trickle",
    "429 Retry-After: 1",
    "503 Retry-After: soon",
    "400",
)


async def test_every_misdeed(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """Up to three attempts for each event fail, in another way each time."""
    sale = await open_sale({"a": 20})
    await sell(engine, sale, 11)
    count = await receiver.expect(engine, sale.id)
    assert count == 35

    def behave(body: dict[str, Any], attempt: int) -> str:
        seq = body["seq"]
        return MISDEEDS[(seq + attempt * 4) % len(MISDEEDS)] if attempt <= seq % 4 else "204"

    receiver.behave = behave
    tally = await relay_once(engine, endpoint(receiver, timeout_s=0.5), sale)
    assert (tally.delivered, tally.dead, tally.left) == (count, 0, 0)
    # A slow machine fails some more by itself: it hears an answer too late, and then the event
    # comes again.
    too_late = tally.failed - sum(seq % 4 for seq in range(1, count + 1))
    assert receiver.unseen() == {}
    assert 0 <= len(receiver.taken) - count <= too_late
    assert pending(client, sale.id) == 0


async def test_retry_after_is_honoured(
    engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    """Within bounds; and each attempt is signed anew, or it would soon be refused as a replay."""
    sale = await open_sale()
    receiver.behave = lambda body, attempt: "429 Retry-After: 60" if attempt == 1 else "204"
    pace = Pace(first_s=0.02, retry_after_max_s=1.0)
    await relay_once(engine, endpoint(receiver), sale, pace=pace)
    for times in (receiver.moments, receiver.signed):
        for first, second in times.values():
            assert second - first >= 1.0


async def test_a_stranger_with_the_malls_name_gets_nothing(
    engine: Engine, open_sale: MakeSale, tmp_path: Path
) -> None:
    """TLS is verified."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", tmp_path / "key", "-out", tmp_path / "cert")
    async with child("openssl", *words, *names, *files, stderr=subprocess.DEVNULL) as made:
        assert await made.wait() == 0
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    sale = await open_sale()
    async with receiving(tls) as stranger:
        url = stranger.url.replace("http:", "https:")
        to = Endpoint(url=url, secrets=(SECRET,), give_up_s=0.1)
        assert (await relay_once(engine, to, sale)).dead == 1
    assert stranger.attempts.total() == 0
    letters = await with_letters(engine.url, sale.id, GROUP, lambda dead: dead.letters())
    assert letters[0].cause == "its certificate or TLS is refused"


@pytest.mark.parametrize("misdeed", ["twice", "twice late", "endless"])
async def test_answers_that_never_end(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, misdeed: str
) -> None:
    """A second answer on the wire must not be taken for the answer to the next event."""
    sale = await open_sale({"a": 20})
    await sell(engine, sale, 4)
    count = await receiver.expect(engine, sale.id)
    receiver.behave = lambda body, attempt: misdeed if body["seq"] % 2 else "204"
    tally = await relay_once(engine, endpoint(receiver, in_flight=2), sale)
    assert (tally.delivered, tally.failed) == (count, 0)
    assert receiver.unseen() == {}
    assert len(receiver.taken) == count
    # What the kernel's buffers hold, not what a second of reading would bring.
    assert receiver.poured < count * 20_000_000


async def test_one_bad_order_does_not_stop_the_others(
    engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    sale = await open_sale({"a": 50})
    orders = await sell(engine, sale, 30)
    count = await receiver.expect(engine, sale.id)
    bad = {order.id for order in orders[:4]}
    healed = False

    def behave(body: dict[str, Any], attempt: int) -> str:
        return "500" if not healed and body["order"] and body["order"]["id"] in bad else "204"

    receiver.behave = behave
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: len(set(receiver.taken)) >= count - 3 * len(bad))
        healed = True
        await until(lambda: len(set(receiver.taken)) >= count)
    assert receiver.unseen() == {}


@pytest.mark.parametrize("misdeed", ["500", "close"])
async def test_many_bad_orders_in_front_do_not_stop_the_others(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, misdeed: str
) -> None:
    """They make the endpoint look down, and then it must be asked by others than the next of them:
    one by one, with these waits, they would take half a minute or more."""
    sale = await open_sale({"a": 300})
    bad = {order.id for order in await sell(engine, sale, 60, confirm=False)}
    wishes = [Wish(f"good-{n}", "k", {"a": 1}) for n in range(200)]
    await engine.reserve_many(sale.id, wishes)
    count = await receiver.expect(engine, sale.id)

    def behave(body: dict[str, Any], attempt: int) -> str:
        return misdeed if body["order"] and body["order"]["id"] in bad else "204"

    receiver.behave = behave
    pace = Pace(first_s=0.05, longest_s=60.0, probe_s=1.0)
    to = endpoint(receiver, in_flight=6)
    async with relaying(engine, to, sales=(sale.id,), pace=pace) as relay:
        await until(lambda: relay.turns.down)
        await until(lambda: len(set(receiver.taken)) >= count - len(bad))
    assert len(receiver.unseen()) == len(bad)


async def test_the_search_for_an_order_that_is_taken_does_not_slow_down(
    engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    """As long as the endpoint answers. Doubled each time, these waits would add up to a day."""
    sale = await open_sale({"a": 100})
    await sell(engine, sale, 60, confirm=False)
    receiver.behave = lambda body, attempt: "503"
    pace = Pace(first_s=0.02, longest_s=0.1, probe_s=86_400.0)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), pace=pace) as relay:
        await until(lambda: relay.turns.down)
        await until(lambda: receiver.busy == 0)
        before = receiver.attempts.total()
        await until(lambda: receiver.attempts.total() >= before + 22)


async def test_a_down_endpoint_is_asked_now_and_then(
    engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    sale = await open_sale({"a": 300})
    await sell(engine, sale, 200, confirm=False)
    count = await receiver.expect(engine, sale.id)
    receiver.behave = lambda body, attempt: "close"
    slow = Pace(first_s=0.01, longest_s=0.05, probe_s=0.2)
    async with relaying(
        engine, endpoint(receiver, in_flight=8), sales=(sale.id,), pace=slow
    ) as relay:
        await until(lambda: relay.turns.down)
        await until(lambda: receiver.busy == 0)
        before, since = receiver.attempts.total(), time.monotonic()
        await until(lambda: receiver.attempts.total() >= before + 16)
        # One attempt each 0.1 to 0.2 s, though 200 orders wait for 0.05 s at the most. Eight may
        # have been on their way when it was found to be down.
        elapsed = time.monotonic() - since
        assert receiver.attempts.total() - before <= elapsed / 0.1 + 4 + 8
        receiver.behave = lambda body, attempt: "204"
        await until(lambda: len(set(receiver.taken)) >= count)
    assert receiver.unseen() == {}
    assert receiver.busy_max <= 8


async def test_memory_is_bounded(
    engine: Engine,
    open_sale: MakeSale,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "READ_AHEAD", 40)
    monkeypatch.setattr(delivery, "READ_COUNT", 2)
    sale = await open_sale({"a": 600})
    await sell(engine, sale, 500, confirm=False)
    count = await receiver.expect(engine, sale.id)
    healed = False
    receiver.behave = lambda body, attempt: "204" if healed else "hang"
    most = {"undone": 0, "busy": 0, "lines": 0, "couriers": 0}

    async def watch(relay: Relay) -> None:
        while True:
            for sales in relay.deliveries.values():
                most["undone"] = max(most["undone"], sales.undone)
                most["lines"] = max(most["lines"], len(sales._lines))
                most["couriers"] = max(most["couriers"], len(sales._couriers))
            most["busy"] = max(most["busy"], relay.turns.busy)
            await asyncio.sleep(0.001)

    to = endpoint(receiver, in_flight=7, timeout_s=0.1)
    async with relaying(engine, to, sales=(sale.id,)) as relay:
        watcher = asyncio.create_task(watch(relay))
        await until(lambda: receiver.attempts.total() > 20)
        healed = True
        await until(lambda: len(set(receiver.taken)) >= count)
        watcher.cancel()
        await until(lambda: not relay.deliveries[sale.id]._lines)
    bound = 40 + 2 * 32
    assert most["busy"] == 7
    assert 40 <= most["undone"] <= bound
    assert most["lines"] <= bound
    assert most["couriers"] <= bound
    assert receiver.unseen() == {}


async def test_events_come_while_it_runs(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also those of sales that are made only then, and of all that are not named. On a server of
    its own: other tests' sales may be damaged or trimmed."""
    monkeypatch.setattr("seckill.consumer.runner.REFRESH_S", 0.05)

    async def opened() -> Sale:
        sale = make_sale()
        assert (await engine.create(sale)).ok
        assert (await engine.open(sale.id)).ok
        return sale

    with EmbeddedServer(tmp_path, appendfsync="no") as server:
        async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
            first = await opened()
            async with relaying(engine, endpoint(receiver)):
                await until(lambda: f"{first.id}:2" in receiver.taken)
                second = await opened()
                await until(lambda: f"{second.id}:2" in receiver.taken)
                await sell(engine, first, 2)
                await sell(engine, second, 2)
                for sale in (first, second):
                    await receiver.expect(engine, sale.id)
                await until(lambda: not receiver.unseen())


async def test_an_idle_relay_waits(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale()

    def reads() -> int:
        facts: Any = client.info("commandstats")
        return int(facts.get("cmdstat_xreadgroup", {"calls": 0})["calls"])

    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: len(receiver.taken) == 2)
        idle = False
        # Each read waits for a second, once it has looked for what it may have left undone.
        async with asyncio.timeout(60):
            while not idle:
                before, since = reads(), time.monotonic()
                await asyncio.sleep(0.5)
                idle = reads() - before <= 1 + (time.monotonic() - since)


async def test_named_sales_only(engine: Engine, open_sale: MakeSale, receiver: Receiver) -> None:
    named, other = await open_sale(), await open_sale()
    assert (await relay_once(engine, endpoint(receiver), named)).delivered == 2
    assert {name.partition(":")[0] for name in receiver.taken} == {named.id}
    with pytest.raises(UnknownSale):
        await Relay(engine, endpoint(receiver), sales=("no-such-sale",)).run()
    assert other.id not in receiver.bodies


# -- ends, crashes, and two at once -----------------------------------------------------------


async def test_stop_finishes_what_is_under_way(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 50})
    await sell(engine, sale, 40)
    count = await receiver.expect(engine, sale.id)
    receiver.behave = lambda body, attempt: "slow" if body["seq"] % 5 == 0 else "204"
    to = endpoint(receiver, in_flight=6, timeout_s=10)
    async with relaying(engine, to, sales=(sale.id,)):
        await until(lambda: receiver.busy >= 5 and len(receiver.taken) > 10)
    assert 10 < len(receiver.taken) < count
    assert not client.exists(group_keys(sale.id, GROUP).lease)
    receiver.behave = lambda body, attempt: "204"
    await relay_once(engine, endpoint(receiver), sale)
    await until(lambda: not receiver.busy)
    assert receiver.unseen() == {}
    # Nothing came twice: not even what shares its entry with events that were left.
    assert len(receiver.taken) == count


_PROGRAM = """
import asyncio, sys
from seckill.engine import Engine
from seckill.relay import Endpoint, Pace, Relay
async def main():
    url, hook, sale = sys.argv[1:4]
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        to = Endpoint(url=hook, secrets=(sys.argv[4].encode(),), timeout_s=1.0)
        pace = Pace(first_s=0.02, longest_s=0.1, probe_s=0.05)
        await Relay(engine, to, sales=(sale,), pace=pace, lease_ms=400).run()
asyncio.run(main())
"""


@asynccontextmanager
async def relay_process(engine: Engine, receiver: Receiver, sale: Sale) -> AsyncIterator[Any]:
    async with child(
        *(sys.executable, "-c", _PROGRAM, engine.url, receiver.url, sale.id, SECRET.decode()),
        env=os.environ | {"PYTHONWARNINGS": "error"},
    ) as process:
        yield process


@pytest.mark.slow
async def test_killed_again_and_again(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    sale = await open_sale({"a": 400})
    await sell(engine, sale, 200)
    count = await receiver.expect(engine, sale.id)
    receiver.behave = lambda body, attempt: (
        "500" if body["seq"] % 7 == 0 and attempt == 1 else "204"
    )
    for part in (0.1, 0.4, 0.7):
        async with relay_process(engine, receiver, sale) as child:
            await until(lambda part=part: len(receiver.taken) > count * part)
            child.send_signal(signal.SIGKILL)
            await child.wait()
    assert len(set(receiver.taken)) < count
    tally = await relay_once(engine, endpoint(receiver, in_flight=2), sale)
    assert tally.left == 0
    assert receiver.unseen() == {}
    assert pending(client, sale.id) == 0
    # A repeat goes on from where it begins: after the last one of each order comes nothing older.
    last: dict[str, int] = {}
    for name in receiver.taken:
        order = receiver.bodies[name]["order"]
        last[order["id"] if order else "sale"] = receiver.bodies[name]["seq"]
    most: dict[str, int] = {}
    for body in receiver.bodies.values():
        subject = body["order"]["id"] if body["order"] else "sale"
        most[subject] = max(body["seq"], most.get(subject, 0))
    assert last == most
    # Only what was under way or not written down yet came twice, some 50 events for each kill.
    assert len(receiver.taken) - count < count / 2


async def test_only_one_relay_is_active(
    make_engine: MakeEngine, engine: Engine, open_sale: MakeSale, receiver: Receiver
) -> None:
    sale = await open_sale({"a": 100})
    await sell(engine, sale, 60)
    count = await receiver.expect(engine, sale.id)
    other = await make_engine()
    to = endpoint(receiver)
    options: dict[str, Any] = {"sales": (sale.id,), "lease_ms": 6_000}
    async with relaying(engine, to, **options) as first, relaying(other, to, **options) as second:
        await until(lambda: len(set(receiver.taken)) >= count)
        assert bool(first.deliveries) != bool(second.deliveries)
        assert sorted(receiver.taken) == sorted(set(receiver.taken))
        busy, standby = (first, second) if first.deliveries else (second, first)
        assert standby.tally.delivered == 0
        # `--once` beside it says so, and does nothing.
        tally = await relay_once(engine, to, sale, lease_ms=1_000)
        assert (tally.elsewhere, tally.delivered) == ((sale.id,), 0)
        busy.stop()
        await until(lambda: standby.deliveries)
        await engine.pause(sale.id)
        await until(lambda: f"{sale.id}:{count + 1}" in receiver.taken)


@pytest.mark.slow
async def test_a_relay_that_was_stopped_gives_way(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """A stopped process comes back after its lease has run out: it must write nothing more."""
    sale = await open_sale({"a": 100})
    await sell(engine, sale, 60)
    count = await receiver.expect(engine, sale.id)
    receiver.behave = lambda body, attempt: "500" if body["seq"] > count / 2 else "204"
    async with relay_process(engine, receiver, sale) as child:
        await until(lambda: len(receiver.taken) > 20)
        child.send_signal(signal.SIGSTOP)
        # Whoever finds it taken looks again after a third of its own lease only.
        await until(lambda: not client.exists(group_keys(sale.id, GROUP).lease))
        receiver.behave = lambda body, attempt: "204"
        async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=30_000) as relay:
            await until(lambda: relay.deliveries)
            child.send_signal(signal.SIGCONT)
            # What the stopped one had sent in vain waits for its turn.
            await until(lambda: not receiver.unseen())
            await asyncio.sleep(0.5)
            assert list(relay.deliveries) == [sale.id]
    assert receiver.unseen() == {}


async def test_a_relay_that_was_stopped_takes_nothing_with_it(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """It was waiting for events when it was stopped, and its connection is still there: what comes
    then is for the one that has the lease now."""
    sale = await open_sale({"a": 100})
    await sell(engine, sale, 10)
    async with relay_process(engine, receiver, sale) as child:
        await receiver.expect(engine, sale.id)
        await until(lambda: not receiver.unseen())
        await until(lambda: client.info("clients")["blocked_clients"])
        child.send_signal(signal.SIGSTOP)
        await until(lambda: not client.exists(group_keys(sale.id, GROUP).lease))
        async with relaying(engine, endpoint(receiver), sales=(sale.id,)) as relay:
            await until(lambda: relay.deliveries)
            await engine.pause(sale.id, "盘点")
            await engine.resume(sale.id)
            child.send_signal(signal.SIGCONT)
            await receiver.expect(engine, sale.id)
            await until(lambda: not receiver.unseen(), seconds=20)
            await until(lambda: not pending(client, sale.id))


async def test_redis_goes_away(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """Connections are cut again and again while events are delivered."""
    sale = await open_sale({"a": 100})
    orders = await sell(engine, sale, 60, confirm=False)
    receiver.behave = lambda body, attempt: "500" if attempt < 2 else "204"
    ours = {other["id"] for other in client.client_list(_type="normal")}
    async with relaying(engine, endpoint(receiver), sales=(sale.id,), lease_ms=500):
        for order in orders:
            await engine.release(sale.id, order.id)
            if int(order.id[-1], 16) < 4:
                for other in client.client_list(_type="normal"):
                    if other["id"] not in ours:
                        client.client_kill_filter(_id=other["id"])
        await receiver.expect(engine, sale.id)
        await until(lambda: not receiver.unseen())
    assert pending(client, sale.id) == 0


async def test_a_lease_in_doubt_stops_everything(
    engine: Engine,
    open_sale: MakeSale,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sale is taken up anew then, and whoever stopped goes on."""
    sale = await open_sale({"a": 20})
    await sell(engine, sale, 10)
    await receiver.expect(engine, sale.id)
    asked = 0

    def held(_: journal.Journal) -> bool:
        nonlocal asked
        asked += 1
        return asked not in (3, 9)

    monkeypatch.setattr(journal.Journal, "held", property(held))
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: not receiver.unseen())
    assert f"webhook, sale {sale.id}: taken up anew: Redis was away" in caplog.text


async def test_redis_is_full(
    engine: Engine, open_sale: MakeSale, receiver: Receiver, client: redis.Redis
) -> None:
    """Everything goes on: what was delivered is ticked off, what was refused becomes a letter."""
    sale = await open_sale({"a": 100})
    orders = await sell(engine, sale, 20)
    count = await receiver.expect(engine, sale.id)
    gate = asyncio.Event()

    def behave(body: dict[str, Any], attempt: int) -> str:
        if not gate.is_set():
            return "204" if body["seq"] == 1 else "500"
        return "410" if body["order"] and body["order"]["id"] == orders[0].id else "204"

    receiver.behave = behave
    keys = group_keys(sale.id, GROUP)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)) as relay:
        await until(lambda: receiver.taken)
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.OutOfMemoryError):
                client.set("more", "x")
            gate.set()
            await until(lambda: len(set(receiver.taken)) == count - 3)
            await until(lambda: pending(client, sale.id) == 0)
            assert client.hlen(keys.dead) == 3
            assert not client.exists(keys.done)
            assert relay.deliveries
        finally:
            client.config_set("maxmemory", 0)
    assert len(receiver.taken) == count - 3  # Nothing came twice.


async def test_a_sale_made_anew_is_taken_up(
    engine: Engine, receiver: Receiver, client: redis.Redis
) -> None:
    sale = make_sale({"a": 5})
    await engine.create(sale)
    async with relaying(engine, endpoint(receiver), sales=(sale.id,)):
        await until(lambda: f"{sale.id}:1" in receiver.taken)
        client.delete(*shard_keys(sale.id), *group_keys(sale.id, GROUP))
        again = make_sale({"b": 7, "a": 5}, id=sale.id)
        await engine.create(again)
        await until(lambda: receiver.taken.count(f"{sale.id}:1") == 2)
    items = receiver.bodies[f"{sale.id}:1"]["data"]["definition"]["items"]
    assert [item["sku"] for item in items] == ["b", "a"]


# -- parts ------------------------------------------------------------------------------------


def test_waits_grow_and_are_bounded() -> None:
    pace = Pace()
    for failures in (1, 2, 3, 8, 9, 1_000):
        waits = [pace.wait_s(failures, 0) for _ in range(200)]
        longest = min(60.0, 0.5 * 2.0 ** (failures - 1))
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert 30 <= pace.wait_s(1, 30) <= 33
    assert 600 <= pace.wait_s(1, 1e9) <= 660


async def test_a_turn_survives_who_gave_up_waiting() -> None:
    turns = Turns(1, QUICK)
    held: list[bool] = []

    async def hold(*, new: bool) -> None:
        await turns.take(new=new)
        held.append(new)

    await hold(new=True)
    waiting = [asyncio.create_task(hold(new=n % 2 == 0)) for n in range(6)]
    await asyncio.sleep(0)
    waiting[2].cancel()
    turns.give("a", new=held.pop())
    waiting[0].cancel()  # At the very moment at which it has got its turn.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(4):
        assert turns.busy == 1
        await asyncio.sleep(0)
        turns.give("a", new=held.pop())
        await asyncio.sleep(0)
    await asyncio.wait(waiting)
    await turns.take(new=False)
    turns.skip(new=False)
    assert turns.busy == turns._busy_old == 0


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_a_retry_gets_its_turn_among_new_ones(in_flight: int) -> None:
    turns = Turns(in_flight, QUICK)
    sent = 0

    async def stream() -> None:
        nonlocal sent
        while sent < 400:
            await turns.take(new=True)
            sent += 1
            await asyncio.sleep(0)
            turns.give("new", new=True)

    async def retry() -> int:
        before = sent
        await turns.take(new=False)
        turns.give("old", new=False)
        return sent - before

    streams = [asyncio.create_task(stream()) for _ in range(12)]
    await asyncio.sleep(0)
    passed = [await retry() for _ in range(10)]
    await asyncio.wait(streams)
    # Between two retries at most three new ones go, and those that had their turn before.
    assert max(passed) <= 3 + in_flight


async def test_retries_that_hang_leave_most_places_to_new_ones() -> None:
    turns = Turns(8, QUICK)
    hanging = [asyncio.create_task(turns.take(new=False)) for _ in range(20)]

    async def stream() -> None:
        for _ in range(40):
            await turns.take(new=True)
            await asyncio.sleep(0)
            turns.give("new", new=True)

    for _ in range(8):
        await turns.take(new=True)
    streams = [asyncio.create_task(stream()) for _ in range(8)]
    await asyncio.sleep(0)
    for _ in range(8):
        turns.give("new", new=True)
    async with asyncio.timeout(30):
        await asyncio.gather(*streams)
    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": ""}, "webhook.url"),
        ({"url": "ftp://mall/hook"}, "webhook.url"),
        ({"url": "http://"}, "webhook.url"),
        ({"url": "http://mall:port/"}, "webhook.url"),
        ({"url": "https://mall/a b"}, "webhook.url"),
        ({"secrets": ()}, "webhook.secrets"),
        ({"secrets": (b"x" * 32, b"short")}, "webhook.secrets"),
    ],
)
def test_bad_endpoints(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Endpoint(**({"url": "https://mall/hook", "secrets": (SECRET,)} | options))
    assert refusal.value.field == field


def test_nothing_of_the_url_is_said_but_the_host() -> None:
    to = Endpoint(url="https://user:pw@mall.example:8443/hook?key=k", secrets=(SECRET,))
    assert to.name == "https://mall.example:8443"
