"""How ``seckill top`` paints a frame: as many lines as the terminal has, and not one more."""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from seckill.cli.output import countdown, moment
from seckill.cli.top_reading import Frame, SaleView, ServerView
from seckill.doctor.finding import shown_bytes
from seckill.sale import Item, Sale
from seckill.snapshot import Snapshot, Stock

__all__ = ["picture"]

HEAD_LINES: Final = 3
SALE_LINES: Final = 3
BAR_MAX: Final = 30
LABEL: Final = 8
WIDE: Final = 100

_PHASES: Final = {
    "selling": "bold green",
    "not started": "cyan",
    "paused": "bold yellow",
    "created": "yellow",
    "ended": "dim",
}


def picture(frame: Frame, width: int, height: int | None, trouble: str = "") -> RenderableType:
    """The frame in ``width`` columns and at most ``height`` lines (None: as many as it takes).

    ``trouble`` says why there is no newer frame.
    """
    parts: list[RenderableType] = [_head(frame, width, trouble)]
    left = None if height is None else height - HEAD_LINES
    shown = list(frame.sales)
    if left is not None:
        # Each sale has its lines before any has a SKU; the last line is for those left out.
        shown = shown[: max(1, (left - 1) // (SALE_LINES + 1))]
    rows = _rows(shown, left)
    for view, count in zip(shown, rows, strict=True):
        parts += ["", *_sale(view, width, count)]
    hidden = frame.others + len(frame.sales) - len(shown)
    if hidden:
        parts.append(Text(f"and {hidden} more: seckill top SALE", style="dim"))
    if not frame.sales:
        parts += ["", Text("no sale of this server is open or to come", style="dim")]
    return Group(*parts)


def _rows(views: list[SaleView], left: int | None) -> list[int]:
    """How many lines each sale's SKUs get: an equal share, and what one leaves goes to the next."""
    wanted = [len(view.sale.items) if view.sale else 0 for view in views]
    if left is None:
        return wanted
    free = left - 1 - len(views) * (SALE_LINES + 1)
    rows = []
    for index, want in enumerate(wanted):
        share = max(0, free) // (len(views) - index)
        rows.append(min(want, share))
        free -= rows[-1]
    return rows


def _head(frame: Frame, width: int, trouble: str) -> Text:
    server = frame.server
    name = Text.assemble(("seckill top", "bold"), f"  {server.name}")
    if server.role != "master":
        name.append(f"  a {server.role}, which takes no orders", style="bold red")
    clock = f"{moment(frame.at_ms)}"
    name.append(" " * max(2, width - cell_len(name.plain) - len(clock)))
    name.append(clock, style="dim")
    if trouble:
        return Text("\n").join([_cut(name, width), _cut(Text(trouble, style="bold red"), width)])
    return Text("\n").join([_cut(name, width), _line("server", _server_facts(server), width)])


def _server_facts(server: ServerView) -> list[Text]:
    memory = Text(f"{shown_bytes(server.used_bytes)} used")
    if server.limit_bytes:
        full = server.used_bytes / server.limit_bytes
        memory.append(f" of {shown_bytes(server.limit_bytes)}")
        memory.stylize("bold red" if full > 0.9 else "yellow" if full > 0.75 else "")
    clients = Text(f"{server.clients:,} clients")
    if server.blocked:
        clients.append(f" ({server.blocked:,} wait)")
    fsync = Text(f"fsync {server.fsync}", style="" if server.fsync == "always" else "yellow")
    if server.fsync_delayed:
        fsync.append(f" ({server.fsync_delayed:,} delayed)", style="yellow")
    slow = "yellow" if server.trip_ms > 20 else ""
    return [
        Text(f"{server.ops_per_s:,} ops/s"),
        memory,
        clients,
        fsync,
        Text(f"answers in {server.trip_ms:.1f} ms", style=slow),
    ]


def _sale(view: SaleView, width: int, rows: int) -> list[RenderableType]:
    if view.sale is None or view.snapshot is None:
        return [_cut(Text(f"{view.id}  {view.problem}", style="bold red"), width), "", ""]
    snapshot = view.snapshot
    lines: list[RenderableType] = [
        _title(view.sale, snapshot, width),
        _line("orders", _flow(view, snapshot), width),
        _line("events", _events(view, snapshot), width),
    ]
    items = _busiest(view.sale, snapshot, rows)
    return [*lines, _stock(items, snapshot, width)] if items else lines


def _title(sale: Sale, snapshot: Snapshot, width: int) -> Text:
    style = _PHASES.get(snapshot.phase, "")
    right = Text(snapshot.phase, style=style)
    if snapshot.reason:
        right.append(f" ({snapshot.reason})")
    if snapshot.at_ms < snapshot.opens_ms:
        right.append(f"  opens {countdown(snapshot.opens_ms, snapshot.at_ms)}", style="")
    else:
        verb = "ends" if snapshot.at_ms < snapshot.ends_ms else "ended"
        right.append(f"  {verb} {countdown(snapshot.ends_ms, snapshot.at_ms)}", style="")
    right.truncate(max(10, width - 20), overflow="ellipsis")
    left = Text.assemble((sale.title, "bold"), (f"  {sale.id}", "dim"))
    room = width - cell_len(right.plain) - 2
    left.truncate(room, overflow="ellipsis", pad=True)
    return Text.assemble(left, "  ", right)


def _flow(view: SaleView, snapshot: Snapshot) -> list[Text]:
    orders = Text.assemble(f"{snapshot.orders:,}", _per_s(view.orders_per_s))
    return [
        orders,
        Text(f"{snapshot.buyers:,} buyers"),
        Text(f"{snapshot.holds_queue:,} in the queue of holds"),
        Text(f"{snapshot.paying_queue:,} of payments"),
    ]


def _events(view: SaleView, snapshot: Snapshot) -> list[Text]:
    facts = [
        Text.assemble(f"{snapshot.seq:,}", _per_s(view.events_per_s)),
        Text(f"{snapshot.entries:,} entries"),
    ]
    for group in view.groups:
        behind = "?" if group.behind is None else f"{group.behind:,}"
        late = (group.behind or 0) + group.pending > 1_000
        text = f"{group.name}: {behind} behind, {group.pending:,} pending"
        facts.append(Text(text, style="bold yellow" if late else ""))
    return facts if view.groups else [*facts, Text("nobody reads them", style="yellow")]


def _per_s(rate: float | None) -> tuple[str, str]:
    if rate is None:
        return "", ""
    return f"  {rate:,.0f}/s", "bold green" if rate >= 0.5 else "dim"


def _busiest(sale: Sale, snapshot: Snapshot, rows: int) -> list[Item]:
    """As many items as there is room for: those of which most is gone, in the merchant's order."""
    if rows >= len(sale.items):
        return list(sale.items)

    def taken(item: Item) -> int:
        stock = snapshot.stock[item.sku]
        return stock.held + stock.confirmed

    chosen = set(sorted(sale.items, key=taken, reverse=True)[:rows])
    return [item for item in sale.items if item in chosen]


def _stock(items: list[Item], snapshot: Snapshot, width: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for justify in ("left", "left", "left", "right", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    # The numbers need 50 columns, the bar takes what is left over, within reason.
    titles = 26 if width >= WIDE else max(10, width - 68)
    bar = min(BAR_MAX, max(8, width - 92)) if width >= WIDE else 8
    for item in items:
        stock = snapshot.stock[item.sku]
        sku, title = Text(item.sku, style="dim"), Text(item.title)
        sku.truncate(20 if width >= WIDE else 10, overflow="ellipsis")
        title.truncate(titles, overflow="ellipsis", pad=True)
        # Fixed widths: what jumps to and fro can't be read.
        table.add_row(
            sku,
            title,
            _bar(stock, bar),
            Text(f"{stock.available:>6,} left", style="" if stock.available else "dim"),
            Text(f"{stock.held:>5,} held", style="yellow" if stock.held else "dim"),
            Text(f"{stock.confirmed:>5,} paid", style="green" if stock.confirmed else "dim"),
            Text(f"of {stock.total:,}", style="dim"),
        )
    return table


def _bar(stock: Stock, width: int) -> Text:
    total = max(1, stock.total)
    paid = min(width, round(width * stock.confirmed / total))
    gone = max(paid, min(width, round(width * (stock.confirmed + stock.held) / total)))
    return Text.assemble(
        ("█" * paid, "green"), ("▓" * (gone - paid), "yellow"), ("░" * (width - gone), "dim")
    )


def _line(name: str, facts: list[Text], width: int) -> Text:
    """One line: a label and facts joined by dots; the last that does not fit is cut."""
    line = Text(f"{name:<{LABEL}}", style="dim")
    return _cut(Text.assemble(line, Text(" · ", style="dim").join(facts)), width)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text
