"""The reaper: overdue orders give their units back without anybody asking."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import pytest
import redis

from seckill import reaper as module
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import ScriptFailed
from seckill.order import State
from seckill.reaper import SWEEP_ORDERS, SWEEPS_A_ROUND, Reaper, unsettled
from seckill.sale import Sale
from seckill.status import Status
from tests.conftest import MakeEngine
from tests.support import make_sale, rewind, travel


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    began = monotonic()
    while not await condition():
        assert monotonic() - began < seconds, "waited in vain"
        await asyncio.sleep(0.01)


async def on_sale(engine: Engine, stock: dict[str, int]) -> Sale:
    sale = make_sale(stock)
    await engine.create(sale)
    await engine.open(sale.id)
    return sale


async def hold(engine: Engine, sale: Sale, count: int) -> list[str]:
    outcomes = await asyncio.gather(
        *(engine.reserve(sale.id, f"b{i}", "k", {"a": 1}) for i in range(count))
    )
    return [outcome.order.id for outcome in outcomes if outcome.order]


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reaper looks for new sales every two seconds; tests do not want to wait for it."""
    monkeypatch.setattr(module, "REFRESH_S", 0.02)


async def test_units_come_back_by_themselves(make_engine: MakeEngine) -> None:
    engine = await make_engine(sweep_ms=10)
    sale = await on_sale(engine, {"a": 10})
    held, paying = await hold(engine, sale, 2)
    await engine.begin_payment(sale.id, paying)
    await asyncio.sleep(0.1)
    assert (await engine.snapshot(sale.id)).stock["a"].held == 2

    await travel(engine, sale.id, sale.hold_ms)

    async def expired() -> bool:
        return (await engine.snapshot(sale.id)).stock["a"].held == 0

    await until(expired)
    for order in (held, paying):
        found = await engine.order(sale.id, order)
        assert found is not None
        assert found.state is State.EXPIRED


async def test_many_are_swept_in_bounded_steps(make_engine: MakeEngine) -> None:
    """More than one step's worth, in one round."""
    idle = await make_engine()
    count = SWEEP_ORDERS * 3 + 50
    sale = await on_sale(idle, {"a": count})
    await hold(idle, sale, count)
    await travel(idle, sale.id, sale.hold_ms)
    engine = await make_engine(sweep_ms=10)

    async def expired() -> bool:
        return (await engine.snapshot(sale.id)).stock["a"].available == count

    await until(expired)


async def test_any_number_may_sweep_at_once(make_engine: MakeEngine) -> None:
    engines = [await make_engine(sweep_ms=1) for _ in range(4)]
    sale = await on_sale(engines[0], {"a": 200})
    await hold(engines[0], sale, 200)
    await travel(engines[0], sale.id, sale.hold_ms)

    async def expired() -> bool:
        return (await engines[0].snapshot(sale.id)).stock["a"].available == 200

    await until(expired)
    snapshot = await engines[0].snapshot(sale.id)
    assert snapshot.seq == 2 + 200 + 200


async def test_a_closed_sale_is_swept_until_it_is_settled(make_engine: MakeEngine) -> None:
    engine = await make_engine(sweep_ms=10)
    sale = await on_sale(engine, {"a": 3})
    await hold(engine, sale, 1)
    await engine.close(sale.id)
    assert sale.id in await unsettled(engine)
    await travel(engine, sale.id, sale.hold_ms)

    async def settled() -> bool:
        return (await engine.snapshot(sale.id)).state == "settled"

    await until(settled)
    assert sale.id not in await unsettled(engine)


async def test_what_has_not_begun_is_not_swept(make_engine: MakeEngine) -> None:
    engine = await make_engine()
    sale = make_sale()
    await engine.create(sale)
    assert sale.id not in await unsettled(engine)


