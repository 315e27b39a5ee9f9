"""``seckill queue``: a sale's queue while it runs, and its keys replaced."""

from __future__ import annotations

from typing import Any

import msgspec
import typer
from rich.text import Text

from seckill.checks import to_ms
from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, fact_lines, moment, outcome_data
from seckill.engine import Engine
from seckill.queue import View
from seckill.sale import Sale
from seckill.status import Status
from seckill.tokens import KEYS_MAX

__all__ = ["app", "who_is_next"]

app = typer.Typer(no_args_is_help=True)

_LABEL = 8
_ROTATED = (
    "a new key signs; what the last two have signed goes on working, "
    f"so a key that has leaked counts until it was rotated {KEYS_MAX} times"
)


@app.command("show")
@on_engine
async def show(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show how many wait, how many were called, how fast it goes, and why nobody is called."""
    view = await engine.queue.look(sale)
    if isinstance(view, Status):
        return out.verdict(view, f"sale {sale}", _status_data(view))
    definition, shard = await engine.sale(sale), engine.at_hand(sale)
    pace = shard.queue.pace_per_s if shard is not None and shard.queue is not None else 0.0
    mode = definition.admission.mode if definition.admission is not None else "open"
    reason = await _why_nobody(engine, definition, view)
    data = {"sale": sale, "mode": mode} | msgspec.structs.asdict(view)
    data |= {
        "refusal": view.refusal and view.refusal.name.lower(),
        "pace_per_s": round(pace, 1),
        "nobody_is_called": reason,
    }
    title = Text.assemble((definition.title, "bold"), f"  {sale}  {mode}")
    out.answer(data, title, fact_lines(_rows(view, pace), out.console.width, label=_LABEL), reason)
    return 0


@app.command("rotate")
@on_engine
async def rotate(engine: Engine, out: Output, sale: SaleId) -> int:
    """Replace the key that signs a sale's tickets and tokens; takes some seconds. What the last two
    keys have signed goes on working, so a key that has leaked is only out after three rotations."""
    done = await engine.queue.rotate(sale)
    said = _ROTATED if done.ok else ""
    return out.verdict(done.status, f"sale {sale}: rotate", outcome_data(done), said=said)


def who_is_next(view: View) -> str:
    """A queue in a few words."""
    return (
        f"{view.waiting:,} waiting, {view.called:,} called, {view.live:,} of them may still order"
    )


def _rows(view: View, pace: float) -> list[tuple[str, list[str]]]:
    tickets = [f"{view.next:,} given out"]
    if view.closed is not None:
        tickets.append(f"{view.closed:,} when the list was closed")
    if view.ranked is not None:
        tickets.append(f"{view.ranked:,} in order")
    waiting = [f"{view.waiting:,}"]
    if view.waiting:
        waiting.append(f"the stock left may reach {view.reach:,} of them")
    return [
        ("tickets", tickets),
        ("waiting", waiting),
        (
            "called",
            [
                f"{view.called:,}",
                f"{view.live:,} may still order",
                f"{view.lapses:,} let their turn lapse",
                f"{pace:,.1f} a second",
            ],
        ),
        ("units", [f"{view.available:,} available", f"{view.held:,} held"]),
    ]


async def _why_nobody(engine: Engine, sale: Sale, view: View) -> str:
    """Why nobody is called at this moment; empty where somebody is, or will be in a moment."""
    admission = sale.admission
    joins_at = None if admission is None else admission.joins_at
    if joins_at is not None and view.now_ms < to_ms(joins_at):
        return f"nobody is called: tickets can be taken from {moment(to_ms(joins_at))}"
    if admission is not None and admission.is_drawn and view.ranked is None:
        if view.closed is None:
            return f"nobody is called: the list of tickets closes at {moment(sale.draw_ms)}"
        record = await engine.queue.record(sale.id)
        if admission.public_value is not None and (record is None or record.public_value is None):
            value = f"{admission.public_value!r}"
            return f"nobody is called: hand in {value} (seckill draw value {sale.id} VALUE)"
        return "nobody is called: the tickets are being put in order"
    if view.refusal is not None:
        return f"nobody is called: {view.refusal.meaning}"
    if not view.waiting:
        return "nobody is called: nobody waits"
    if view.available:
        return ""
    if view.held:
        return f"nobody is called: all that is left is held ({view.held:,} units)"
    return "nobody is called: sold out"


def _status_data(status: Status) -> dict[str, Any]:
    return {"ok": status.ok, "status": status.name.lower()}
