"""A flash-sale engine: who gets a unit is decided atomically in Redis, and every accepted order is
handed on exactly once in effect. Begin with ``Engine``.
"""

from seckill.engine import Engine
from seckill.errors import (
    InvalidInput,
    OutcomeUnknown,
    Overloaded,
    RedisUnavailable,
    SaleFileError,
    SeckillError,
    UnknownSale,
    UnsuitableServer,
)
from seckill.order import Order, Outcome, State
from seckill.sale import Item, Sale
from seckill.salefile import load_sale
from seckill.status import Status
from seckill.stream import Event, EventKind

__all__ = [
    "Engine",
    "Event",
    "EventKind",
    "InvalidInput",
    "Item",
    "Order",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "RedisUnavailable",
    "Sale",
    "SaleFileError",
    "SeckillError",
    "State",
    "Status",
    "UnknownSale",
    "UnsuitableServer",
    "load_sale",
]
