"""A flash-sale engine: who gets a unit is decided atomically in Redis, and every accepted order is
handed on exactly once in effect. Begin with ``Engine``.

Names are imported when they are first used (PEP 562): asyncio alone takes half of the 100 ms that a
backend which only has this package somewhere in its imports should wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seckill.admission import Admission
    from seckill.consumer import Consumer
    from seckill.engine import Engine
    from seckill.errors import (
        EventsTrimmed,
        InvalidInput,
        OutcomeUnknown,
        Overloaded,
        RedisUnavailable,
        Refused,
        SaleFileError,
        SeckillError,
        UnknownSale,
        UnsuitableServer,
    )
    from seckill.order import Order, Outcome, State, StockOutcome, Wish
    from seckill.queue import Place
    from seckill.queues import Placed
    from seckill.sale import Item, Sale
    from seckill.salefile import load_sale
    from seckill.status import Status
    from seckill.stream import Event, EventKind

__all__ = [
    "Admission",
    "Consumer",
    "Engine",
    "Event",
    "EventKind",
    "EventsTrimmed",
    "InvalidInput",
    "Item",
    "Order",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "Place",
    "Placed",
    "RedisUnavailable",
    "Refused",
    "Sale",
    "SaleFileError",
    "SeckillError",
    "State",
    "Status",
    "StockOutcome",
    "UnknownSale",
    "UnsuitableServer",
    "Wish",
    "load_sale",
]

_HOMES = {
    "admission": ("Admission",),
    "consumer": ("Consumer",),
    "engine": ("Engine",),
    "order": ("Order", "Outcome", "State", "StockOutcome", "Wish"),
    "queue": ("Place",),
    "queues": ("Placed",),
    "sale": ("Item", "Sale"),
    "salefile": ("load_sale",),
    "status": ("Status",),
    "stream": ("Event", "EventKind"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"seckill.{_HOME_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
