"""``seckill plan``: from an evening that is expected to the machines it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from seckill.cli.command import Json
from seckill.cli.output import Output, new_table
from seckill.plan import Asked, Plan, make_plan
from seckill.plan_figures import BUILT_IN, COMMAND, measured

__all__ = ["plan"]


def plan(
    orders_per_second: Annotated[
        int, typer.Option(help="Orders a second at the peak, all sales together.")
    ],
    buyers: Annotated[int, typer.Option(help="Who comes, with one order each at most.")],
    sales: Annotated[int, typer.Option(help="Sales at the same time that share it evenly.")] = 1,
    hold_minutes: Annotated[int, typer.Option(help="How long an order may stay unpaid.")] = 15,
    queue: Annotated[
        bool, typer.Option("--queue", help="Buyers join a queue first, and ask for their place.")
    ] = False,
    replicas: Annotated[
        int, typer.Option(metavar="N", help="Replicas of each Redis, as in `replicas:N`.")
    ] = 0,
    measured_file: Annotated[
        Path | None,
        typer.Option(
            "--measured",
            metavar="FILE",
            help=f"Costs of a machine of yours: the report of `{COMMAND}`. Rows it lacks are as "
            "built in.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Reckon the workers, cores, Redis, memory, network and disk of an evening, step by step."""
    asked = Asked(
        orders_per_second=orders_per_second,
        buyers=buyers,
        sales=sales,
        hold_minutes=hold_minutes,
        queue=queue,
        replicas=replicas,
    )
    made = make_plan(asked, BUILT_IN if measured_file is None else measured(measured_file))
    out = Output(json=json)
    data = msgspec.structs.asdict(made) | {"fits": made.fits}
    out.answer(data, *_shown(made))
    if not made.fits:
        raise typer.Exit(1)


def _shown(made: Plan) -> list[Text | Table]:
    asked = made.asked
    shown: list[Text | Table] = [
        Text(
            f"{asked.orders_per_second:,} orders/s at the peak, {asked.buyers:,} buyers, "
            f"{asked.sales:,} sale{'' if asked.sales == 1 else 's'}, held {asked.hold_minutes:,} "
            f"minutes, {'a queue' if asked.queue else 'no queue'}\n",
            style="bold",
        ),
        _steps(made),
        Text(f"\n{_sum(made)}", style="bold"),
        Text(
            f"headroom: cores and servers are {made.loaded:.0%} loaded at the peak; "
            f"not in it: nginx and TLS, the SQL database{'' if asked.replicas else ', replicas'}\n",
        ),
        _sources(made),
    ]
    shown += [Text.assemble("\n", ("✗ ", "bold red"), problem) for problem in made.problems]
    return shown


def _sum(made: Plan) -> str:
    """What to order, in one line."""
    servers = f"{made.redis_nodes:,} Redis"
    if made.asked.replicas:
        servers += f" with {made.redis_servers - made.redis_nodes:,} replicas"
    return (
        f"so: {made.workers:,} workers, {servers}, {made.ledger_consumers:,} of the ledger's "
        f"consumers; {made.cores:,} cores"
    )


def _steps(made: Plan) -> Table:
    table = new_table("what", "~how", "~comes to")
    for line in made.lines:
        table.add_row(Text(line.what), Text(line.how, style="dim"), Text(line.result))
    return table


def _sources(made: Plan) -> Table:
    table = new_table(">measured", "", "~by", "~on")
    above = ""
    for figure in made.figures.values():
        value, unit = figure.value, figure.unit
        if value >= 1e6:
            value, unit = value / 1e6, f"million {unit}"
        number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        on = "the same" if figure.machine == above else figure.machine
        table.add_row(number, unit, Text(figure.source), Text(on, style="dim"))
        above = figure.machine
    return table
