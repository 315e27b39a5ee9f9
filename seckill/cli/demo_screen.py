"""What the demo shows: while it runs, a live picture of the stock; at the end, one screen.

Where stdout is no terminal there is a line every other second instead, and with ``--json`` nothing
but the report.
"""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from seckill.cli.demo_messages import Progress
from seckill.cli.demo_report import Report
from seckill.cli.output import Output, fact_lines, yuan
from seckill.cli.report import report_screen
from seckill.sale import Sale
from seckill.snapshot import Snapshot, Stock
from seckill.zone import CHINA, read_zone

if TYPE_CHECKING:
    from seckill.ledger.report import Report as SaleReport

__all__ = ["Screen"]

FRAMES_A_SECOND: Final = 8
PLAIN_EVERY_S: Final = 2.0
BAR: Final = 22
LABEL: Final = 11
WIDE: Final = 100

_BECAME: Final = {"confirmed": "paid", "expired": "expired", "released": "given up"}


class Screen:
    """The demo's output. A context manager around the live part."""

    def __init__(self, *, json: bool) -> None:
        self._out = Output(json=json)
        self._console = self._out.console
        self._live: Live | None = None
        self._plain_at_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._out.json:
            self._live = Live(
                console=self._console, refresh_per_second=FRAMES_A_SECOND, transient=True
            )
            self._live.start()
        self.note("starting a server, an intake and a crowd")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Says what goes on while there is no picture."""
        if self._live is not None:
            self._live.update(Text(f"{text} …", style="dim"))

    def live(
        self, sale: Sale, snapshot: Snapshot, progress: Progress, buyers: int, rate: float
    ) -> None:
        """Shows the sale as it is now; ``rate`` is in order requests a second."""
        if self._live is not None:
            self._live.update(self._picture(sale, snapshot, progress, buyers, rate))
        elif not self._out.json and monotonic() >= self._plain_at_s:
            self._plain_at_s = monotonic() + PLAIN_EVERY_S
            stock = list(snapshot.stock.values())
            self._console.print(
                f"{_clock(snapshot):>7}  {progress.arrived:,} of {buyers:,} buyers, "
                f"{progress.requests:,} requests, {progress.accepted:,} accepted, units: "
                f"{sum(s.confirmed for s in stock):,} paid, {sum(s.held for s in stock):,} held, "
                f"{sum(s.available for s in stock):,} left"
            )

    def final(self, report: Report, after: SaleReport) -> None:
        """The one screen that remains; ``after`` is what the ledger tells of the sale."""
        width = self._console.width
        data = msgspec.structs.asdict(report) | {"report": after.data()}
        parts = [*_final(report, width), Text("$ seckill report", style="dim")]
        self._out.answer(data, *parts, "", *report_screen(after, read_zone(CHINA), width), "")

    def _picture(
        self, sale: Sale, snapshot: Snapshot, progress: Progress, buyers: int, rate: float
    ) -> RenderableType:
        width = min(self._console.width, 120)
        titles = 34 if width >= WIDE else 20
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for justify in ("left", "left", "right", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        for item in sale.items:
            stock = snapshot.stock[item.sku]
            title = Text(item.title)
            title.truncate(titles, overflow="ellipsis", pad=True)
            # Fixed widths: what jumps to and fro can't be read.
            table.add_row(
                title,
                _bar(stock),
                Text(f"{stock.confirmed:>4,} paid", style="green"),
                Text(f"{stock.held:>4,} held", style="yellow"),
                Text(f"{max(0, stock.available):>4,} left", style="dim"),
            )
        refused = sorted(progress.refused.items(), key=lambda pair: -pair[1])
        now = [f"p50 {progress.p50_ms:.0f} ms", f"p99 {progress.p99_ms:.0f} ms"]
        rows = [
            ("buyers", [f"{progress.arrived:,} of {buyers:,}"]),
            ("orders", [f"{progress.accepted:,} accepted", f"{progress.paid:,} payments"]),
            ("answers", [f"{progress.decided:,} order requests", f"{rate:,.0f}/s", *now]),
            ("refused", _counts(refused) or ["none yet"]),
        ]
        told = fact_lines(rows, width, label=LABEL)
        head = Text.assemble((sale.title, "bold"), f"   {_clock(snapshot)}")
        return Group(head, "", table, "", told)


def _clock(snapshot: Snapshot) -> str:
    # Before the opening nothing sells, so the sale's own time stands at nought.
    seconds = max(0, snapshot.at_ms - snapshot.opens_ms) / 1000
    return f"{seconds:+.1f} s"


def _bar(stock: Stock) -> Text:
    total = max(1, stock.total)
    paid = min(BAR, round(BAR * stock.confirmed / total))
    gone = min(BAR, round(BAR * (stock.confirmed + stock.held) / total))
    return Text.assemble(
        ("█" * paid, "green"), ("▓" * (gone - paid), "yellow"), ("░" * (BAR - gone), "dim")
    )


def _counts(pairs: list[tuple[str, int]]) -> list[str]:
    return [f"{name.replace('_', ' ')} {count:,}" for name, count in pairs if count]


def _final(report: Report, width: int) -> list[RenderableType]:
    units = sum(sku.total for sku in report.skus)
    head = Text.assemble((report.title, "bold"))
    head.append(
        f"\n{units:,} units for {report.buyers:,} buyers in {report.seconds:.1f} s; "
        f"server {report.server}, {report.durability}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("item", no_wrap=True)
    for name in ("total", "paid", "held", "left", "resold"):
        table.add_column(name, justify="right", no_wrap=True)
    for sku in report.skus:
        title = Text(sku.title)
        title.truncate(44 if width >= WIDE else 34, overflow="ellipsis")
        numbers = (sku.total, sku.confirmed, sku.held, sku.available, sku.resold)
        table.add_row(title, *(f"{number:,}" for number in numbers))
    return [
        "",
        head,
        "",
        table,
        "",
        fact_lines(_lines(report), width, label=LABEL),
        "",
        _verdict(report),
        "",
    ]


def _lines(report: Report) -> list[tuple[str, list[str]]]:
    mischief, gone = report.mischief, report.all_taken_after_ms
    lines = [
        ("accepted", [_sum(report)]),
        ("refused", _counts(list(report.refused.items())) or ["nobody"]),
        ("paid", [f"{report.paid:,} orders", yuan(report.amount_fen)]),
        (
            "came back",
            _counts(
                [
                    ("expiries", report.expired),
                    ("given up", report.released),
                    ("never claimed", report.unclaimed),
                    ("units resold", report.units_resold),
                ]
            ),
        ),
        (
            "too late",
            [
                f"{report.paid_late:,} paid after expiry and still served",
                f"{report.refunds_due:,} refunds due",
            ],
        ),
        (
            "mischief",
            _counts(
                [
                    ("double clicks", mischief.double_clicks),
                    ("blind retries", mischief.blind_retries),
                    ("repeats", mischief.repeats),
                    ("keys reused", mischief.reused_keys),
                    ("greedy", mischief.greedy),
                    ("paid twice", mischief.paid_twice),
                    ("abandoned", mischief.abandoned),
                    ("carts", mischief.carts),
                ]
            ),
        ),
        (
            "orders/s",
            [
                f"{report.decided_per_s_peak:,.0f} order requests answered in the best second",
                f"{report.decided_per_s:,.0f} over {report.load_seconds:.1f} s",
                f"{report.requests:,} requests of all kinds, {report.requests_per_s:,.0f}/s",
                f"load, intake and server share this machine's {report.cores} cores",
            ],
        ),
        (
            "latency",
            [
                f"p50 {report.p50_ms:.1f} ms",
                f"p90 {report.p90_ms:.1f} ms",
                f"p99 {report.p99_ms:.1f} ms",
                f"max {report.max_ms:.0f} ms",
            ],
        ),
        (
            "Redis",
            [
                f"{report.script_micros_per_decided:.1f} µs of script an order request",
                f"{report.script_calls:,} script calls of all verbs",
            ],
        ),
    ]
    if gone is not None:
        lines[0][1].append(f"every unit taken after {gone / 1000:.2f} s")
    if report.retried or report.unanswered:
        asked = [*report.retried.items(), ("never answered", report.unanswered)]
        lines.append(("asked again", _counts(asked)))
    return lines


def _sum(report: Report) -> str:
    """The accepted orders, and what became of them: an order paid late counts as paid only."""
    became = dict.fromkeys(_BECAME, 0) | report.accepted_became
    parts = [
        f"{count:,} {_BECAME.get(state, state)}"
        for state, count in became.items()
        if count or state in _BECAME
    ]
    return f"{report.accepted:,} orders = {' + '.join(parts)}"


def _verdict(report: Report) -> Text:
    verdict = Text()
    if report.ok:
        units = sum(sku.total for sku in report.skus)
        paid = sum(sku.confirmed for sku in report.skus)
        left = sum(sku.available for sku in report.skus)
        for line in (
            f"{report.events:,} events replayed: nothing oversold, no limit broken, no key twice",
            f"{report.orders_in_stream:,} orders: buyers, stream and Redis tell the same story",
            f"{report.accepted:,} accepted = {report.orders_in_sql:,} rows in the SQL ledger",
            f"{units:,} units = {paid:,} paid + 0 held + {left:,} left"
            + (", which nobody asked for any more" if left else ""),
        ):
            verdict.append("✓ ", style="bold green").append(line + "\n")
        verdict.rstrip()
        return verdict
    rules = Counter(violation.rule for violation in report.violations)
    for violation in report.violations:
        # The first of each rule; a broken rule is seldom broken once.
        if more := rules.pop(violation.rule, 0):
            where = f" (event {violation.seq})" if violation.seq else ""
            verdict.append("✗ ", style="bold red").append(violation.rule, style="bold")
            verdict.append(f": {violation.text}{where}")
            verdict.append(f" and {more - 1:,} more\n" if more > 1 else "\n")
    verdict.rstrip()
    return verdict
