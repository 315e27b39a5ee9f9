"""``seckill reconcile``: whether Redis, the stream and the ledger tell the same story of a sale."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from seckill.cli.command import LedgerUrl, on_engine, open_ledger
from seckill.cli.output import Output, complain, new_table, warn
from seckill.engine import Engine
from seckill.errors import InvalidInput, ScriptFailed, SeckillError, UnknownSale, UpgradeNeeded
from seckill.keys import SALES, shard_keys
from seckill.sale import check_sale_id

if TYPE_CHECKING:
    from seckill.ledger import Ledger
    from seckill.ledger.drift import Drift, DriftKind, Report

__all__ = ["reconcile"]

SHOWN: Final = 8
"""Drifts of one kind in the table; --json has 100 of each."""
UNDECIDED: Final = 2
KEY_TYPES: Final = ("hash", "hash", "hash", "hash", "list", "list", "stream")
"""Of a sale's keys, in the order of ``keys.NAMES``."""
PATIENCE_S: Final = 30.0
PATIENCE_MAX_S: Final = 3_600.0


async def _reconcile(
    engine: Engine,
    out: Output,
    sale: Annotated[str | None, typer.Argument(metavar="[SALE]", help="The sale's id.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All sales of this server and of the ledger.")
    ] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend in the ledger what its events prove, and put orders back into their queues"
            " in Redis.",
        ),
    ] = False,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long the ledger may be behind.")
    ] = PATIENCE_S,
    ledger: LedgerUrl = None,
) -> int:
    """Compare Redis, its event stream and the ledger, order by order, while the sale runs.

    Exit code: 0 they agree, 1 drift is left, 2 something could not be compared.
    """
    if (sale is None) != every:
        problem = "is given with --all" if every else "is not given"
        raise InvalidInput("SALE", problem, "name one sale, or all with --all")
    if not 0 <= patience <= PATIENCE_MAX_S:
        limit = f"{PATIENCE_MAX_S:,.0f}"
        raise InvalidInput("--patience", f"{patience:g} is out of range", f"give 0 to {limit}")
    from seckill.ledger.mark import check_mark

    async with open_ledger(ledger) as book:
        await check_mark(engine, book)
        names = [sale] if sale else await _names(engine, book)
        if sale:
            # A wrong name must not pass for a damaged sale.
            check_sale_id(sale, "sale")
        found = [
            await _one(engine, book, name, fix=fix, patience_s=patience, quiet=out.json)
            for name in names
        ]
        # A sale is listed just before it is made.
        reports = [report for report in found if report is not None]
        await _tell_unlisted(engine, [report.sale for report in reports])
    if sale and not reports:
        problem = "neither Redis nor the ledger knows this sale (seckill sale list)"
        return complain(f"{sale}: {problem}", code=UNDECIDED)
    out.answer(_data(reports), *(_shown(report) for report in reports))
    if not reports and not out.json:
        out.console.print("no sales")
    if not all(report.decided for report in reports):
        return UNDECIDED
    return int(not all(report.ok for report in reports))


async def _names(engine: Engine, book: Ledger) -> list[str]:
    return sorted({*await engine.sales(), *(row["sale"] for row in await book.sales())})


async def _one(
    engine: Engine, book: Ledger, sale: str, *, fix: bool, patience_s: float, quiet: bool
) -> Report | None:
    from seckill.ledger.drift import Report
    from seckill.ledger.reconcile import reconcile as compare

    with _progress(sale, quiet=quiet) as told:
        try:
            return await compare(engine, book, sale, fix=fix, patience_s=patience_s, progress=told)
        except UnknownSale:
            return None
        except UpgradeNeeded as error:
            # The other sales can still be compared.
            return Report(sale, undecided=(str(error),))
        except (ScriptFailed, LookupError, ValueError) as error:
            return Report(sale, undecided=(await _damage(engine, sale, error),))


async def _damage(engine: Engine, sale: str, error: Exception) -> str:
    """Which keys of a sale somebody has damaged so that it can't be compared, and what to do."""
    keys = shard_keys(sale)
    client = engine._calls.client_of(keys[0])

    async def ask() -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.execute_command("TYPE", key)
            pipe.execute_command("HGETALL", keys[1])
            return await pipe.execute(raise_on_error=False)

    *types, stock = await engine._calls.attempt(ask)
    found = [
        f"{key} is a {kind.decode()}, not a {wanted}"
        for key, kind, wanted in zip(keys, types, KEY_TYPES, strict=True)
        if kind.decode() not in (wanted, "none")
    ]
    # No rebuild writes over a key that may be somebody else's.
    first = "take such a key away (redis-cli RENAME), then " if found else ""
    if isinstance(stock, dict):
        found += [
            f"field {field.decode(errors='replace')} of {keys[1]} is {value[:60]!r}, not a number"
            for field, value in sorted(stock.items())
            if not value.removeprefix(b"-").isdigit()
        ]
    said = "; ".join(found) or (str(error) if isinstance(error, SeckillError) else repr(error))
    remedy = f"{first}see docs/recovery.md, edited keys (seckill rebuild {sale} --force)"
    return f"damaged: {said}; {remedy}"


