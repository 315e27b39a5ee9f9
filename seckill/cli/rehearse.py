"""``seckill rehearse``: a sale's evening before it happens, under the rules that it will have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from seckill.cli.command import Json
from seckill.cli.files import plain_text, written
from seckill.cli.output import Output, fact_lines, new_table
from seckill.rehearse import (
    Habits,
    Rehearsal,
    Rules,
    Variant,
    make_crowd,
    own_pacer,
    picture,
    read_span,
    rules_of,
    what_if,
)
from seckill.rehearse import rehearse as play
from seckill.rehearse.model import BUYERS_MAX
from seckill.rehearse.result import Part
from seckill.sale import Sale
from seckill.salefile import load_sale
from seckill.zone import span

__all__ = ["rehearse"]

LABEL: Final = 12
_NAMES: Final = {
    "rate_per_s": "{:,.0f} called a second",
    "token_life_ms": "a token lives {}",
    "pay_through": "{:.0%} of the orders paid",
}


def rehearse(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.toml", help="The sale, as for sale create.")
    ],
    buyers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=BUYERS_MAX, help="How many come.  [default: 100000]"),
    ] = None,
    arrival: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="rush: most at once, some later. even:600s: evenly over a time. NAME.csv: seconds "
            "since the opening, a buyer a row.",
        ),
    ] = "rush",
    show_up: Annotated[
        float, typer.Option(metavar="SHARE", help="Of those who are called, who come.")
    ] = 0.7,
    order_after: Annotated[
        str, typer.Option(metavar="TIME", help="From the call to the order, on average.")
    ] = "10s",
    pay_through: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the orders, which are paid.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(metavar="N", help="Another one is another crowd.")] = 1,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out the same evening under other rules.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the evening as an SVG.")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis",
            metavar="URL",
            help="Reckon on this server instead of one of our own; nothing is written to it.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rehearse a sale's evening: who waits how long, whose chance is what, when all is gone. The
    queue reckons as the engine's does."""
    sale = load_sale(file)
    rules = rules_of(sale)
    habits = Habits(
        show_up=show_up,
        order_mean_ms=read_span(order_after, "--order-after"),
        pay_through=pay_through,
    )
    crowd = make_crowd(arrival, buyers, rules, seed)
    with own_pacer(redis and plain_text(redis, "--redis")) as pacer:
        found, evening = play(rules, crowd, habits, pacer)
        others = [] if alone else list(what_if(rules, crowd, habits, pacer))
    if svg is not None:
        with written(svg, "--svg") as out_file:
            out_file.write(picture(evening, sale.title, _facts(found)).encode())
    out = Output(json=json)
    data = {"sale": sale.id} | found.data()
    data["what_if"] = [_variant_data(other) for other in others]
    out.answer(data, *_screen(sale, rules, found, others, out.console.width))
    if svg is not None and not json:
        out.console.print(Text.assemble("\n", ("✓ ", "green"), f"written to {svg}"))


def _variant_data(variant: Variant) -> dict[str, Any]:
    return {"name": variant.name, "value": variant.value, "result": variant.result.data()}


def _facts(found: Rehearsal) -> list[str]:
    """What stands above a picture."""
    counts = [f"{found.units:,} units for {found.buyers:,} buyers"]
    if found.mode != "open":
        counts.append(f"{found.called:,} called")
    ends = [_after(found.sold_out_ms, "sold out"), _after(found.gone_ms, "all paid")]
    if found.wait_median_ms is not None:
        ends.append(f"the called wait {_span(found.wait_median_ms)} in the median")
    return [" · ".join(counts), " · ".join(ends)]


def _screen(
    sale: Sale, rules: Rules, found: Rehearsal, others: Sequence[Variant], width: int
) -> list[RenderableType]:
    head = Text.assemble((sale.title, "bold"), f"  {sale.id}  ", (found.mode, "bold green"))
    head.append(f"\n{_rules(rules)}", style="dim")
    parts: list[RenderableType] = [head, "", fact_lines(_lines(found), width, label=LABEL)]
    parts += ["", _deciles(found.deciles, waits=found.mode != "open")]
    if others:
        parts += ["", _what_if(found, others)]
    return parts