async def test_a_jump_of_the_clock_is_said_once_and_expires_nothing(
    make_engine: MakeEngine, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    idle = await make_engine()
    sale = await on_sale(idle, {"a": 3})
    await hold(idle, sale, 1)
    rewind(client, sale.id, 700_000)
    with caplog.at_level(logging.ERROR, logger="seckill.reaper"):
        engine = await make_engine(sweep_ms=5)

        async def paused() -> bool:
            return (await engine.snapshot(sale.id)).state == "paused"

        await until(paused)
        await asyncio.sleep(0.1)
    said = [record for record in caplog.records if sale.id in record.getMessage()]
    assert len(said) == 1
    assert "clock" in said[0].getMessage()
    snapshot = await engine.snapshot(sale.id)
    assert (snapshot.reason, snapshot.stock["a"].held) == ("clock_jump", 1)

    await engine.resume(sale.id)

    async def expired() -> bool:
        return (await engine.snapshot(sale.id)).stock["a"].held == 0

    await travel(engine, sale.id, sale.hold_ms)
    await until(expired)


async def test_a_server_that_is_away_for_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedServer(tmp_path / "data", appendfsync="always") as server:
        async with Engine(server.url, timeout_ms=500, sweep_ms=10) as engine:
            sale = await on_sale(engine, {"a": 3})
            await hold(engine, sale, 1)
            await travel(engine, sale.id, sale.hold_ms - 5_000)
            path = server.url
            server.kill()
            with caplog.at_level(logging.WARNING, logger="seckill.reaper"):
                async with asyncio.timeout(30):
                    while "not swept" not in caplog.text:  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(0.01)
                await asyncio.sleep(1.2)  # It fails again, and does not say so.
            warnings = [r.getMessage() for r in caplog.records if "not swept" in r.getMessage()]
            assert len(warnings) == 1
            assert warnings[0].startswith("deadlines are not swept: ")
            server.start()
            assert server.url != path
    async with Engine(server.start(), sweep_ms=10) as engine:
        await travel(engine, sale.id, 5_000)

        async def expired() -> bool:
            return (await engine.snapshot(sale.id)).stock["a"].held == 0

        await until(expired)
    server.stop()


async def test_a_bug_in_one_sweep_does_not_end_them_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    swept: list[str] = []
    enough = asyncio.Event()

    async def expire(sale: str, look_at: int) -> tuple[Status, bool]:
        swept.append(sale)
        if len(swept) == 1:
            raise ZeroDivisionError("a bug")
        if len(swept) == 5:
            enough.set()
        return Status.DONE, False

    async def sales() -> list[str]:
        return ["s"]

    reaper = Reaper(expire, sales, interval_ms=1)
    reaper.start()
    await asyncio.wait_for(enough.wait(), 60)
    await reaper.stop()
    await reaper.stop()
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_one_sick_sale_does_not_starve_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    swept: list[str] = []

    async def expire(sale: str, look_at: int) -> tuple[Status, bool]:
        if sale == "sick":
            raise ScriptFailed("WRONGTYPE: one of its keys is damaged")
        swept.append(sale)
        return Status.DONE, False

    async def sales() -> list[str]:
        return ["sick", "well"]

    reaper = Reaper(expire, sales, interval_ms=1)
    reaper.start()
    async with asyncio.timeout(30):
        while len(swept) < 10:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    await reaper.stop()
    (said,) = caplog.messages
    assert said.startswith("deadlines of sale sick are not swept: ")


async def test_a_round_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """However much is due in one sale, the others get their turn."""
    swept: list[str] = []
    turn = asyncio.Event()

    async def expire(sale: str, look_at: int) -> tuple[Status, bool]:
        assert look_at == SWEEP_ORDERS
        swept.append(sale)
        if sale == "other":
            turn.set()
        return Status.DONE, sale == "endless"

    async def sales() -> list[str]:
        return ["endless", "other"]

    reaper = Reaper(expire, sales, interval_ms=1)
    reaper.start()
    await asyncio.wait_for(turn.wait(), 60)
    await reaper.stop()
    assert swept.index("other") == SWEEPS_A_ROUND
    assert not caplog.records
