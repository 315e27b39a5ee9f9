"""What things cost, as measured: the one table behind ``seckill plan``.

A figure is a cost on one machine. Those built in were measured where ``BUILT_IN_ON`` says; a report
of ``python -m benchmarks … --json FILE`` from a machine of yours takes their place, row by row.
"""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from seckill.errors import InvalidInput

__all__ = ["BUILT_IN", "BUILT_IN_ON", "COMMAND", "Figure", "measured"]

BUILT_IN_ON: Final = "2 cores of an Intel Xeon, a virtual machine, Redis 7.0, Python 3.11, Nov 2026"
FILE_BYTES_MAX: Final = 16 << 20
COMMAND: Final = "python -m benchmarks http lane queue cost drain footprint --json FILE"
# A lane without an AOF is no measure for one with it.
_NOT_THIS: Final = "fsync off"


class Figure(msgspec.Struct, frozen=True):
    """One cost.

    ``benchmark`` and ``question`` name the row of a report that says it, with ``#`` where the row
    has a number that may be another one; times ``factor`` the row is in ``unit``. ``rate`` figures
    are the better the higher. ``machine`` is where it was measured.
    """

    value: float
    unit: str
    benchmark: str
    question: str
    factor: float = 1.0
    rate: bool = False
    machine: str = BUILT_IN_ON

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"{self.benchmark}: {self.question.replace('#', 'many')}"

    def names(self, benchmark: str, question: str) -> bool:
        """Whether this is the row that says it."""
        pattern = re.escape(self.question).replace(re.escape("#"), r"\d[\d,]*")
        return benchmark == self.benchmark and re.fullmatch(pattern, question) is not None


# CPU s of 10,000 are µs of one, times 100.
_EACH: Final = 100.0

BUILT_IN: Final[dict[str, Figure]] = {
    "intake_order": Figure(42.2, "µs", "http", "CPU in stock: intake / the server", _EACH),
    "intake_first": Figure(73.1, "µs", "http", "CPU new user tokens: intake / the server", _EACH),
    "intake_payment": Figure(165.0, "µs", "footprint", "CPU of a payment's request, intake", _EACH),
    "intake_place": Figure(64.0, "µs", "queue", "CPU of the server, places, intake", _EACH),
    "redis_order": Figure(19.1, "µs", "http", "CPU in stock: intake / Redis", _EACH),
    "redis_join": Figure(9.4, "µs", "queue", "CPU of the server, Engine.queue.join", _EACH),
    "redis_orders": Figure(62_777.0, "orders/s", "lane", "accepted, lane", rate=True),
    "redis_joins": Figure(69_248.0, "joins/s", "queue", "joins, Engine.queue.join", rate=True),
    "ledger_orders": Figure(
        20_328.0,
        "orders/s",
        "drain",
        "drained into PostgreSQL, # orders, 2 consumers",
        # By the two of them.
        0.5,
        rate=True,
    ),
    # Of several numbers of orders, or of buyers, the one counts at which a table is doubling.
    "held_bytes": Figure(341.0, "bytes", "cost", "memory of a held order, # held"),
    "waiting_bytes": Figure(96.0, "bytes", "queue", "memory of a waiting buyer, # waiting"),
    "paid_bytes": Figure(602.0, "bytes", "footprint", "memory of a paid order"),
    "aof_held_bytes": Figure(240.0, "bytes", "footprint", "AOF of a held order"),
    "aof_paid_bytes": Figure(1_355.0, "bytes", "footprint", "AOF of a paid order"),
    "ledger_bytes": Figure(814.0, "bytes", "footprint", "ledger of a paid order, SQLite"),
    "request_bytes": Figure(382.0, "bytes", "footprint", "request of an order"),
    "answer_bytes": Figure(481.0, "bytes", "footprint", "answer to an order"),
    "redis_in_bytes": Figure(71.2, "bytes", "http", "sent to Redis, in stock: intake"),
    "redis_out_bytes": Figure(4.5, "bytes", "footprint", "sent by Redis for an order"),
    "worker_bytes": Figure(111e6, "bytes", "footprint", "memory of a worker"),
}
"""Every figure by its name."""


class _Row(msgspec.Struct):
    benchmark: str
    question: str
    unit: str
    server: str = ""
    median: float | None = None


class _Report(msgspec.Struct):
    rows: list[_Row]
    machine: str = ""
    date: str = ""
    quick: str = ""


def measured(file: Path) -> dict[str, Figure]:
    """The table with what this report says in the place of what is built in.

    Where several servers were measured the worst counts. Raises InvalidInput for a file that cannot
    be read, is no report, was made with --quick, or has none of the rows.
    """
    report = _read(file)
    machine = " ".join(part for part in (report.machine, report.date[:10]) if part) or str(file)
    table = dict(BUILT_IN)
    for name, figure in BUILT_IN.items():
        if found := _values(report.rows, figure):
            value = (min if figure.rate else max)(found) * figure.factor
            table[name] = msgspec.structs.replace(figure, value=value, machine=machine)
    if table == BUILT_IN:
        raise InvalidInput("--measured", f"{file} has none of the rows that count", _how())
    return table


def _values(rows: list[_Row], figure: Figure) -> list[float]:
    return [
        row.median
        for row in rows
        if figure.names(row.benchmark, row.question)
        and row.median is not None
        and isfinite(row.median)
        and row.median > 0
        and _NOT_THIS not in row.server
    ]


def _read(file: Path) -> _Report:
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
        raise InvalidInput("--measured", f"{file} cannot be read: {reason}", _how()) from None
    if len(data) > FILE_BYTES_MAX:
        raise InvalidInput("--measured", f"{file} is larger than {FILE_BYTES_MAX} bytes", _how())
    try:
        # Parsed loosely first, so that "no report" is one message whatever else it is.
        document: Any = msgspec.json.decode(data)
        report = msgspec.convert(document, type=_Report)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput("--measured", f"{file} is no report of benchmarks", _how()) from None
    if report.quick:
        problem = f"{file} was made with --quick, whose figures say nothing"
        raise InvalidInput("--measured", problem, _how())
    return report


def _how() -> str:
    return f"name what `{COMMAND}` wrote"