def _rules(rules: Rules) -> str:
    if rules.mode == "open":
        return "whoever comes is served"
    words = [f"a token lives {span(rules.token_life_ms)}"]
    if rules.mode != "draw":
        words.insert(0, f"at most {rules.rate_per_s:,} called a second")
        words.append(f"at most {rules.overbook_max} for each unit left")
    return ", ".join(words)


def _lines(found: Rehearsal) -> list[tuple[str, list[str]]]:
    came = [f"{found.buyers:,}"]
    if late := found.buyers - found.joined:
        came.append(f"{late:,} too late")
    sold = [
        f"{found.paid:,} of {found.units:,} units",
        f"{found.lapsed:,} orders lapsed unpaid",
        f"{found.unsold:,} units unsold",
    ]
    lines = [("buyers", came), ("sold", sold), ("sold out", _ends(found))]
    if found.mode == "open":
        return [*lines, ("turned away", [f"{found.empty:,} found nothing left"])]
    called = [
        f"{found.called:,}",
        f"{found.absent:,} tokens lapsed",
        f"{found.empty:,} came and found nothing left",
    ]
    lines.insert(1, ("called", called))
    if found.wait_median_ms is not None:
        waits = (("median", found.wait_median_ms), ("90 %", found.wait_p90_ms))
        shown = [f"{name} {_span(ms)}" for name, ms in (*waits, ("99 %", found.wait_p99_ms))]
        lines.insert(2, ("their wait", shown))
    if found.eta_error is not None:
        wrong = f"what they were told on joining was off by {found.eta_error:.0%} in the median"
        lines.insert(3, ("estimate", [wrong]))
    return [*lines, ("in vain", _in_vain(found))]


def _ends(found: Rehearsal) -> list[str]:
    if found.sold_out_ms is None:
        return ["units left at the end", "never sold out"]
    ends = [_after(found.sold_out_ms, "no unit left")]
    paid = (
        "not all were paid" if found.gone_ms is None else _after(found.gone_ms, "the last one paid")
    )
    return [*ends, paid]


def _in_vain(found: Rehearsal) -> list[str]:
    facts = [f"{found.in_vain:,} were never called"]
    if found.told_median_ms is not None:
        facts.append(f"half of them were told within {_span(found.told_median_ms)}")
    if found.untold:
        facts.append(f"{found.untold:,} not before the end")
    return facts


def _after(ms: int | None, what: str) -> str:
    return f"never {what}" if ms is None else f"{what} after {_span(ms)}"


def _deciles(deciles: Sequence[Part], *, waits: bool) -> Table:
    columns = ["came", ">buyers", ">called", ">units", ">chance"]
    table = new_table(*columns, *((">wait, median", ">90 %") if waits else ()))
    for part in deciles:
        row = [f"{_moment(part.from_ms)} … {_moment(part.to_ms)}", f"{part.buyers:,}"]
        row += [f"{part.called:,}", f"{part.units:,}", f"{part.chance * 100:.3g} %"]
        if waits:
            row += [_span(part.wait_median_ms), _span(part.wait_p90_ms)]
        table.add_row(*row)
    return table


def _moment(ms: int) -> str:
    if abs(ms) < 100:
        return "0 s"
    return f"{'−' if ms < 0 else '+'}{_span(abs(ms))}"


def _span(ms: int | None) -> str:
    if ms is None:
        return "-"
    # Nobody wants to know a rehearsal's milliseconds.
    return "under 0.1 s" if 0 < ms < 100 else span(ms // 100 * 100)


def _what_if(found: Rehearsal, others: Sequence[Variant]) -> Table:
    table = new_table(
        "what if", ">sold out", ">all paid", ">called", ">found nothing", ">wait, median", ">90 %"
    )
    for name, result in [("as it is", found), *((_name(other), other.result) for other in others)]:
        table.add_row(
            name,
            _span(result.sold_out_ms),
            _span(result.gone_ms),
            f"{result.called:,}",
            f"{result.empty:,}",
            _span(result.wait_median_ms),
            _span(result.wait_p90_ms),
        )
    return table


def _name(other: Variant) -> str:
    value = span(int(other.value)) if other.name == "token_life_ms" else other.value
    return _NAMES[other.name].format(value)
