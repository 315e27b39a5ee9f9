"""How ``seckill top`` paints a frame: as many lines as the terminal has, and not one more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from seckill.cli.output import countdown, moment
from seckill.cli.top_reading import Frame, QueueView, SaleView, ServerView
from seckill.doctor.finding import shown_bytes
from seckill.sale import Item, Sale
from seckill.snapshot import Snapshot, Stock

__all__ = ["picture"]

SALE_LINES: Final = 5
# A large cluster has so much of the picture; the rest is for the sales.
SERVERS_PART: Final = 3
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
    parts: list[Text] = _head(frame, width, height, trouble)
    free = None if height is None else height - len(parts) - 1
    shown = list(frame.sales)
    if free is not None:
        # Each sale has its lines before any has a SKU; the last line is for those left out.
        shown = shown[: max(1, free // SALE_LINES)]
    pairs = [(view.sale, view.snapshot) for view in shown if view.sale and view.snapshot]
    columns = _Columns.of([sale for sale, _ in pairs], [shot for _, shot in pairs], width)
    for view, rows in zip(shown, _rows(shown, free), strict=True):
        parts += [Text(), *_sale(view, width, rows, columns)]
    if hidden := frame.others + len(frame.sales) - len(shown):
        parts.append(Text(f"and {hidden} more: seckill top SALE", style="dim"))
    if not frame.sales:
        parts += [Text(), Text("no sale is open or to come", style="dim")]
    return Text("\n").join([_cut(part, width) for part in parts[:height]])


def _rows(views: list[SaleView], lines: int | None) -> list[int]:
    """How many of these lines, which are for all of the sales, the SKUs of each get: an equal share
    of what is free for those under way, and what they leave for the others."""
    # The line of a sale's only SKU would say what the sale's own line says.
    wanted = [len(view.sale.items) if view.sale else 0 for view in views]
    wanted = [0 if want == 1 else want for want in wanted]
    if lines is None:
        return wanted
    free = max(0, lines - len(views) * SALE_LINES)
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


def _head(frame: Frame, width: int, height: int | None, trouble: str) -> list[Text]:
    several = len(frame.servers) > 1
    names = sorted({server.name for server in frame.servers if server.name})
    name = Text.assemble(("seckill top", "bold"), f"  {', '.join(names)}")
    if several:
        name.append(f"  {len(frame.servers)} masters, {_ops(frame.servers)}")
    else:
        at, wrong = frame.servers[0].address, _trouble(frame.servers[0])
        name.append(f" at {at}" if at else "", style="dim")
        name.append(f"  {wrong}" if wrong else "", style="bold red")
    clock = f"{moment(frame.at_ms)}"
    name.append(" " * max(2, width - cell_len(name.plain) - len(clock)))
    name.append(clock, style="dim")
    if trouble:
        return [name, Text(trouble, style="bold red")]
    if several:
        return [name, *_masters(frame.servers, height)]
    [server] = frame.servers
    return [name, _line("server", _server_facts(server))]


def _ops(servers: Sequence[ServerView]) -> str:
    return f"{sum(server.ops_per_s for server in servers):,} ops/s"


def _trouble(server: ServerView) -> str:
    """Why this is no server to sell on, empty if it is one."""
    if server.problem:
        sales = "" if server.sales is None else f", with {_count_of_sales(server.sales)}"
        return f"away{sales}: {server.problem}"
    return "" if server.role == "master" else f"a {server.role}, which takes no orders"


def _masters(servers: Sequence[ServerView], height: int | None) -> list[Text]:
    """A line for each, with what is told of each below what is told of the others. Where there are
    too many, those that are away or have most to do, in the order of their addresses."""
    room = len(servers) if height is None else max(2, height // SERVERS_PART)
    shown, left = servers, servers[:0]
    if len(servers) > room:
        ranked = sorted(servers, key=lambda one: (not _trouble(one), -one.ops_per_s))
        shown = [one for one in servers if one in ranked[: room - 1]]
        left = ranked[room - 1 :]
    troubles = [_trouble(one) for one in shown]
    told = [[] if wrong else _server_facts(one) for one, wrong in zip(shown, troubles, strict=True)]
    widths = [max(map(cell_len, map(str, cells))) for cells in zip_longest(*told, fillvalue="")]
    label = max(len(one.address) for one in shown)
    lines = []
    for one, wrong, cells in zip(shown, troubles, told, strict=True):
        for cell, width in zip(cells, widths, strict=False):
            cell.pad_left(width - cell_len(cell.plain))
        name = Text(f"{one.address:<{label}}  ", style="dim")
        facts = Text(wrong, style="bold red") if wrong else Text(" · ", "dim").join(cells)
        lines.append(Text.assemble(name, facts))
    if left:
        lines.append(Text(f"and {len(left):,} more masters, {_ops(left)}", style="dim"))
    return lines


def _count_of_sales(number: int) -> str:
    return f"{number:,} sale{'' if number == 1 else 's'}"


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
    sales = [] if server.sales is None else [Text(_count_of_sales(server.sales))]
    return [
        *sales,
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
        _title(view.sale, snapshot, view.server, width),
        _line("stock", _all_units(snapshot)),
        _line("orders", _flow(view, snapshot)),
        _line("events", _events(view, snapshot)),
    ]
    items = _busiest(view.sale, snapshot, rows)
    return lines + [_item(one, snapshot.stock[one.sku], columns) for one in items]


def _title(sale: Sale, snapshot: Snapshot, server: str, width: int) -> Text:
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
    if server:
        left.append(f" on {server}", style="dim")
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
