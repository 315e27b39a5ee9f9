"""A sale that the ledger knows is not made anew when Redis has lost it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.keys import shard_keys
from seckill.ledger import Ledger
from seckill.ledger.fence import check_new
from seckill.ledger.run import LedgerRunner
from seckill.sale import Sale
from seckill.server import create_app
from seckill.server.settings import Ledger as LedgerSettings
from seckill.server.settings import Settings
from tests.support import make_sale
from tests.web.intake import Client, serving, trusting


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        yield ledger


async def written_sale(engine: Engine, ledger: Ledger) -> Sale:
    sale = make_sale({"a": 3})
    await engine.create(sale)
    await LedgerRunner(engine, ledger, sales=[sale.id], once=True).run()
    return sale


async def lose(engine: Engine, sale: Sale) -> None:
    await engine._calls.client_of("sk:sales").delete(*shard_keys(sale.id))


async def test_only_what_was_lost_is_refused(engine: Engine, ledger: Ledger) -> None:
    await check_new(engine, ledger, "never-seen")
    sale = await written_sale(engine, ledger)
    await check_new(engine, ledger, sale.id)
    await lose(engine, sale)
    with pytest.raises(InvalidInput, match=f"seckill rebuild {sale.id}"):
        await check_new(engine, ledger, sale.id)


async def test_a_process_that_still_knows_it_is_not_fooled(engine: Engine, ledger: Ledger) -> None:
    """What it remembers of the sale says nothing of Redis."""
    sale = await written_sale(engine, ledger)
    await engine.sale(sale.id)
    await engine._calls.client_of("sk:sales").delete(*shard_keys(sale.id))
    with pytest.raises(InvalidInput, match="has lost"):
        await check_new(engine, ledger, sale.id)


async def test_over_http(engine: Engine, ledger: Ledger, tmp_path: Path) -> None:
    sale = await written_sale(engine, ledger)
    await lose(engine, sale)
    items = [{"sku": "a", "title": "a", "price_fen": 1, "total": 3}]
    body = {"title": "t", "opens_at": "2026-01-01T20:00:00+08:00", "items": items}
    body["ends_at"] = "2099-01-01T20:00:00+08:00"
    here, away = f"sqlite:///{tmp_path}/ledger.db", "postgresql://nobody@127.0.0.1:1/no"
    for url, http, code in ((here, 400, "invalid_input"), (away, 503, "ledger_unavailable")):
        settings = Settings(ledger=LedgerSettings(url=url, inside=False))
        async with (
            serving(create_app(engine, settings, identify=trusting)) as base,
            aiohttp.ClientSession() as session,
        ):
            answer = await Client(session, base).call(
                "PUT", f"/v1/admin/sales/{sale.id}", json=body
            )
            assert answer.is_problem(http, code)
    assert not await engine._calls.client_of("sk:sales").exists(shard_keys(sale.id)[0])
