"""``seckill ledger adopt``: lets Redis belong to another ledger than it did."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from seckill.cli.command import LedgerUrl, on_engine, open_ledger
from seckill.cli.output import Output, complain, warn
from seckill.engine import Engine
from seckill.errors import InvalidInput

if TYPE_CHECKING:
    from seckill.ledger import Ledger
    from seckill.ledger.mark import Mark

__all__ = ["adopt", "warn_of_another"]


@on_engine
async def adopt(
    engine: Engine,
    out: Output,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    ledger: LedgerUrl = None,
) -> int:
    """Let Redis belong to this ledger from now on, and to no other: this one has taken the other's
    place for good. Stop whatever keeps the other one first."""
    # Only this command needs it, and it brings the database's driver.
    from seckill.ledger.mark import adopt as take_over
    from seckill.ledger.mark import read_mark

    async with open_ledger(ledger) as book:
        ours, before = await book.identity(), await read_mark(engine)
        other = None if before is None or before.id == ours else before
        if other and not yes and not _agrees(await _consequence(engine, book, other)):
            return complain("nothing was changed", code=1)
        await take_over(engine, book)
    said = ["✓ this Redis belongs to this ledger", f"  {book.name}"]
    if other:
        said += [
            f"  and no longer to {other.name or other.id}",
            "  next: seckill ledger run; seckill reconcile --all --fix brings what the other had",
        ]
    then = before and {"ledger": before.id, "name": before.name}
    out.answer({"ledger": ours, "name": book.name, "before": then}, "\n".join(said))
    return 0


async def warn_of_another(engine: Engine, book: Ledger) -> bool:
    """Whether Redis belongs to another ledger than this, which is said on stderr."""
    from seckill.ledger.mark import OtherLedger, check_mark

    try:
        await check_mark(engine, book)
    except OtherLedger as error:
        warn(str(error))
        return True
    return False


async def _consequence(engine: Engine, book: Ledger, other: Mark) -> str:
    """What whoever is asked should know."""
    here = set(await engine.sales())
    known = {row["sale"] for row in await book.sales() if not row["removed_at_ms"]}
    return (
        f"this Redis belongs to the ledger {other.name or other.id}; sales in Redis: {len(here)},"
        f" known to {book.name}: {len(here & known)}; sales that only the latter knows, and that"
        f" its keepers will fence here: {len(known - here)}"
    )


def _agrees(consequence: str) -> bool:
    if not sys.stdin.isatty():
        raise InvalidInput("--yes", f"is not given, and {consequence}", "give it to go on")
    typer.echo(consequence, err=True)
    return typer.confirm("Is this ledger to take the other one's place?", err=True)
