"""``seckill verify``: replays a sale's events and says whether every promise was kept."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer
from rich.text import Text

from seckill.cli.command import LEDGER_ENV, LedgerUrl, SaleId, on_engine, open_ledger
from seckill.cli.output import Output, complain
from seckill.engine import Engine
from seckill.verify import Verdict, Violation
from seckill.verify import verify as replay

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
    are no longer in Redis.

    Exit code: 0 every promise was kept, 1 one was broken, 2 too many events are missing to tell.
    """
    if ledger or os.environ.get(LEDGER_ENV):
        async with open_ledger(ledger) as book:
            verdict = await replay(engine, sale, ledger=book)
    else:
        verdict = await replay(engine, sale)
    counted = f"{_count(verdict.events, 'event')}, {_count(verdict.orders, 'order')}"
    if verdict.ok:
        shown = Text.assemble(("✓ ", "green"), f"sale {sale}: no violation in {counted}")
        out.answer(verdict_data(verdict), shown)
        return 0
    if out.json:
        out.answer(verdict_data(verdict))
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
    return complain(f"sale {sale} breaks a promise ({counted}{more})", code=1)


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
