"""Small sales for tests that break things."""

from __future__ import annotations

import datetime
from itertools import count

from seckill.engine import Engine
from seckill.sale import Item, Sale

__all__ = ["SKUS", "open_sale", "small_sale"]

SKUS = ("plain", "scarce")
_numbers = count(1)


def small_sale(*, plain: int = 1_000_000, scarce: int = 1) -> Sale:
    """A sale that is on, under an id of its own; nobody is limited."""
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    return Sale(
        id=f"faults-{next(_numbers)}",
        title="故障测试",
        opens_at=now - hour,
        ends_at=now + hour,
        items=tuple(
            Item(sku=sku, title=sku, price_fen=100, total=total, limit_per_buyer=0)
            for sku, total in zip(SKUS, (plain, scarce), strict=True)
        ),
    )


async def open_sale(engine: Engine, *, plain: int = 1_000_000, scarce: int = 1) -> str:
    """Creates and opens a small sale and returns its id."""
    sale = small_sale(plain=plain, scarce=scarce)
    assert (await engine.create(sale)).ok
    assert (await engine.open(sale.id)).ok
    return sale.id
