"""How ``seckill top`` paints a frame: as many lines as the terminal has, and not one more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from seckill.cli.output import countdown, moment
from seckill.cli.top_reading import Frame, QueueView, SaleView, ServerView
from seckill.doctor.finding import shown_bytes
from seckill.sale import Item, Sale
from seckill.snapshot import Snapshot, Stock

__all__ = ["picture"]

HEAD_LINES: Final = 2
SALE_LINES: Final = 5
UNDER_WAY: Final = ("selling", "paused")
BAR_MAX: Final = 30
LABEL: Final = 8

_PHASES: Final = {
    "selling": "bold green",
    "not started": "cyan",
    "paused": "bold yellow",
    "created": "yellow",
    "ended": "dim",
}


def picture(frame: Frame, width: int, height: int | None, trouble: str = "") -> Text:
    """The frame in ``width`` columns and at most ``height`` lines (None: as many as it takes).

    ``trouble`` says why there is no newer frame.
    """
    parts: list[Text] = _head(frame, width, trouble)
    shown = list(frame.sales)
    if height is not None:
        # Each sale has its lines before any has a SKU; the last line is for those left out.
        shown = shown[: max(1, (height - HEAD_LINES - 1) // SALE_LINES)]
    pairs = [(view.sale, view.snapshot) for view in shown if view.sale and view.snapshot]
    columns = _Columns.of([sale for sale, _ in pairs], [shot for _, shot in pairs], width)
    for view, rows in zip(shown, _rows(shown, height), strict=True):
        parts += [Text(), *_sale(view, width, rows, columns)]
    if hidden := frame.others + len(frame.sales) - len(shown):
        parts.append(Text(f"and {hidden} more: seckill top SALE", style="dim"))
    if not frame.sales:
        parts += [Text(), Text("no sale of this server is open or to come", style="dim")]
    return Text("\n").join([_cut(part, width) for part in parts[:height]])


def _rows(views: list[SaleView], height: int | None) -> list[int]:
    """How many lines the SKUs of each sale get: an equal share of what is free for those under way,
    and what they leave for the others."""
    # The line of a sale's only SKU would say what the sale's own line says.
    wanted = [len(view.sale.items) if view.sale else 0 for view in views]
    wanted = [0 if want == 1 else want for want in wanted]
    if height is None:
        return wanted
    free = max(0, height - HEAD_LINES - 1 - len(views) * SALE_LINES)
    under_way = [bool(view.snapshot and view.snapshot.phase in UNDER_WAY) for view in views]
    rows = [0] * len(views)
    for turn in (True, False):
        waiting = [index for index, mine in enumerate(under_way) if mine is turn]
        # Who wants least first, so that what it leaves goes to those who want more.
        waiting.sort(key=wanted.__getitem__, reverse=True)
        while waiting:
            index = waiting.pop()
            rows[index] = min(wanted[index], free // (len(waiting) + 1))
            free -= rows[index]
    return rows


def _head(frame: Frame, width: int, trouble: str) -> list[Text]:
    server = frame.server
    name = Text.assemble(("seckill top", "bold"), f"  {server.name}")
    if server.role != "master":
        name.append(f"  a {server.role}, which takes no orders", style="bold red")
    clock = f"{moment(frame.at_ms)}"
    name.append(" " * max(2, width - cell_len(name.plain) - len(clock)))
    name.append(clock, style="dim")
    if trouble:
        return [name, Text(trouble, style="bold red")]
    return [name, _line("server", _server_facts(server))]


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


def _sale(view: SaleView, width: int, rows: int, columns: _Columns) -> list[Text]:
    if view.sale is None or view.snapshot is None:
        return [Text(f"{view.id}  {view.problem}", style="bold red")]
    snapshot = view.snapshot
    lines = [
        _title(view.sale, snapshot, width),
        _line("stock", _all_units(snapshot)),
        _line("orders", _flow(view, snapshot)),
        _line("events", _events(view, snapshot)),
    ]
    items = _busiest(view.sale, snapshot, rows)
    return lines + [_item(one, snapshot.stock[one.sku], columns) for one in items]


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
        *_queue(view.queue),
        Text(f"{snapshot.buyers:,} buyers"),
        Text(
            f"deadlines: {snapshot.holds_queue:,} of holds, {snapshot.paying_queue:,} of payments"
        ),
    ]


def _queue(queue: QueueView | None) -> list[Text]:
    if queue is None:
        return []
    called = Text.assemble(f"{queue.called:,} called", _per_s(queue.called_per_s))
    return [Text(f"{queue.mode}: {queue.waiting:,} wait"), called, Text(f"{queue.lapses:,} lapsed")]


def _all_units(snapshot: Snapshot) -> list[Text]:
    names = ("available", "held", "confirmed", "total")
    stocks = snapshot.stock.values()
    whole = Stock(*(sum(getattr(stock, name) for stock in stocks) for name in names))
    *parts, total = _units(whole, 1)
    facts = [Text(text.strip(), style=style) for text, style in parts]
    facts[-1].append(f" {total[0].strip()}", style="dim")
    return [*facts, _bar(whole, BAR_MAX)]


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


class _Columns(NamedTuple):
    """Widths in cells, the same for all sales: what does not line up, or jumps, can't be read."""

    sku: int
    title: int
    bar: int
    number: int

    @classmethod
    def of(cls, sales: Sequence[Sale], snapshots: Sequence[Snapshot], width: int) -> _Columns:
        """What is left beside the numbers goes to SKU, title and bar."""
        most = max((s.total for one in snapshots for s in one.stock.values()), default=0)
        number = max(3, len(f"{most:,}"))
        room = width - 4 * (number + 7) - 4
        skus = [len(item.sku) for sale in sales for item in sale.items]
        titles = [cell_len(item.title) for sale in sales for item in sale.items]
        sku = min(max(skus, default=0), max(8, room // 4), 24)
        title = min(max(titles, default=0), max(8, room // 3), 36)
        return cls(sku, title, max(6, min(BAR_MAX, room - sku - title)), number)


def _item(item: Item, stock: Stock, columns: _Columns) -> Text:
    return Text.assemble(
        _fitted(item.sku, columns.sku, "dim"),
        "  ",
        _fitted(item.title, columns.title, ""),
        "  ",
        _bar(stock, columns.bar),
        *_units(stock, columns.number),
    )


def _units(stock: Stock, digits: int) -> list[tuple[str, str]]:
    return [
        (f"  {stock.available:>{digits},} left", "" if stock.available else "dim"),
        (f"  {stock.held:>{digits},} held", "yellow" if stock.held else "dim"),
        (f"  {stock.confirmed:>{digits},} paid", "green" if stock.confirmed else "dim"),
        (f"  of {stock.total:>{digits},}", "dim"),
    ]


def _fitted(text: str, width: int, style: str) -> Text:
    fitted = Text(text, style=style)
    fitted.truncate(width, overflow="ellipsis", pad=True)
    return fitted


def _bar(stock: Stock, width: int) -> Text:
    total = max(1, stock.total)
    paid = min(width, round(width * stock.confirmed / total))
    gone = max(paid, min(width, round(width * (stock.confirmed + stock.held) / total)))
    return Text.assemble(
        ("█" * paid, "green"), ("▓" * (gone - paid), "yellow"), ("░" * (width - gone), "dim")
    )


def _line(name: str, facts: list[Text]) -> Text:
    """One line: a label, and facts joined by dots, the most important first."""
    line = Text(f"{name:<{LABEL}}", style="dim")
    return Text.assemble(line, Text(" · ", style="dim").join(facts))


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text
