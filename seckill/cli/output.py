"""What a command prints: tables for people, one JSON document for programs, errors on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from seckill.order import Order, Outcome
from seckill.status import Status

__all__ = [
    "Output",
    "Stopped",
    "complain",
    "countdown",
    "fact_lines",
    "moment",
    "new_console",
    "new_table",
    "order_data",
    "outcome_data",
    "version_text",
    "warn",
    "yuan",
]

PIPE_COLUMNS = 120


class Stopped(Exception):
    """A signal has ended a command that has a word to say about it; ``code`` is its exit code."""

    def __init__(self, text: str, *, code: int) -> None:
        self.code = code
        super().__init__(text)


def version_text() -> str:
    """The installed version, as ``seckill --version`` shows it."""
    try:
        return f"seckill {version('seckill')}"
    except PackageNotFoundError:
        return "seckill (not installed)"


def complain(text: str, *, code: int) -> int:
    """Writes an error to stderr and returns the exit code. The text is never read as markup."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("seckill: ", "bold red"), text))
    return code


def warn(text: str) -> None:
    """Writes to stderr what is no error, but needs to be seen."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("seckill: warning: ", "bold yellow"), text))


def new_console() -> Console:
    """A console on stdout. A pipe has no width, and rich's 80 columns would fold tables."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=PIPE_COLUMNS if piped else None)


def new_table(*columns: str) -> Table:
    """A plain table. A column is right-aligned when its name begins with ">"; one whose name begins
    with "~" is folded first when the terminal is narrow, so that nothing is cut off."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(
            column.lstrip(">~"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("~"),
            overflow="fold",
        )
    return table


class Output:
    """Where a command's answer goes: with ``json``, stdout carries one JSON document only."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.console = new_console()

    def answer(self, data: Any, *shown: RenderableType) -> None:
        """Prints ``data`` as JSON, or what people get to see instead."""
        if self.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
            sys.stdout.write("\n")
            return
        for part in shown:
            # Titles and reasons are other people's text: a bracket in them is no markup.
            self.console.print(Text(part) if isinstance(part, str) else part)

    def status(self, outcome: Outcome, what: str, *, already: str = "") -> int:
        """Prints what became of a verb; the answer is the exit code.

        ``already`` says in the verb's own words that it had nothing to do.
        """
        said = already if outcome.status is Status.ALREADY else ""
        return self.verdict(outcome.status, what, outcome_data(outcome), said=said)

    def verdict(
        self,
        status: Status,
        what: str,
        data: dict[str, Any],
        *shown: RenderableType,
        said: str = "",
    ) -> int:
        """The same for an answer that is no Outcome; ``said`` stands for the status's meaning.

        ``shown`` follows where all is well.
        """
        if status is Status.UNKNOWN_SALE:
            said = "no such sale on this server; create it first (seckill sale list)"
        said = said or status.meaning
        data = data | {"meaning": said}
        if self.json or status.ok:
            self.answer(data, Text.assemble(("✓ ", "green"), f"{what}: {said}"), *shown)
            return 0 if status.ok else 1
        return complain(f"{what}: {said} ({status.name.lower()})", code=1)


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """An outcome for programs: the status by its name, since its number is ours."""
    data: dict[str, Any] = {
        "ok": outcome.ok,
        "status": outcome.status.name.lower(),
        "meaning": outcome.status.meaning,
    }
    if outcome.order is not None:
        data["order"] = order_data(outcome.order)
    return data


def order_data(order: Order) -> dict[str, Any]:
    """An order for programs."""
    return msgspec.structs.asdict(order)


def yuan(fen: int) -> str:
    """An amount of money: ``¥1,499.00``."""
    return f"¥{fen // 100:,}.{fen % 100:02d}"


def moment(ms: int) -> str:
    """A time as the clock on the wall shows it here, with its offset from UTC."""
    local = datetime.fromtimestamp(ms // 1000, UTC).astimezone()
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"


def countdown(ms: int, now_ms: int) -> str:
    """How far a time is from now: ``in 2 d 03:04:05`` or ``00:10 ago``."""
    seconds = abs(ms - now_ms) // 1000
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    text = f"{rest // 60:02d}:{rest % 60:02d}"
    if days or hours:
        text = f"{hours:02d}:{text}"
    if days:
        text = f"{days} d {text}"
    return f"in {text}" if ms > now_ms else f"{text} ago"


def fact_lines(rows: Sequence[tuple[str, Sequence[str]]], width: int, *, label: int) -> Text:
    """A line for each row: its name, ``label`` cells wide, and its parts, joined by dots and never
    broken in two."""
    text = Text()
    for name, parts in rows:
        text.append(f"{name:<{label}}", style="dim")
        column = label
        for index, part in enumerate(parts):
            if index and column + cell_len(part) + 3 > width:
                text.append("\n" + " " * label)
                column = label
            elif index:
                text.append(" · ", style="dim")
                column += 3
            text.append(part)
            column += cell_len(part)
        text.append("\n")
    text.rstrip()
    return text
