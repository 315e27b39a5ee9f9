"""The report: every figure against a count by hand, and against a naive replay of stories."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.ledger import Ledger
from seckill.ledger import report as report_module
from seckill.ledger.report import Bucket, Report, make_report
from seckill.ledger.report_page import render
from seckill.ledger.rows import Raw, decode
from seckill.order import State
from seckill.stream import EventKind
from seckill.verify import Replay
from tests.ledger.scripted import OPENS_MS, SALE, fill, known, raws, settled
from tests.ledger.stories import STEPS, read_known, read_raws, story_sale, tell

CHINA = timezone(timedelta(hours=8))


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


# -- by hand ----------------------------------------------------------------------------------


async def test_every_figure(database_url: str) -> None:
    async with Ledger(database_url) as ledger:
        await fill(ledger, raws())
        await ledger.refused(SALE, '{"not_open": 3, "sold_out": 12}')
        report = await make_report(ledger, SALE)
    a, b = report.skus
    assert msgspec.structs.asdict(a) == {
        "sku": "a",
        "title": "=商品 a",
        "price_fen": 1_000,
        "total": 2,
        "sold": 0,
        "refunded": 2,
        "held": 2,
        "unsold": 0,
        "came_back": 3,
        "resold": 3,
        "gross_fen": 2_000,
        "refunded_fen": 2_000,
        "net_fen": 0,
        "sold_out_after_ms": 200,
        "sold_out_ms": 4_800 + 16_000,
    }
    assert msgspec.structs.asdict(b) == {
        "sku": "b",
        "title": "商品 b",
        "price_fen": 500,
        "total": 6,
        "sold": 1,
        "refunded": 1,
        "held": 1,
        "unsold": 4,
        "came_back": 1,
        "resold": 1,
        "gross_fen": 1_000,
        "refunded_fen": 500,
        "net_fen": 500,
        "sold_out_after_ms": 5_500,
        "sold_out_ms": 54_500 + 5_000,
    }
    assert msgspec.structs.asdict(msgspec.structs.replace(report, skus=[], curve=[])) == {
        "sale": SALE,
        "title": "<b>双十二</b> & 返场",
        "state": "paused",
        "reason": "库存核对",
        "opens_ms": OPENS_MS,
        "ends_ms": OPENS_MS + 3_600_000,
        "began_ms": OPENS_MS,
        "as_of_seq": 19,
        "as_of_ms": OPENS_MS + 80_000,
        "missing_events": 0,
        "removed_at_ms": 0,
        "gross_fen": 3_000,
        "refunded_fen": 2_500,
        "net_fen": 500,
        "due_back_payments": 1,
        "due_back_fen": 1_000,
        "total": 8,
        "sold": 1,
        "refunded": 3,
        "held": 3,
        "unsold": 4,
        "came_back": 4,
        "resold": 4,
        "sold_out_after_ms": 64_000,
        "orders": 6,
        "orders_by_state": {
            "held": 1,
            "paying": 1,
            "confirmed": 1,
            "refunded": 2,
            "released": 1,
            "expired": 0,
        },
        "buyers": 4,
        "paying_buyers": 2,
        "first_order_ms": OPENS_MS + 100,
        "last_order_ms": OPENS_MS + 70_000,
        "paid_orders": 3,
        "late_orders": 1,
        "pay_median_ms": 3_500,
        "pay_p90_ms": 60_700,
        "refusals": {"sold_out": 12, "not_open": 3},
        "skus": [],
        "curve": [],
        "bucket_ms": 1_000,
        "first_minute": [4, 0, 0, 0, 0, 2, *54 * [0]],
    }
    assert list(report.refusals) == ["sold_out", "not_open"]
    assert report.pay_through == 0.5
    assert report.curve == [
        Bucket(OPENS_MS, 4, 0),
        Bucket(OPENS_MS + 1_000, 0, 1),
        Bucket(OPENS_MS + 5_000, 2, 0),
        Bucket(OPENS_MS + 9_000, 0, 2),
        Bucket(OPENS_MS + 61_000, 0, 1),
        Bucket(OPENS_MS + 64_000, 2, 0),
        Bucket(OPENS_MS + 70_000, 1, 0),
    ]


async def test_it_says_up_to_when_it_knows_all(ledger: Ledger) -> None:
    await fill(ledger, raws())
    # Redis had more than the ledger when it was last seen, so that moment says nothing.
    await ledger.seen(SALE, 25)
    assert (await make_report(ledger, SALE)).as_of_ms == OPENS_MS + 80_000
    await fill(ledger, settled())
    await ledger.seen(SALE, 23)
    # A seen_seq only rises, and 25 was seen: still the last event.
    assert (await make_report(ledger, SALE)).as_of_ms == OPENS_MS + 92_000
    await ledger.seen(SALE, 25)


async def test_a_sale_seen_idle_is_known_until_then(ledger: Ledger) -> None:
    await fill(ledger, raws())
    await ledger.seen(SALE, 19)
    report = await make_report(ledger, SALE)
    assert report.as_of_ms == (await ledger.sale(SALE))["seen_at_ms"] > OPENS_MS + 80_000
    # Nobody misses what is gone after the sale's end.
    assert report.skus[0].sold_out_ms == 4_800 + 3_600_000 - 64_000


async def test_events_that_are_not_there_yet_are_counted(ledger: Ledger) -> None:
    story = raws()
    await fill(ledger, [*story[:6], *story[9:]])
    report = await make_report(ledger, SALE)
    assert (report.as_of_seq, report.missing_events) == (19, 3)


async def test_what_a_rebuild_leaves_out_is_not_missing(ledger: Ledger) -> None:
    story = raws()
    at_ms = story[-1].at_ms
    story.append(Raw(1_000_020, at_ms, "sale", f"rebuilt|19|{at_ms}|6|19|paused|0"))
    await fill(ledger, [*story[:6], *story[7:]])
    report = await make_report(ledger, SALE)
    assert (report.as_of_seq, report.missing_events) == (1_000_020, 1)


async def test_a_closed_sale_is_not_sold_out_for_longer(ledger: Ledger) -> None:
    story = settled()[:15]  # Until E took the last ones.
    story += [story[-1]._replace(seq=16, at_ms=OPENS_MS + 70_000, subject="sale", value="closed|")]
    await fill(ledger, story)
    await ledger.seen(SALE, 16)
    assert (await make_report(ledger, SALE)).skus[0].sold_out_ms == 4_800 + 6_000


async def test_a_sale_of_which_nothing_happened(ledger: Ledger) -> None:
    await fill(ledger, raws()[:1])
    report = await make_report(ledger, SALE)
    assert (report.orders, report.pay_through, report.pay_median_ms) == (0, None, None)
    assert (report.curve, report.unsold, report.sold_out_after_ms) == ([], 5, None)
    assert "尚无订单" in render(report, CHINA).decode()


async def test_what_opens_late_begins_late(ledger: Ledger) -> None:
    story = raws()[:5]
    story[1] = story[1]._replace(at_ms=OPENS_MS + 50)
    await fill(ledger, story)
    report = await make_report(ledger, SALE)
    assert report.began_ms == OPENS_MS + 50
    assert report.skus[0].sold_out_after_ms == 150


async def test_an_unknown_sale(ledger: Ledger) -> None:
    with pytest.raises(UnknownSale):
        await make_report(ledger, "nobody")


@pytest.mark.parametrize(
    ("length_ms", "bucket_ms"),
    [(0, 1_000), (118_999, 1_000), (119_000, 2_000), (7_200_000, 120_000), (10**12, 8403361345)],
)
def test_the_length_decides_the_bucket(length_ms: int, bucket_ms: int) -> None:
    assert report_module._bucket_ms(length_ms) == bucket_ms


# -- by a naive replay ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_a_random_story(
    server: EmbeddedServer, ledger: Ledger, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "READ_ROWS", 7)
    rng = random.Random(seed)
    steps = [(rng.choice(STEPS), rng.randrange(30), rng.randrange(30)) for _ in range(120)]
    options = {"durability": "memory", "sweep_ms": 0}
    sale = story_sale()
    async with Engine(server.url, **options) as seller:
        await tell(seller, sale, steps)
    async with Engine(server.url, **options) as engine:
        real = await read_known(engine, sale.id)
        story = await read_raws(engine, sale.id)
        snapshot = await engine.snapshot(sale.id)
    await ledger.know(real)
    await ledger.write([(real, story)])
    report = await make_report(ledger, sale.id)

    events = [decode(real, raw) for raw in story]
    replay = Replay(sale)
    late: set[str] = set()
    for event in events:
        before = replay.orders.get(event.order.id) if event.order else None
        if event.kind is EventKind.CONFIRMED and before and before.state is State.EXPIRED:
            late.add(before.id)
        replay.feed(event)
    orders = replay.orders.values()
    paid = [order for order in orders if order.state in (State.CONFIRMED, State.REFUNDED)]
    refunded = [order for order in orders if order.state is State.REFUNDED]
    due = [event.order for event in events if event.kind is EventKind.REFUND_DUE and event.order]
    states = Counter(str(order.state) for order in orders)
    assert {state: n for state, n in report.orders_by_state.items() if n} == dict(states)
    assert report.gross_fen == sum(order.amount_fen for order in paid)
    assert report.refunded_fen == sum(order.amount_fen for order in refunded)
    assert report.due_back_fen == sum(order.amount_fen for order in due)
    assert report.due_back_payments == len(due)
    assert (report.late_orders, report.paid_orders) == (len(late), len(paid))
    assert report.buyers == len({order.buyer for order in orders})
    held_ms = {e.order.id: e.at_ms for e in events if e.order and e.kind is EventKind.HELD}
    took = sorted(
        e.at_ms - held_ms[e.order.id] for e in events if e.order and e.kind is EventKind.CONFIRMED
    )
    ranks = [math.ceil(len(took) * share) - 1 for share in (0.5, 0.9)] if took else []
    wanted = [took[rank] for rank in ranks] or [None, None]
    assert [report.pay_median_ms, report.pay_p90_ms] == wanted
    for sku in report.skus:
        stock = snapshot.stock[sku.sku]
        assert (sku.unsold, sku.held, sku.sold, sku.total) == (
            *(stock.available, stock.held, stock.confirmed, stock.total),
        )
        assert sku.gross_fen == sku.price_fen * sum(o.items.get(sku.sku, 0) for o in paid)
        assert 0 <= sku.resold <= sku.came_back
    for field in ("gross_fen", "refunded_fen", "net_fen"):
        assert getattr(report, field) == sum(getattr(sku, field) for sku in report.skus)
    held = [sum(e.order.items.values()) for e in events if e.order and e.kind is EventKind.HELD]
    assert sum(bucket.held for bucket in report.curve) == sum(held)
    assert sum(bucket.confirmed for bucket in report.curve) == sum(
        sum(order.items.values()) for order in paid
    )


# -- the page ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """Complains of what is not closed, and remembers what there is."""

    VOID = ("meta", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "onload"), (tag, name, value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


async def test_the_page_stands_alone(ledger: Ledger) -> None:
    await fill(ledger, raws()[:8] + raws()[9:])
    await ledger.refused(SALE, '{"sold_out": 1234, "of_a_newer_version": 1}')
    report = await make_report(ledger, SALE)
    text = render(report, CHINA).decode()
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & page.seen.keys()
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert page.seen["svg"] == 2, "one for a wide page, one for a phone"
    assert page.seen["b"] == 0, "a title is no markup"
    for word in ("<b>双十二</b> & 返场", "¥10.00", "1,234", "of_a_newer_version", "=商品 a"):
        assert word in page.words
    assert "1 earlier events have not reached the ledger" in text
    assert "2025-12-12 20:00:00" in text


async def test_the_chart_shows_every_bucket(ledger: Ledger) -> None:
    await fill(ledger, raws())
    report = await make_report(ledger, SALE)
    long = msgspec.structs.replace(report, bucket_ms=60_000)
    pictures = [Page(render(one, CHINA).decode()).seen for one in (report, long)]
    filled = sum((bucket.held > 0) + (bucket.confirmed > 0) for bucket in report.curve)
    assert pictures[0]["rect"] == 2 * filled
    # By the minute nothing is seen of the first one, so it gets a picture of its own.
    assert pictures[1]["svg"] == 4
    shown = filled + sum(units > 0 for units in report.first_minute)
    assert pictures[1]["rect"] == 2 * shown


async def test_times_are_of_the_zone(ledger: Ledger) -> None:
    await fill(ledger, raws())
    report: Report = await make_report(ledger, SALE)
    assert known().sale.opens_ms == report.opens_ms
    assert "2025-12-12 12:00:00" in render(report, UTC).decode()
