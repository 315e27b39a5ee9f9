"""``seckill report``: what became of a sale, from the ledger: one screen, JSON, or a page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from seckill.cli.command import Json, LedgerUrl, SaleId, open_ledger
from seckill.cli.files import written
from seckill.cli.ledger_sale import known_sale
from seckill.cli.output import Output, fact_lines, new_table, yuan
from seckill.zone import CHINA, local, read_zone, span

if TYPE_CHECKING:
    from seckill.ledger.report import Bucket, Report
    from seckill.ledger.report_stock import SkuReport

__all__ = ["report", "report_screen"]

LABEL: Final = 12
CURVE_MAX: Final = 72
# Below this the items would have no room beside their numbers.
ROOMY: Final = 78
_BARS: Final = "▁▂▃▄▅▆▇█"

Zone = Annotated[
    str, typer.Option(metavar="ZONE", help="The times' zone, as +08:00 or Asia/Shanghai.")
]


def report(
    sale: SaleId,
    ledger: LedgerUrl = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it as one page that can be opened anywhere."),
    ] = None,
    zone: Zone = CHINA,
    json: Json = False,
) -> None:
    """Show what was sold, for how much, how fast, what came back and who was refused."""
    place, book = read_zone(zone), open_ledger(ledger)
    from seckill.ledger.report import make_report

    async def main() -> Report:
        async with book:
            await known_sale(book, sale)
            return await make_report(book, sale)

    found = asyncio.run(main())
    if html is not None:
        from seckill.ledger.report_page import render

        with written(html, "--html") as file:
            file.write(render(found, place))
    out = Output(json=json)
    out.answer(found.data(), *report_screen(found, place, out.console.width))
    if html is not None and not json:
        out.console.print(Text.assemble("\n", ("✓ ", "green"), f"written to {html}"))


def report_screen(report: Report, zone: tzinfo, width: int) -> list[RenderableType]:
    """The one screen of a report."""
    parts: list[RenderableType] = [
        _head(report, zone),
        "",
        fact_lines(_lines(report, zone), width, label=LABEL),
    ]
    if report.curve:
        parts += ["", _curve(report, zone, width)]
    return [*parts, "", _skus(report, width)]


def _head(report: Report, zone: tzinfo) -> Text:
    style = "bold green" if report.state == "open" else "bold yellow"
    head = Text.assemble((report.title, "bold"), f"  {report.sale}  ")
    head.append(report.state, style="" if report.state == "settled" else style)
    if report.reason:
        head.append(f" ({report.reason})")
    head.append(
        f"\nfrom {_moment(report.opens_ms, zone)} to {_moment(report.ends_ms, zone)}"
        f"\nas of event {report.as_of_seq:,}, {_moment(report.as_of_ms, zone)}",
        style="dim",
    )
    if report.removed_at_ms:
        head.append("; its keys have left Redis", style="dim")
    if report.missing_events:
        some = "event has" if report.missing_events == 1 else "events have"
        warning = f"\n{report.missing_events:,} earlier {some} not reached the ledger yet"
        head.append(f"{warning}: the figures are not complete", style="bold yellow")
    return head


def _lines(report: Report, zone: tzinfo) -> list[tuple[str, list[str]]]:
    lines = [
        ("revenue", _money(report)),
        ("units", _units(report)),
        ("orders", _orders(report)),
        ("buyers", [f"{report.buyers:,} with orders", f"{report.paying_buyers:,} paid"]),
        ("payment", _payment(report)),
        ("sold out", _sold_out(report)),
        ("refused", _refused(report)),
    ]
    if report.first_order_ms:
        first, last = (_moment(ms, zone) for ms in (report.first_order_ms, report.last_order_ms))
        lines.append(("first, last", [first, last]))
    return lines


def _money(report: Report) -> list[str]:
    facts = [f"{yuan(report.net_fen)} net", f"{yuan(report.gross_fen)} gross"]
    if report.refunded_fen:
        facts.append(f"{yuan(report.refunded_fen)} refunded")
    if report.due_back_payments:
        due = _count(report.due_back_payments, "payment")
        facts.append(f"{yuan(report.due_back_fen)} due back to buyers ({due})")
    return facts


def _units(report: Report) -> list[str]:
    facts = [f"{report.sold:,} sold", f"{report.held:,} held", f"{report.unsold:,} unsold"]
    facts.append(f"of {report.total:,}")
    if report.refunded:
        facts.append(f"{report.refunded:,} refunded")
    return facts


def _orders(report: Report) -> list[str]:
    states = [f"{count:,} {state}" for state, count in report.orders_by_state.items() if count]
    return [f"{report.orders:,} accepted", *states]


def _payment(report: Report) -> list[str]:
    if report.pay_through is None:
        return ["no order yet"]
    facts = [f"{_percent(report.pay_through)} of the orders paid"]
    if report.pay_median_ms is not None and report.pay_p90_ms is not None:
        facts.append(f"half of them within {span(report.pay_median_ms)}")
        facts.append(f"90 % within {span(report.pay_p90_ms)}")
    if report.late_orders:
        facts.append(f"{report.late_orders:,} after they had expired")
    return facts


def _sold_out(report: Report) -> list[str]:
    if report.sold_out_after_ms is None:
        facts = ["never all at once"]
    else:
        facts = [f"after {span(report.sold_out_after_ms)}"]
    if report.came_back:
        again = f"{report.resold:,} ordered again"
        facts.append(f"{_count(report.came_back, 'unit')} came back, {again}")
    return facts


def _refused(report: Report) -> list[str]:
    told = [f"{name.replace('_', ' ')} {count:,}" for name, count in report.refusals.items()]
    return told or ["nobody, as far as was counted"]


def _curve(report: Report, zone: tzinfo, width: int) -> Text:
    """Units ordered and paid for over time; each line has a scale of its own."""
    room = max(10, min(CURVE_MAX, width - LABEL - 28))
    span_ms, columns = _columns(report.curve, report.bucket_ms, room)
    picture, indent = Text(), " " * LABEL
    lines = [("ordered", "yellow", [held for held, _ in columns], span_ms)]
    lines += [("paid", "green", [paid for _, paid in columns], span_ms)]
    if any(report.first_minute) and report.bucket_ms > 1_000 and room >= len(report.first_minute):
        lines.insert(0, ("first 60 s", "yellow", report.first_minute, 1_000))
    for name, style, values, each_ms in lines:
        peak = max(values)
        bars = "".join(_bar(value, peak) for value in values)
        picture.append(f"{name:<{LABEL}}", style="dim").append(bars, style=style)
        picture.append(f"  up to {_count(peak, 'unit')} in {span(each_ms)}\n", style="dim")
    first_ms = report.curve[0].at_ms
    ends_ms = first_ms + span_ms * len(columns)
    begins, ends = (f"{local(ms, zone):%H:%M:%S}" for ms in (first_ms, ends_ms))
    gap = max(1, len(columns) - len(begins) - len(ends))
    picture.append(f"{indent}{begins}{' ' * gap}{ends}", style="dim")
    return picture


def _columns(curve: list[Bucket], bucket_ms: int, room: int) -> tuple[int, list[tuple[int, int]]]:
    """The buckets put together until there are no more of them than ``room``, and their length."""
    first_ms = curve[0].at_ms
    count = (curve[-1].at_ms - first_ms) // bucket_ms + 1
    span_ms = -(-count // room) * bucket_ms
    columns = [(0, 0)] * ((curve[-1].at_ms - first_ms) // span_ms + 1)
    for bucket in curve:
        index = (bucket.at_ms - first_ms) // span_ms
        held, confirmed = columns[index]
        columns[index] = held + bucket.held, confirmed + bucket.confirmed
    return span_ms, columns


def _bar(value: int, peak: int) -> str:
    """Whatever is not nothing is seen."""
    return _BARS[-(-value * len(_BARS) // peak) - 1] if value else " "


def _skus(report: Report, width: int) -> RenderableType:
    """A row for each item. Where a name has no room beside its numbers it stands above them: a SKU
    that is cut into pieces can't be searched for, nor copied."""
    roomy = width >= ROOMY
    between = ("held", "unsold", "again") if roomy else ("unsold",)
    heads = ("total", "sold", *between, "net revenue", "sold out after")
    rows = [_sku_row(sku, roomy=roomy) for sku in report.skus]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = width - sum(widths) - 2 * len(widths)
    longest = max(cell_len(part) for sku in report.skus for part in (sku.title, sku.sku))
    if longest > room:
        return _stacked(report, (heads, *rows), widths)
    beside = all(cell_len(f"{sku.title}  {sku.sku}") <= room for sku in report.skus)
    table = new_table("~item", *(f">{head}" for head in heads))
    for sku, row in zip(report.skus, rows, strict=True):
        name = Text.assemble(sku.title, ("  " if beside else "\n"), (sku.sku, "dim"))
        table.add_row(name, *row)
    return table


def _sku_row(sku: SkuReport, *, roomy: bool) -> list[str]:
    numbers = [sku.total, sku.sold, sku.unsold]
    if roomy:
        numbers[2:] = [sku.held, sku.unsold, sku.resold]
    after = "-" if sku.sold_out_after_ms is None else span(sku.sold_out_after_ms)
    return [*(f"{number:,}" for number in numbers), yuan(sku.net_fen), after]


def _stacked(report: Report, lines: Sequence[Sequence[str]], widths: Sequence[int]) -> Text:
    """Each item's name on lines of its own, its numbers below it, in columns."""
    head, *rows = (
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    picture = Text.assemble((f"  {head}", "dim"))
    for sku, row in zip(report.skus, rows, strict=True):
        picture.append(f"\n{sku.title}\n").append(sku.sku, style="dim").append(f"\n  {row}")
    return picture


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _moment(ms: int, zone: tzinfo) -> str:
    at = local(ms, zone)
    offset = at.strftime("%z")
    return f"{at:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"
