"""The guides are true: what they show runs and prints what they say, and their tables say what the
code says.

A guide is read from top to bottom, in a directory and with a server of its own:

- ```python blocks share one namespace and may ``await``; ``engine`` is a started engine. A ```text
  block after one is what it printed.
- ```toml blocks are whole sale files, saved as sale.toml with a sale that opens in five minutes.
  One whose items are in a CSV takes the next ```csv block.
- In a ```console block a line that begins with "$ " is a command, and what follows is what it
  printed. `seckill` and `curl` are run, `seckill serve` in the background until the guide ends; an
  assignment stands before every later command. Anything else is for the reader only.
- In what was printed "…" stands for anything, alone on a line for any number of lines. Times,
  countdowns and runs of blanks are not compared. JSON is compared as JSON, so that a guide may
  break its lines; a key "…" stands for those that are not shown.

Every `seckill …` in a guide, be it in a sentence, must be one that the command line understands.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest

from seckill import errors
from seckill.admission import Admission
from seckill.cli import main
from seckill.cli.app import app
from seckill.cli.command import Target
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, SaleFileError, SeckillError
from seckill.order import Order, State
from seckill.sale import Item, Sale
from seckill.salefile import load_sale
from seckill.server import problems
from seckill.status import Status
from seckill.stream import EventKind
from tests.support import make_sale, travel

ROOT = Path(__file__).parents[2]
GUIDES = (
    "sales",
    "orders",
    "api",
    "embedding",
    "access",
    "gate",
    "events",
    "webhook",
    "operations",
    "observability",
    "settings",
    "queue",
    "fair-draw",
    "capacity",
    "socket",
    "redis",
    "durability",
    "scaling",
)
# Run by tests/ledger/test_guides.py, because something must have happened before each part.
LEDGER_GUIDES = ("handoff", "recovery")
REDIS_URL = "redis://127.0.0.1:6379/0"
INTAKE = "127.0.0.1:8000"


class Block(NamedTuple):
    """A fenced block and the line of the guide on which it begins."""

    language: str
    text: str
    line: int


def text_of(guide: str) -> str:
    return (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")


def blocks_of(guide: str) -> list[Block]:
    text = text_of(guide)
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    ]


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, with what it printed. A backslash continues a command."""
    for part in re.split(r"(?m)^\$ ", text.replace("\\\n", ""))[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def table(guide: str, *columns: str) -> list[list[str]]:
    """The rows of the one table whose header begins with these columns, without code marks."""
    found = []
    for part in re.findall(r"(?m)(?:^\|.*\|\n)+", text_of(guide)):
        rows = [
            [cell.replace("`", "").replace(r"\|", "|").strip() for cell in cells]
            for cells in (re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines())
        ]
        if tuple(rows[0][: len(columns)]) == columns:
            found.append(rows[2:])
    assert len(found) == 1, f"{len(found)} tables of docs/{guide}.md begin with {columns}"
    return found[0]


# -- what the guides show ---------------------------------------------------------------------


class Reader:
    """Somebody who reads a guide and types everything in it."""

    def __init__(self, guide: str, engine: Engine, runner: asyncio.Runner) -> None:
        self.guide = guide
        self.runner = runner
        self.namespace: dict[str, Any] = {"engine": engine}
        # What the guide writes, and what that is here.
        self.names = {REDIS_URL: engine.url}
        self.assignments: list[str] = []
        self.intake: subprocess.Popen[str] | None = None

    def read(self) -> None:
        sale, printed, items_file = Path("sale.toml"), "", ""
        for language, text, line in blocks_of(self.guide):
            at = f"docs/{self.guide}.md:{line}"
            match language:
                case "python":
                    printed = self.run_python(text, at)
                case "text":
                    assert_printed(text, printed, at)
                case "toml":
                    sale.write_text(text, encoding="utf-8")
                    items = tomllib.loads(text)["items"]
                    items_file = items if isinstance(items, str) else ""
                    if not items_file:
                        load_sale(sale)
                        set_window(sale, opens_in_s=300)
                case "csv":
                    Path(items_file).write_text(text, encoding="utf-8")
                    load_sale(sale)
                    set_window(sale, opens_in_s=300)
                case "console":
                    for command, expected in commands_of(text):
                        self.run_command(command, expected, f"{at}: $ {command}")
                case "" | "ini" | "java" | "js" | "json" | "php" | "promql" | "yaml":
                    pass  # Diagrams, and other people's files; test_api_doc.py and others run them.
                case _:
                    pytest.fail(f"{at}: nobody knows how to check {language!r}")

    def run_python(self, source: str, at: str) -> str:
        code = compile(source, at, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            result = eval(code, self.namespace)  # noqa: S307 - the guide's own text
            if inspect.iscoroutine(result):
                self.runner.run(result)
        return out.getvalue()

    def run_command(self, command: str, expected: str, at: str) -> None:
        if re.match(r"[A-Z]+=", command):
            self.assignments.append(command)
        elif command.startswith("seckill serve "):
            assert_printed(expected, self.serve(command), at)
        elif command.startswith(("seckill ", "curl ")):
            run = self.run_seckill if command.startswith("seckill ") else self.run_shell
            code, printed = run(command)
            assert_printed(expected, self.as_written(printed), at)
            refused = expected.startswith("seckill: ")
            assert (code != 0) == refused, f"{at}: exit code {code}"

    def run_seckill(self, command: str) -> tuple[int, str]:
        """In this process, because importing everything anew takes longer than the command."""
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(out),
            mock.patch.object(sys, "argv", shlex.split(self.as_here(command))),
            mock.patch.dict(os.environ, COLUMNS="120", SECKILL_REDIS=self.names[REDIS_URL]),
        ):
            return main(), out.getvalue()

    def run_shell(self, command: str) -> tuple[int, str]:
        script = self.as_here("\n".join([*self.assignments, command]))
        done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, timeout=90, check=False)
        return done.returncode, done.stdout.decode()

    def serve(self, command: str) -> str:
        """Starts an intake and returns what it said."""
        words = shlex.split(self.as_here(command).removeprefix("seckill "))
        self.intake = subprocess.Popen(
            [sys.executable, "-m", "seckill.cli", *words, "--port", "0"],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self.intake.stdout is not None
        said = ""
        while not said.endswith("ends it\n") and (line := self.intake.stdout.readline()):
            said += line
        if address := re.search(r"127\.0\.0\.1:\d+", said):
            self.names[INTAKE] = address[0]
        printed = self.as_written(said)
        self.assignments += re.findall(r"(?m)^export (SECKILL_\w+=\S+)$", said)
        if url := re.search(r"unix:\S+", said):
            self.names[REDIS_URL] = url[0]  # The rest of the guide talks to this server.
        return printed

    def leave(self) -> None:
        if self.intake is not None:
            self.intake.terminate()
            self.intake.communicate(timeout=60)
            assert self.intake.returncode == 0

    def as_here(self, text: str) -> str:
        for written, real in self.names.items():
            text = text.replace(written, real)
        return text

    def as_written(self, text: str) -> str:
        for written, real in self.names.items():
            text = text.replace(real, written)
        return text


def assert_printed(expected: str, actual: str, at: str) -> None:
    if expected.startswith("{"):
        same = is_like(json.loads(expected), json.loads(actual))
    else:
        patterns = [
            r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
            for line in plain_lines(expected)
        ]
        text = "".join(f"{line}\n" for line in plain_lines(actual))
        same = re.fullmatch("".join(patterns), text) is not None
    if not same:
        pytest.fail(f"{at}\n-- the guide says --\n{expected}\n-- it prints --\n{actual}")


def plain_lines(text: str) -> list[str]:
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d\d:\d\d", "TIME", text)
    text = re.sub(r"(?:in )?(?:\d+ d )?\b(?:\d\d:)?\d\d:\d\d\b(?: ago)?", "COUNTDOWN", text)
    text = re.sub(r"\b\d{13}\b", "MS", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def is_like(expected: Any, actual: Any) -> bool:
    if isinstance(expected, dict) and isinstance(actual, dict):
        shown = expected.keys() - {"…"}
        if shown - actual.keys() or ("…" not in expected and shown != actual.keys()):
            return False
        return all(is_like(expected[name], actual[name]) for name in shown)
    if isinstance(expected, list) and isinstance(actual, list):
        if expected[-1:] == ["…"]:
            expected = expected[:-1]
            actual = actual[: len(expected)]
        return len(expected) == len(actual) and all(map(is_like, expected, actual))
    if isinstance(expected, int) and isinstance(actual, int) and expected > 10**12:
        return actual > 10**12  # Times, in Unix milliseconds.
    return bool(expected == actual)


def set_window(file: Path, *, opens_in_s: int) -> None:
    """Moves a sale file's sale to now, so that what a guide shows does not depend on the day."""
    text = file.read_text(encoding="utf-8")
    opens_at = datetime.now(UTC) + timedelta(seconds=opens_in_s)
    for name, at in (("opens_at", opens_at), ("ends_at", opens_at + timedelta(hours=2))):
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {at.isoformat()}", text)
        assert count == 1
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_is_true(guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "$ curl " in text_of(guide) and shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    # It is 19:55 for the one who runs the sale, and 20:03 for the others.
    opens_in_s = 300 if guide == "operations" else -180
    set_window(Path("examples", "evening-sale.toml"), opens_in_s=opens_in_s)
    with EmbeddedServer(tmp_path / "data") as server, asyncio.Runner() as runner:
        monkeypatch.setenv("SECKILL_REDIS", server.url)
        engine = Engine(server.url)
        runner.run(engine.start())
        reader = Reader(guide, engine, runner)
        try:
            reader.read()
        finally:
            reader.leave()
            runner.run(engine.aclose())


class Understood(Exception):
    """The command line has understood its arguments and wants to connect."""


def commands_anywhere() -> list[str]:
    """Every `seckill …` of the guides: in consoles, unit files and sentences."""
    found: set[str] = set()
    for guide in (*GUIDES, *LEDGER_GUIDES):
        for language, text, _ in blocks_of(guide):
            if language == "console":
                found.update(command for command, _ in commands_of(text))
            elif language == "ini":
                found.update(re.findall(r"(?m)^ExecStart=\S*(seckill .*)$", text))
        sentences = re.sub(r"(?ms)^```.*?^```$", "", text_of(guide))
        found.update(re.findall(r"`(seckill [^`]*)`", sentences))
    # What the shell does with the output is no part of the command.
    plain = (re.split(r" [>|&]", command)[0] for command in found)
    return sorted({command for command in plain if command.startswith("seckill ")})


@pytest.mark.parametrize("command", commands_anywhere())
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*_: Any, **__: Any) -> Engine:
        raise Understood

    monkeypatch.setattr(Target, "engine", engine)
    monkeypatch.setattr("seckill.ledger.Ledger", engine)
    monkeypatch.setattr("seckill.server.workers.serve", engine)
    words = shlex.split(command)[1:]
    try:
        app(words, standalone_mode=False)
    except (Understood, SeckillError):
        pass  # What it needs is not here, but it has understood what is asked.
    except Exception as error:
        # In a sentence a command may be called by its name alone.
        alone = len(words) <= 2 and all(map(str.isalpha, words))
        if type(error).__name__ != "MissingParameter" or not alone:
            raise


@pytest.mark.parametrize("guide", [*GUIDES, *LEDGER_GUIDES])
def test_links_lead_somewhere(guide: str) -> None:
    for page, anchor in re.findall(r"\]\(([\w.]*)#?([\w-]*)\)", text_of(guide)):
        assert not page or (ROOT / "docs" / page).is_file(), page
        headings = re.findall(r"(?m)^#+ (.*)$", text_of(page.removesuffix(".md") or guide))
        anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
        assert not anchor or anchor in anchors, f"{page}#{anchor}"


# -- what the tables say ----------------------------------------------------------------------


def test_every_status() -> None:
    rows = table("orders", "status", "HTTP", "again?", "meaning", "who sees it", "what to do")
    expected = [
        [
            status.name,
            f"{problems.ANSWERS[status].http} {problems.ANSWERS[status].code}",
            "yes" if status.transient else "no",
            status.meaning,
        ]
        for status in Status
    ]
    assert [row[:4] for row in rows] == expected


def test_every_exception() -> None:
    """What calls raise stands in one table, what starting raises in the guides to starting."""
    documented = {name: answer for name, answer, *_ in table("orders", "exception", "HTTP")}
    at_start = {"EmbeddedError", "MissingExtra", "UnsuitableServer"}
    assert documented == {
        error.__name__: f"{kind.http} {kind.code}"
        for error, kind in problems.RAISED.items()
        if error is not SeckillError and error.__name__ not in at_start
    }
    all_guides = "".join(map(text_of, GUIDES + LEDGER_GUIDES))
    assert [name for name in errors.__all__ if name not in all_guides] == []


def test_every_kind_of_event() -> None:
    assert [row[0] for row in table("events", "kind", "detail")] == list(EventKind)


SALE = """
id = "tonight"
title = "今晚八点"
opens_at = 2026-12-05T20:00:00+08:00
ends_at = 2026-12-05T22:00:00+08:00
items = "items.csv"
"""
ITEM = {"sku": "MUG", "title": "青瓷马克杯", "price_fen": "0", "total": "100"}


def load(folder: Path, model: type, field: str, value: str) -> Sale:
    """A small sale whose file has this value."""
    sale, item = SALE, ITEM
    if model is Admission:
        sale = f'{SALE}[admission]\nmode = "queue"\n{field} = {value}\n'
    elif model is Sale:
        sale = re.sub(rf"(?m)^{field} = .*\n", "", SALE) + f"{field} = {value}\n"
    else:
        item = ITEM | {field: value}
        if field == "list_price_fen":
            item["list_price_basis"] = "近30天最低成交价"
    (folder / "sale.toml").write_text(sale, encoding="utf-8")
    rows = f"{','.join(item)}\n{','.join(item.values())}\n"
    (folder / "items.csv").write_text(rows, encoding="utf-8")
    return load_sale(folder / "sale.toml")


@pytest.mark.parametrize("model", [Sale, Item, Admission])
def test_every_field_of_a_sale(model: type[Sale | Item | Admission], tmp_path: Path) -> None:
    """Names and defaults; both ends of a range are taken, and one beyond each is refused."""
    rows = table("sales", f"{model.__name__.lower()} field", "value", "default")
    for field, (name, value, default, _) in zip(msgspec.structs.fields(model), rows, strict=True):
        shown = (
            "none"
            if field.default in (None, ())
            else "required"
            if field.required
            else f"{field.default:,}"
        )
        assert (name, default) == (field.name, shown)
        if bounds := re.fullmatch(r"([\d,]+) to ([\d,]+)", value):
            low, high = (int(bound.replace(",", "")) for bound in bounds.groups())
            for taken in (low, high):
                load(tmp_path, model, name, str(taken))
            for refused in (low - 1, high + 1):
                with pytest.raises(InvalidInput):
                    load(tmp_path, model, name, str(refused))


@pytest.mark.parametrize("row", table("sales", "field", "written"), ids=lambda row: row[1])
def test_what_is_refused_in_a_file(row: list[str], tmp_path: Path) -> None:
    field, written, said = row
    model = Item if field in Item.__struct_fields__ else Sale
    with pytest.raises(SaleFileError) as refusal:
        load(tmp_path, model, field, written)
    assert f"{refusal.value.problem}; {refusal.value.remedy}" == said
    assert refusal.value.field == field
    assert refusal.value.line is not None


# -- the table of payments --------------------------------------------------------------------


async def order_in(engine: Engine, sale: Sale, state: str) -> Order:
    """An order as the table names it; pay-1 has paid for it where it is paid."""
    order = (await engine.reserve(sale.id, "buyer-1", "k", {"a": 1})).order
    assert order is not None
    at = (sale.id, order.id)
    if state == "paying":
        await engine.begin_payment(*at)
    elif state == "released":
        await engine.release(*at)
    elif state in ("confirmed", "refunded"):
        await engine.confirm(*at, "pay-1")
    if state == "refunded":
        await engine.refund(*at, "r-1", return_units=True, return_limit=True)
    elif state in ("expired", "overdue"):
        await travel(engine, sale.id, sale.hold_ms)
    if state == "expired":
        await engine._expire(sale.id, 10)
    return order


PAYMENTS = {"first": 1, "the same again": 1, "another": 2, "another, repeated": 2, "the 17th": 17}


@pytest.mark.parametrize(
    "row", table("orders", "order is", "payment"), ids=lambda row: " / ".join(row[:2])
)
async def test_what_a_payment_does(row: list[str], engine: Engine) -> None:
    named, payment, answer, kind, _ = row
    sale = make_sale({"a": 1 if "nothing left" in named else 10})
    await engine.create(sale)
    await engine.open(sale.id)
    state = "overdue" if "overdue" in named else named.partition(",")[0]
    order = await order_in(engine, sale, state)
    if "nothing left" in named:
        assert (await engine.reserve(sale.id, "buyer-2", "k", {"a": 1})).ok
    number = PAYMENTS[payment]
    for earlier in range(1, number + (payment in ("the same again", "another, repeated"))):
        if number > 1 or state not in ("confirmed", "refunded"):
            await engine.confirm(sale.id, order.id, f"pay-{earlier}")
    before = await engine.order(sale.id, order.id)
    assert before is not None
    assert before.state is State("held" if state == "overdue" else state)
    events = [event async for event in engine.history(sale.id)]
    outcome = await engine.confirm(sale.id, order.id, f"pay-{number}")
    assert outcome.status is Status[answer]
    new = [event.kind async for event in engine.history(sale.id)][len(events) :]
    assert new == ([] if kind == "none" else [EventKind(kind)])
