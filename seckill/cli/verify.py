"""``seckill verify``: replays a sale's events and says whether every promise was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from seckill.cli.command import LedgerUrl, SaleId, has_ledger, on_engine, open_ledger
from seckill.cli.ledger_adopt import warn_of_another
from seckill.cli.ledger_sale import known_sale
from seckill.cli.output import Output, complain, moment
from seckill.engine import Engine
from seckill.errors import UnknownSale
from seckill.verify import Verdict, Violation
from seckill.verify import verify as replay

if TYPE_CHECKING:
    from seckill.ledger import Ledger

__all__ = ["verdict_data", "verify", "violation_text"]


UNDECIDED: Final = 2
"""As in `seckill reconcile`."""


@on_engine
async def verify(
    engine: Engine,
    out: Output,
    sale: SaleId,
    all_: Annotated[
        bool, typer.Option("--all", help="List every violation, not just the first.")
    ] = False,
    ledger: LedgerUrl = None,
) -> int:
    """Prove from the events that nothing was oversold, undersold or lost. The ledger has those that
    are no longer in Redis, and sales that were removed.

    Exit code: 0 every promise was kept, 1 one was broken, 2 too many events are missing to tell,
    or Redis belongs to another ledger.
    """
    if has_ledger(ledger):
        async with open_ledger(ledger) as book:
            return await _with_ledger(engine, out, book, sale, all_=all_)
    try:
        return _told(out, await replay(engine, sale), all_=all_)
    except UnknownSale:
        said = f"no sale {sale!r} on this server (seckill sale list)"
        return complain(f"{said}; if it was removed, give --ledger URL, which has it", code=1)


async def _with_ledger(engine: Engine, out: Output, book: Ledger, sale: str, *, all_: bool) -> int:
    """What Redis no longer has comes from the ledger: some events, or the whole sale."""
    from seckill.ledger.mark import OtherLedger, check_mark
    from seckill.ledger.proof import prove

    try:
        # Another ledger may still prove a sale that Redis does not have, but no part of one.
        await engine.sale(sale)
        await check_mark(engine, book)
        return _told(out, await replay(engine, sale, ledger=book), all_=all_)
    except OtherLedger as error:
        return complain(str(error), code=UNDECIDED)
    except UnknownSale:
        await warn_of_another(engine, book)
        row: dict[str, Any] = await known_sale(book, sale)
    if row["state"] != "settled":
        said = f"Redis has lost sale {sale}, which is {row['state']} by the ledger"
        return complain(f"{said}; bring it back: seckill rebuild {sale}", code=1)
    removed_at_ms = row["removed_at_ms"]
    since = f"since {moment(removed_at_ms)}" if removed_at_ms else "any more"
    alone = f"by the ledger alone: Redis has not had it {since}"
    return _told(out, await prove(book, sale), all_=all_, alone=alone)


def _told(out: Output, verdict: Verdict, *, all_: bool, alone: str = "") -> int:
    """Says what was found; the exit code."""
    sale = verdict.sale
    data = verdict_data(verdict) | {"ledger_alone": bool(alone)}
    counted = f"{_count(verdict.events, 'event')}, {_count(verdict.orders, 'order')}"
    if verdict.ok:
        shown = Text.assemble(("✓ ", "green"), f"sale {sale}: no violation in {counted}")
        if alone:
            shown.append(f"\n  {alone}")
        out.answer(data, shown)
        return 0
    if out.json:
        out.answer(data)
        return UNDECIDED if verdict.trimmed_before else 1
    if verdict.trimmed_before:
        gone = (
            f"the events of sale {sale} before {verdict.trimmed_before:,} are not in Redis any more"
        )
        return complain(f"{gone}; give --ledger URL, which has them", code=UNDECIDED)
    for violation in verdict.violations if all_ else verdict.violations[:1]:
        complain(violation_text(violation), code=1)
    hidden = len(verdict.violations) - 1
    more = f"; {hidden} more with --all" if hidden and not all_ else ""
    where = f", {alone}" if alone else ""
    return complain(f"sale {sale} breaks a promise ({counted}{more}){where}", code=1)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def violation_text(violation: Violation) -> str:
    """A violation in one line."""
    where = f"event {violation.seq}" if violation.seq else "at the end"
    return f"violation: {violation.rule}: {violation.text} ({where})"


def verdict_data(verdict: Verdict) -> dict[str, object]:
    """A verdict for programs."""
    return {
        "ok": verdict.ok,
        "sale": verdict.sale,
        "events": verdict.events,
        "orders": verdict.orders,
        "violations": verdict.violations,
        "trimmed_before": verdict.trimmed_before,
    }