async def _tell_unlisted(engine: Engine, sales: list[str]) -> None:
    """Says on stderr which of these sales Redis has without having them in its list."""
    listed = set(await engine.sales())
    for sale in sales:
        key = shard_keys(sale)[0]
        client = engine._calls.client_of(key)
        if sale not in listed and await engine._calls.attempt(partial(client.exists, key)):
            said = f"Redis has sale {sale}, but its list of sales does not, so nobody looks after"
            warn(f"{said} it; put it back: redis-cli SADD {SALES} {sale}")


@contextmanager
def _progress(sale: str, *, quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar on the terminal while it takes long; it leaves nothing behind."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal or not sys.stdout.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.fields[sale]}  {task.description}", style="dim"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("waiting for the ledger", total=None, sale=sale)

        def told(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        yield told


# -- what people see --------------------------------------------------------------------------


def _shown(report: Report) -> RenderableType:
    parts: list[RenderableType] = []
    width = max((len(_where(drift)) for drift in report.drifts), default=0)
    for kind in dict.fromkeys(drift.kind for drift in report.drifts):
        parts += [*_kind_shown(report, kind, width), ""]
    parts += [
        Text.assemble(("? ", "yellow"), f"not compared: {problem}") for problem in report.undecided
    ]
    return Group(*parts, _verdict(report))


def _kind_shown(report: Report, kind: DriftKind, width: int) -> Iterator[RenderableType]:
    """A kind's name and meaning, the first of its drifts, and what to do."""
    left, mended = report.left.get(kind, 0), report.mended.get(kind, 0)
    mark = ("✗ ", "bold red") if left else ("✓ ", "green")
    name = f"{kind.value.replace('_', ' ')} ({left or mended:,})"
    yield Text.assemble(mark, (name, "bold"), f"  {kind.meaning}")
    drifts = [drift for drift in report.drifts if drift.kind is kind]
    # What is left comes first, for that is what somebody must look at.
    drifts.sort(key=lambda drift: drift.mended)
    table = new_table("", "where", "~what is seen")
    table.show_header = False
    # The columns of all kinds line up.
    table.columns[1].min_width = width
    for drift in drifts[:SHOWN]:
        style = "green" if drift.mended else ""
        table.add_row("", Text(_where(drift), style="dim"), Text(drift.text, style=style))
    hidden = left + mended - sum(drift.count for drift in drifts[:SHOWN])
    if hidden > 0:
        table.add_row("", "", Text(f"and {hidden:,} more; --json shows 100", style="dim"))
    yield table
    if left:
        yield Text(f"  → {kind.remedy(report.sale)}", style="cyan")


def _where(drift: Drift) -> str:
    if drift.last_seq > drift.seq:
        return f"events {drift.seq:,}-{drift.last_seq:,}"
    if drift.order and drift.seq:
        return f"{drift.order} ({drift.seq:,})"
    if drift.seq:
        return f"event {drift.seq:,}"
    return drift.order or drift.sku


def _verdict(report: Report) -> Text:
    compared = (
        f"{_count(report.events, 'event')}, {_count(report.orders, 'order')} and "
        f"{_count(report.skus, 'SKU')} compared in {report.took_s:.1f} s"
    )
    if report.stream_from > 1:
        compared += f"; the stream begins with event {report.stream_from:,}"
    if not report.skus:
        compared = ""
    left, mended = sum(report.left.values()), sum(report.mended.values())
    done = f", {mended:,} mended" if mended else ""
    if left:
        head = Text.assemble(("✗ ", "bold red"), f"sale {report.sale}: {left:,} left{done}")
    elif not report.decided:
        head = Text.assemble(("? ", "bold yellow"), f"sale {report.sale}: not decided{done}")
    else:
        said = "Redis, stream and ledger agree" if report.skus else "over, and gone from Redis"
        head = Text.assemble(("✓ ", "green"), f"sale {report.sale}: {said}{done}")
    return head.append(f"  {compared}" if compared else "", style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# -- what programs see ------------------------------------------------------------------------


def _data(reports: list[Report]) -> dict[str, Any]:
    return {
        "ok": all(report.ok and report.decided for report in reports),
        "decided": all(report.decided for report in reports),
        "sales": [_report_data(report) for report in reports],
    }


def _report_data(report: Report) -> dict[str, Any]:
    import msgspec

    data = msgspec.structs.asdict(report)
    data |= {"ok": report.ok, "decided": report.decided}
    data["drifts"] = [
        msgspec.structs.asdict(drift)
        | {
            "side": drift.kind.side,
            "meaning": drift.kind.meaning,
            "remedy": drift.kind.remedy(report.sale),
        }
        for drift in report.drifts
    ]
    return data


# -- the command ------------------------------------------------------------------------------


def _undecided(command: Callable[..., None]) -> Callable[..., None]:
    """A side that is away leaves the question open, which is neither a yes nor a no."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        try:
            command(**given)
        except InvalidInput:
            raise
        except SeckillError as error:
            raise typer.Exit(complain(str(error), code=UNDECIDED)) from None

    run.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    return run


_reconcile.__name__ = "reconcile"
reconcile: Final = _undecided(on_engine(_reconcile))
