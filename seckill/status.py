"""Every answer the engine can give, in one enum. Mirrors ``lua/lib/status.lua``; a test compares
the two. ``Status.transient`` answers for each: may the identical call, repeated later, succeed?
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status"]


class Status(IntEnum):
    """The answer to a call. ``ok`` says whether what was asked for now holds."""

    # The call succeeded, now or the first time it was made.
    CREATED = 1
    EXISTS = 2
    DONE = 3
    ALREADY = 4
    CONFIRMED_LATE = 5
    # Refusals of reserve; their precedence stands in lua/reserve.lua.
    CONFLICT = 10
    FENCED = 11
    UPGRADE_NEEDED = 12
    STALE_DEFINITION = 13
    UNKNOWN_SALE = 14
    UNKNOWN_SKU = 15
    PAUSED = 16
    NOT_OPEN = 17
    ENDED = 18
    NOT_ALLOWED = 19
    TOO_LATE = 20
    ORDER_LIMIT = 21
    SKU_LIMIT = 22
    BUYER_LIMIT = 23
    SOLD_OUT = 24
    INSUFFICIENT = 25
    # Refusals of the verbs on one order.
    UNKNOWN_ORDER = 30
    EXPIRED = 31
    RELEASED = 32
    CONFIRMED = 33
    REFUNDED = 34
    NOT_CONFIRMED = 35
    LATE = 36
    DUPLICATE_PAYMENT = 37
    TOO_MANY_PAYMENTS = 38
    # Refusals of the verbs on a sale.
    CLOSED = 40
    BELOW_COMMITTED = 41
    TOO_MANY_UNITS = 42
    CLOCK_JUMP = 43
    # Refusals of a sale's queue.
    NO_QUEUE = 50
    JOINS_CLOSED = 51
    UNKNOWN_TICKET = 52
    DRAWING = 53
    # Refusals of reserve in a sale with a queue, before Redis is asked.
    TOKEN_NEEDED = 60
    TOKEN_INVALID = 61
    TOKEN_EXPIRED = 62
    TOKEN_OTHER_BUYER = 63
    TOKEN_OTHER_SALE = 64
    TOKEN_RETIRED = 65
    # No caller meets it: the engine holds a roll call (lua/roll_call.lua), then repeats the call.
    NEW_SERVER = 70

    # That of an enum is the name's, worked out in Python each time one is looked up.
    __hash__ = int.__hash__

    @property
    def ok(self) -> bool:
        """Whether what was asked for holds now."""
        return self <= Status.CONFIRMED_LATE

    @property
    def transient(self) -> bool:
        """Whether an identical retry may succeed later."""
        return _TRANSIENT[self]

    @property
    def meaning(self) -> str:
        """One sentence for a person."""
        return _MEANING[self]


_TRANSIENT: dict[Status, bool] = {
    Status.CREATED: False,
    Status.EXISTS: False,
    Status.DONE: False,
    Status.ALREADY: False,
    Status.CONFIRMED_LATE: False,
    Status.CONFLICT: False,
    Status.FENCED: True,
    Status.UPGRADE_NEEDED: True,
    Status.STALE_DEFINITION: True,
    Status.UNKNOWN_SALE: True,
    Status.UNKNOWN_SKU: False,
    Status.PAUSED: True,
    Status.NOT_OPEN: True,
    Status.ENDED: False,
    Status.NOT_ALLOWED: False,
    Status.TOO_LATE: True,
    Status.ORDER_LIMIT: False,
    Status.SKU_LIMIT: True,
    Status.BUYER_LIMIT: True,
    Status.SOLD_OUT: True,
    Status.INSUFFICIENT: True,
    Status.UNKNOWN_ORDER: False,
    Status.EXPIRED: False,
    Status.RELEASED: False,
    Status.CONFIRMED: False,
    Status.REFUNDED: False,
    Status.NOT_CONFIRMED: True,
    Status.LATE: False,
    Status.DUPLICATE_PAYMENT: False,
    Status.TOO_MANY_PAYMENTS: False,
    Status.CLOSED: False,
    Status.BELOW_COMMITTED: True,
    Status.TOO_MANY_UNITS: False,
    Status.CLOCK_JUMP: True,
    Status.NO_QUEUE: False,
    Status.JOINS_CLOSED: False,
    Status.UNKNOWN_TICKET: False,
    Status.DRAWING: True,
    Status.TOKEN_NEEDED: False,
    Status.TOKEN_INVALID: False,
    Status.TOKEN_EXPIRED: False,
    Status.TOKEN_OTHER_BUYER: False,
    Status.TOKEN_OTHER_SALE: False,
    Status.TOKEN_RETIRED: False,
    Status.NEW_SERVER: True,
}

_MEANING: dict[Status, str] = {
    Status.CREATED: "created",
    Status.EXISTS: "made before by the identical call; this is the original",
    Status.DONE: "done",
    Status.ALREADY: "done before by the identical call",
    Status.CONFIRMED_LATE: "paid after it had expired, and sold again from stock",
    Status.CONFLICT: "this key was used before with another payload",
    Status.FENCED: "this server has lost a part of the sale; seckill rebuild brings it back",
    Status.UPGRADE_NEEDED: "the sale was opened with another script format; upgrade this worker",
    Status.STALE_DEFINITION: "the sale's definition changed; read it again",
    Status.UNKNOWN_SALE: "no such sale",
    Status.UNKNOWN_SKU: "the sale has no such SKU",
    Status.PAUSED: "the sale is paused",
    Status.NOT_OPEN: "the sale has not started",
    Status.ENDED: "the sale has ended",
    Status.NOT_ALLOWED: "too many unpaid orders of this buyer have expired",
    Status.TOO_LATE: "the order reached the server after its deadline",
    Status.ORDER_LIMIT: "more units than one order may have",
    Status.SKU_LIMIT: "more units of this SKU than one buyer may have",
    Status.BUYER_LIMIT: "more units than one buyer may have in this sale",
    Status.SOLD_OUT: "sold out; a unit may come back when a hold expires",
    Status.INSUFFICIENT: "fewer units are left than were asked for",
    Status.UNKNOWN_ORDER: "no such order, or not this buyer's",
    Status.EXPIRED: "the order was not paid in time",
    Status.RELEASED: "the order was given up",
    Status.CONFIRMED: "the order is paid",
    Status.REFUNDED: "the order was refunded",
    Status.NOT_CONFIRMED: "the order is not paid, so there is nothing to refund",
    Status.LATE: "paid too late, and no unit is left for it: the money is due back",
    Status.DUPLICATE_PAYMENT: "the order had been paid by another payment: this one is due back",
    Status.TOO_MANY_PAYMENTS: "too many payments for one order",
    Status.CLOSED: "the sale is closed",
    Status.BELOW_COMMITTED: "fewer units are available than should be taken away",
    Status.TOO_MANY_UNITS: "more units than a SKU can have",
    Status.CLOCK_JUMP: "the server's clock jumped while units were held; check it, then resume",
    Status.NO_QUEUE: "the sale has no queue: whoever comes is served",
    Status.JOINS_CLOSED: "the draw takes no more tickets",
    Status.UNKNOWN_TICKET: "no such ticket of this buyer; join first",
    Status.DRAWING: "the tickets are being put in order; ask again in a moment",
    Status.TOKEN_NEEDED: "the sale has a queue: join it, and order with the token of your turn",
    Status.TOKEN_INVALID: "this is not a token, or its signature is wrong",
    Status.TOKEN_EXPIRED: "the token's time is over; join again",
    Status.TOKEN_OTHER_BUYER: "the token is another buyer's",
    Status.TOKEN_OTHER_SALE: "the token is for another sale",
    Status.TOKEN_RETIRED: "the token's key has been replaced; ask for your place again",
    Status.NEW_SERVER: "this server is new, or has restarted, and is not trusted with the sale yet",
}
