"""``seckill rebuild``: brings a sale back that Redis has lost, from the ledger."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from seckill.cli.command import LedgerUrl, SaleId, on_engine, open_ledger
from seckill.cli.ledger_sale import known_sale
from seckill.cli.output import Output, complain, countdown, moment, warn
from seckill.engine import Engine

if TYPE_CHECKING:
    from seckill.ledger.rebuild import Rebuilt

__all__ = ["rebuild"]

UNKNOWN_ORDERS: Final = 3
# What a fence says of how far the sale is known to have been, to the ledger or to an engine.
_KNOWN: Final = re.compile(r"events up to (\d+) are known$")


@on_engine
async def rebuild(
    engine: Engine,
    out: Output,
    sale: SaleId,
    admit: Annotated[
        bool,
        typer.Option(
            "--admit",
            help="Take in orders that only Redis knows, as long as stock and limits last.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even if nothing is missing: its keys were edited, say."),
    ] = False,
    ledger: LedgerUrl = None,
) -> int:
    """Bring a sale back that Redis has lost, or lost a part of, from the ledger. It is paused then:
    look at it, and let it go on with `seckill sale resume`.

    Exit code: 0 rebuilt, or nothing was wrong; 1 it failed and can be repeated; 3 Redis has orders
    that the ledger does not know, and nothing was changed: see --admit.
    """
    async with open_ledger(ledger) as book:
        await known_sale(book, sale)
        # Only this command needs it, and it brings the database's driver.
        from seckill.ledger.rebuild import rebuild as run

        done = await run(engine, book, sale, admit=admit, force=force)
    data = msgspec.structs.asdict(done) | {"lost_events": _known_seq(done) - done.last_seq}
    if done.unknown:
        if out.json:
            out.answer(data)
        return complain(_refusal(done), code=UNKNOWN_ORDERS)
    if not done.done:
        out.answer(data, f"sale {sale}: Redis has all that the ledger has; nothing to rebuild")
        return 0
    out.answer(data, _told(done))
    if done.holes and not out.json:
        warn(f"{done.holes:,} events before the ledger's last are missing there: seckill reconcile")
    return 0


def _refusal(done: Rebuilt) -> str:
    more = done.unknown_count - len(done.unknown)
    names = ", ".join(done.unknown) + (f" and {more:,} more" if more else "")
    return (
        f"Redis has {_orders(done.unknown_count)} of sale {done.sale} that the ledger does not"
        f" know, or does not know as paid: {names}; nothing was changed. --admit takes them in as"
        " long as stock and limits last"
    )


def _orders(count: int) -> str:
    return "1 order" if count == 1 else f"{count:,} orders"


def _told(done: Rebuilt) -> str:
    ago = countdown(done.last_ms, done.at_ms)
    end = f"ends at event {done.last_seq:,} of {moment(done.last_ms)}, {ago}"
    lines = [
        f"✓ sale {done.sale} was rebuilt: {_orders(done.orders)} of the ledger; it is {done.state}",
        f"  what had happened: {done.reason}",
        f"  the ledger {end if done.last_seq else 'had none of its events'}",
    ]
    if done.seen_at_ms:
        seen = f"event {done.seen_seq:,} at {moment(done.seen_at_ms)}"
        lines.append(f"  Redis was last seen with {seen}")
    lines.append(_lost(done))
    if done.admitted:
        taken = f"taken in, which only Redis knew: {_orders(done.admitted)}"
        lines.append(f"  {taken}, {done.expired:,} of them as expired: no unit was left for these")
    if done.queue_lost:
        lines.append("  its queue begins anew: tickets and tokens are void, and buyers join again")
    if done.spared_ms > done.at_ms:
        lines.append(f"  no hold lapses before {moment(done.spared_ms)}")
    lines.append(
        f"  consumer groups on the new stream: {', '.join(done.groups)}; others begin with it when"
        " they come, and have missed what they had not read"
    )
    if done.state == "paused":
        lines.append(f"  next: seckill verify {done.sale}, then seckill sale resume {done.sale}")
    return "\n".join(lines)


def _known_seq(done: Rebuilt) -> int:
    """The last event that anybody has told of: also an engine, by which the sale was fenced."""
    told = _KNOWN.search(done.reason)
    return max(done.last_seq, done.seen_seq, int(told[1]) if told else 0)


def _lost(done: Rebuilt) -> str:
    """What is missing. An engine may have acknowledged orders that nobody else has heard of."""
    known_seq = _known_seq(done)
    but = ", but for what was taken in" if done.admitted else ""
    if missing := known_seq - done.last_seq:
        events = "1 event" if missing == 1 else f"{missing:,} events"
        after = f"whatever was acknowledged after event {known_seq:,} is not there either{but}"
        return f"  lost: {events} at least, up to event {known_seq:,}; {after}"
    after = f"whatever was acknowledged after its last event is not there{but}"
    return f"  lost: nothing that the ledger knows of; {after}"
