"""What a buyer may ask on a socket, decided and answered as over HTTP: by the same functions, with
the same words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, final

import msgspec

from seckill.status import Status

from .caller import Caller
from .exchange import decoded, reply
from .gate import Entry, ask
from .intake import Intake
from .orders import answer_of, decide, found, wish_of
from .problems import ANSWERS, INVALID_INPUT, KEY_REQUIRED, Kind, Problem, Reply
from .tickets import joined_by, left_by, looked_up, shown
from .wire_socket import (
    MESSAGE,
    OPS,
    BeginPayment,
    Buy,
    Join,
    Leave,
    Place,
    Release,
    Result,
    Time,
    head_of,
)

__all__ = ["ASKED", "GARBLED", "Asking", "Garbled", "garbled", "key_in", "place_at_hand"]


# What a message is called that does not say what it asks.
GARBLED: Final = "garbled"
# There are no headers here: the field of the message is named.
_KEY_REQUIRED: Final = Kind(KEY_REQUIRED.http, KEY_REQUIRED.code, "an order needs a `key`")


@final
class Garbled(msgspec.Struct, frozen=True):
    """A message that is none, with what is to be said of it."""

    id: int | str | None
    op: str
    problem: Problem


def garbled(text: str) -> Garbled:
    """What can be told of a message that MESSAGE refuses, and the problem that HTTP would have."""
    head = head_of(text)
    op = head.op if head.op in OPS.values() else GARBLED
    problem = no_key()
    if head.op and op == GARBLED:
        problem = Problem(INVALID_INPUT, f"send one of {', '.join(OPS.values())}", "op")
    elif op != "buy" or head.has_key:
        try:
            decoded(MESSAGE, text.encode())
        except Problem as found:
            problem = found
    return Garbled(head.id, op, problem)


class Asking(msgspec.Struct, frozen=True):
    """Who asks, about which sale, from where."""

    intake: Intake
    sale: str
    caller: Caller
    address: str


async def join(asking: Asking, verb: Join) -> Reply:
    """Gives the buyer a ticket. Asks the gate, as HTTP does."""
    caller = asking.caller
    await _pass_gate(asking, verb.proof)
    return await joined_by(asking.intake, asking.sale, caller.buyer, caller.tier)


def place_at_hand(asking: Asking, verb: Place) -> Reply | None:
    """Where the ticket stands, if that can be told at once. Raises Problem."""
    ticket = _ticket_in(verb)
    shard = asking.intake.engine.at_hand(asking.sale)
    queue = None if shard is None else shard.queue
    if shard is None or queue is None or not queue.fresh:
        return None
    return shown(queue.place_of(asking.caller.buyer, ticket), shard.sale)


async def place(asking: Asking, verb: Place) -> Reply:
    """The same, with all the time it takes."""
    buyer, ticket = asking.caller.buyer, _ticket_in(verb)
    return await looked_up(asking.intake.engine, asking.sale, buyer, ticket)


def _ticket_in(verb: Place) -> str:
    if verb.ticket is None:
        raise Problem(
            ANSWERS[Status.UNKNOWN_TICKET],
            "send the ticket in this header; POST …/tickets finds the one there is",
            "Seckill-Ticket",
        )
    return verb.ticket


async def leave(asking: Asking, verb: Leave) -> Reply:
    """Gives the buyer's ticket up."""
    return await left_by(asking.intake.engine, asking.sale, asking.caller.buyer)


async def buy(asking: Asking, verb: Buy) -> Reply:
    """Holds units. Asks the gate, as HTTP does."""
    buyer, key = asking.caller.buyer, key_in(verb)
    await _pass_gate(asking, verb.proof, key)
    return await decide(asking.intake.engine, asking.sale, wish_of(buyer, key, verb), "")


async def _pass_gate(asking: Asking, proof: str, key: str = "") -> None:
    """Returns if the gate, where there is one, lets this buyer in. Raises what ``ask`` raises."""
    if asking.intake.gate is not None:
        caller, address = asking.caller, asking.address
        entry = Entry(asking.sale, caller.buyer, key, caller.tier, address, proof)
        await ask(asking.intake.gate, entry)


def key_in(verb: Buy) -> str:
    """The idempotency key. Raises Problem when there is none."""
    if verb.key is None:
        raise no_key()
    return verb.key


def no_key() -> Problem:
    """What is said of an order without one."""
    detail = "send a new key for each wish, and the same key with each retry"
    return Problem(_KEY_REQUIRED, detail, "key")


async def begin_payment(asking: Asking, verb: BeginPayment) -> Reply:
    """The buyer goes to the cashier."""
    engine, buyer = asking.intake.engine, asking.caller.buyer
    return answer_of(await engine.begin_payment(asking.sale, verb.order, buyer=buyer))


async def release(asking: Asking, verb: Release) -> Reply:
    """Gives an unpaid order up."""
    engine, buyer = asking.intake.engine, asking.caller.buyer
    return answer_of(await engine.release(asking.sale, verb.order, buyer=buyer))


async def result(asking: Asking, verb: Result) -> Reply:
    """An order as it is now."""
    engine, buyer = asking.intake.engine, asking.caller.buyer
    return found(await engine.order(asking.sale, verb.order, buyer=buyer))


async def time(asking: Asking, verb: Time) -> Reply:
    """The clock that sales go by."""
    return reply(await asking.intake.clock.read())


ASKED: Final[dict[type, Callable[[Asking, Any], Awaitable[Reply]]]] = {
    Join: join,
    Place: place,
    Leave: leave,
    Buy: buy,
    BeginPayment: begin_payment,
    Release: release,
    Result: result,
    Time: time,
}
