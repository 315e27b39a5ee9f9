"""``seckill groups``: who reads a sale's events, how far behind, and dropping who is gone."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.text import Text

from seckill import redis as servers
from seckill.cli.command import SaleId, on_engine
from seckill.cli.output import Output, new_table
from seckill.engine import Engine
from seckill.groups import GroupState, drop_group, groups
from seckill.keys import stream_key
from seckill.servers import OwnClient

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.")]
Force = Annotated[bool, typer.Option("--force", help="Also when somebody reads for it now.")]


@app.command("list")
@on_engine
async def list_(engine: Engine, out: Output, sale: SaleId) -> int:
    """Show each group: what it has not read, what it has not acknowledged, who is at work."""
    await engine.sale(sale)
    with servers.our_errors():
        async with OwnClient(engine.url, stream_key(sale)) as client:
            states = await groups(client, sale)
    rows = [msgspec.structs.asdict(state) | {"active": state.active} for state in states]
    table = new_table(
        *("group", ">unread events", ">entries pending", ">oldest", ">consumers"),
        *("at work", ">dead letters"),
    )
    for state in states:
        table.add_row(*(Text(cell) for cell in _cells(state)))
    out.answer(rows, table if rows else "no groups: nobody reads this sale's events")
    return 0


@app.command("drop")
@on_engine
async def drop(
    engine: Engine, out: Output, sale: SaleId, group: GroupName, force: Force = False
) -> int:
    """Forget a group for good: its place in the stream and its dead letters."""
    await engine.sale(sale)
    with servers.our_errors():
        async with OwnClient(engine.url, stream_key(sale)) as client:
            gone = await drop_group(client, sale, group, force=force)
    said = (
        f"✓ {group} is forgotten: {gone.unread:,} events unread, {gone.pending:,} entries pending, "
        f"{gone.letters:,} dead letters"
    )
    out.answer({"group": group} | msgspec.structs.asdict(gone), said)
    return 0


def _cells(state: GroupState) -> tuple[str, ...]:
    return (
        state.name,
        f"{state.unread:,}",
        f"{state.pending:,}",
        f"{state.age_ms / 1_000:,.0f} s" if state.oldest_ms else "",
        f"{state.consumers:,}",
        "yes" if state.active else "no",
        "damaged" if state.letters is None else f"{state.letters:,}",
    )
