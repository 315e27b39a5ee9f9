"""``seckill draw``: how far a sale's draw is, its public value, and what is published of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from seckill.cli.command import SaleId, on_engine
from seckill.cli.files import written
from seckill.cli.output import Output, complain, fact_lines, moment, outcome_data
from seckill.draw import DrawRecord
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.order import Outcome
from seckill.sale import Sale
from seckill.status import Status

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

TOO_EARLY = 2
"""The exit code where nothing can be said yet, as in `seckill verify-draw`."""
_LABEL = 14
_STEPS = (Status.DONE, Status.ALREADY, Status.NOT_OPEN, Status.DRAWING)


@app.command("show")
@on_engine
async def show(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show how far a sale's draw is, and do what can be done of it by now."""
    definition = await _drawn(engine, sale)
    status = await engine.queue.draw(sale)
    if status not in _STEPS:
        return out.verdict(status, f"sale {sale}: draw", outcome_data(Outcome(status)))
    record = await engine.queue.record(sale)
    found = await engine.queue.commitment(sale)
    commitment = "" if isinstance(found, Status) else found
    step = _step(definition, record, status)
    data = {"sale": sale, "step": step, "commitment": commitment, "draw": record}
    rows = [("commitment", [commitment])]
    if record is not None:
        rows.append(("tickets", [f"{record.tickets:,}", f"closed at {moment(record.closed_ms)}"]))
        rows.append(("digest", [record.digest]))
        if record.public_value is not None:
            rows.append(("public value", [record.public_value]))
        if record.seed is not None:
            rows.append(("seed", [record.seed]))
    title = Text.assemble((definition.title, "bold"), f"  {sale}\n{step}")
    # Digests are to be copied, so no line is folded.
    out.answer(data, title, fact_lines(rows, 10_000, label=_LABEL))
    return 0


@app.command("value")
@on_engine
async def value(
    engine: Engine,
    out: Output,
    sale: SaleId,
    text: Annotated[
        str, typer.Argument(metavar="VALUE", help="The value, as its own source has published it.")
    ],
) -> int:
    """Hand in the public value that a draw's definition names; it can't be changed. Then draw."""
    definition = await _drawn(engine, sale)
    if definition.admission is None or definition.admission.public_value is None:
        problem = f"the definition of {sale!r} names no public value"
        raise InvalidInput("VALUE", problem, "there is nothing to hand in; it draws itself")
    done = await engine.queue.name_value(sale, text)
    if done.status is Status.NOT_OPEN:
        # The list must have its digest first, which whoever has been quicker has not seen to yet.
        await engine.queue.draw(sale)
        done = await engine.queue.name_value(sale, text)
    said = ""
    if done.ok:
        await engine.queue.draw(sale)
    elif done.status is Status.CONFLICT:
        said = "another value was handed in before, and it can't be changed"
    elif done.status is Status.NOT_OPEN:
        said = f"the list of tickets closes at {moment(definition.draw_ms)}; not before it"
    return out.verdict(done.status, f"sale {sale}: value", outcome_data(done), said=said)


@app.command("export")
@on_engine
async def export(
    engine: Engine,
    out: Output,
    sale: SaleId,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where draw.json and tickets.txt go.")
    ],
) -> int:
    """Write what is to be published of a draw: draw.json and tickets.txt. Once when the list is
    closed, and once more when the seed is in it."""
    definition = await _drawn(engine, sale)
    status = await engine.queue.draw(sale)
    if status not in _STEPS:
        return out.verdict(status, f"sale {sale}: draw", outcome_data(Outcome(status)))
    record = await engine.queue.record(sale)
    if record is None:
        step = _step(definition, record, status)
        return complain(f"sale {sale}: there is nothing to publish yet: {step}", code=TOO_EARLY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder} can't be made: {error.strerror}"
        raise InvalidInput("DIR", problem, "name a folder of yours") from None
    # The list first: a draw.json that is there has its list beside it.
    with written(folder / "tickets.txt", "DIR") as file:
        async for lines in engine.queue.tickets(sale):
            file.write(lines)
    with written(folder / "draw.json", "DIR") as file:
        file.write(record.encode())
    paths = [str(folder / name) for name in ("draw.json", "tickets.txt")]
    said = Text.assemble(("✓ ", "green"), f"{' and '.join(paths)}: {record.tickets:,} tickets")
    if record.seed is None:
        said.append("\n  the seed is not in it yet: write it again when the draw is done")
    else:
        said.append(f"\n  next: seckill verify-draw {' '.join(paths)}")
    data = {"files": paths, "tickets": record.tickets, "revealed": record.seed is not None}
    out.answer(data, said)
    return 0


async def _drawn(engine: Engine, sale: str) -> Sale:
    """The definition of a sale whose tickets are put in order by chance. Raises InvalidInput."""
    definition = await engine.sale(sale)
    if definition.admission is None or not definition.admission.is_drawn:
        raise InvalidInput("SALE", f"{sale!r} has no draw", "name a sale with a shuffle or a draw")
    return definition


def _step(sale: Sale, record: DrawRecord | None, status: Status) -> str:
    """Where a draw stands."""
    if record is not None and record.seed is not None:
        return "done: the tickets are in order, and the seed is revealed"
    named = sale.admission.public_value if sale.admission is not None else None
    if record is not None and named is not None and record.public_value is None:
        return f"the list is closed; hand in {named!r}: seckill draw value {sale.id} VALUE"
    if status is Status.NOT_OPEN:
        return f"tickets are taken; the list closes at {moment(sale.draw_ms)}"
    return "the list is closed; the tickets are being put in order"
