"""The guides are true: what they show runs and prints what they say, and their tables say what the
code says.

How a guide is run, from top to bottom, in a directory of its own with a server of its own:

- ```python blocks share one namespace and may ``await``; ``engine`` is a started engine. A ```text
  block right after one is what it printed.
- ```toml blocks are whole sale files. One whose items are in a CSV takes the next ```csv block.
- In ```console blocks a line that begins with "$ " is a command, up to the next one is what it
  printed. `seckill` and `curl` are run; `seckill serve` in the background, until the guide ends.
  An assignment goes before every later command. Anything else is for the reader only.
- In what was printed "…" stands for anything, on a line of its own for any number of lines. JSON is
  compared as JSON, so a guide may break its lines, and times of now are any times.

Every `seckill …` anywhere in a guide must be one that the command line understands.
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
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import tomllib

from seckill import errors
from seckill.cli.app import app
from seckill.cli.command import Target
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput, SeckillError
from seckill.order import Order, State
from seckill.sale import Item, Sale
from seckill.salefile import load_sale
from seckill.server import problems, wire
from seckill.status import Status
from seckill.stream import EventKind
from tests.support import make_item, make_sale, travel

ROOT = Path(__file__).parents[2]
GUIDES = ("sales", "orders", "http", "events", "operations")
REDIS_URL = "redis://127.0.0.1:6379/0"
INTAKE = "127.0.0.1:8000"


class Block(NamedTuple):
    """A fenced block: its language, its text and the line of the guide on which it begins."""

    language: str
    text: str
    line: int


def text_of(guide: str) -> str:
    return (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")


def blocks_of(guide: str) -> list[Block]:
    text = text_of(guide)
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]


# -- what the guides show ---------------------------------------------------------------------


class Reader:
    """Somebody who reads a guide and types everything in it."""

    def __init__(self, guide: str, home: Path, engine: Engine, runner: asyncio.Runner) -> None:
        self.guide = guide
        self.home = home
        self.runner = runner
        self.namespace: dict[str, Any] = {"engine": engine}
        self.names = {REDIS_URL: engine.url}
        self.assignments: list[str] = []
        self.intake: subprocess.Popen[str] | None = None
        self.printed = ""

    def read(self) -> None:
        items_file = ""
        for block in blocks_of(self.guide):
            at = f"docs/{self.guide}.md:{block.line}"
            match block.language:
                case "python":
                    self.printed = self.run_python(block.text, at)
                case "text":
                    assert self.printed, f"{at}: nothing was printed before this"
                    assert_printed(block.text, self.printed, at)
                    self.printed = ""
                case "toml":
                    (self.home / "sale.toml").write_text(block.text, encoding="utf-8")
                    items = tomllib.loads(block.text)["items"]
                    items_file = items if isinstance(items, str) else ""
                    if not items_file:
                        load_sale(self.home / "sale.toml")
                case "csv":
                    assert items_file, f"{at}: no TOML before this one names a CSV"
                    (self.home / items_file).write_text(block.text, encoding="utf-8")
                    load_sale(self.home / "sale.toml")
                case "console":
                    for command, expected in commands_of(block.text):
                        self.run_command(command, expected, f"{at}: $ {command}")
                case "" | "ini":
                    pass  # Diagrams, and files that are not ours.
                case other:
                    raise AssertionError(f"{at}: nobody knows how to check {other!r}")

    def run_python(self, source: str, at: str) -> str:
        code = compile(source, at, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            result = eval(code, self.namespace)  # noqa: S307 - the guide's own text
            if inspect.iscoroutine(result):
                self.runner.run(result)
        return out.getvalue()

    def run_command(self, command: str, expected: str, at: str) -> None:
        if re.match(r"[A-Z_]+=", command):
            self.assignments.append(command)
        elif command.startswith("seckill serve"):
            self.serve(command, expected, at)
        elif command.startswith(("seckill ", "curl ")):
            done = subprocess.run(
                self.shell(command),
                cwd=self.home,
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=30,
                check=False,
            )
            assert_printed(expected, self.as_written(done.stdout), at)
            complained = any(line.startswith("seckill: ") for line in expected.splitlines())
            assert (done.returncode != 0) == complained, f"{at}: exit code {done.returncode}"

    def serve(self, command: str, expected: str, at: str) -> None:
        self.leave()
        self.intake = subprocess.Popen(
            self.shell(f"exec {command} --port 0"),
            cwd=self.home,
            env=self.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.intake.stdout is not None
        announced = ""
        for line in self.intake.stdout:
            announced += line
            if line.startswith("Ctrl-C"):
                break
        if address := re.search(r"127\.0\.0\.1:\d+", announced):
            self.names[INTAKE] = address[0]
        if url := re.search(r"unix:\S+", announced) if "--embedded" in command else None:
            # The rest of the guide talks to this server, as its reader would.
            self.names[REDIS_URL] = url[0]
        assert_printed(expected, self.as_written(announced), at)

    def leave(self) -> None:
        if self.intake is not None:
            self.intake.terminate()
            self.intake.communicate(timeout=20)
            assert self.intake.returncode == 0
            self.intake = None

    def shell(self, command: str) -> list[str]:
        for written, real in self.names.items():
            command = command.replace(written, real)
        # `exec` takes no function, so the background command is spelled out.
        command = re.sub(r"^(exec )?seckill ", r'\1"$PYTHON" -m seckill.cli ', command)
        return ["sh", "-c", "; ".join([*self.assignments, command]).replace(INTAKE, self.address)]

    @property
    def address(self) -> str:
        return self.names.get(INTAKE, INTAKE)

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PYTHON": sys.executable,
            "SECKILL_REDIS": self.names[REDIS_URL],
            "TZ": "Asia/Shanghai",
            "PYTHONIOENCODING": "utf-8",
        }

    def as_written(self, text: str) -> str:
        for written, real in self.names.items():
            text = text.replace(real, written)
        return text


def commands_of(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block with what it printed. A command may go on after a backslash."""
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.M)[1:]:
        command, _, expected = part.partition("\n")
        yield " ".join(command.split()) if "'" not in command else command, expected


def assert_printed(expected: str, actual: str, at: str) -> None:
    if expected.lstrip().startswith("{"):
        same = is_like(json.loads(expected), json.loads(actual))
    else:
        lines = [line.rstrip() for line in expected.strip("\n").splitlines()]
        patterns = [
            r"(?:.*\n)*?" if line.strip() == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n"
            for line in lines
        ]
        text = "".join(f"{line.rstrip()}\n" for line in actual.strip("\n").splitlines())
        same = re.fullmatch("".join(patterns), text) is not None
    assert same, f"{at}\nthe guide says:\n{expected}\nit prints:\n{actual}"


def is_like(expected: Any, actual: Any) -> bool:
    if expected == "…":
        return True
    if isinstance(expected, dict) and isinstance(actual, dict):
        # A key "…" stands for all keys that are not shown.
        shown = expected.keys() - {"…"}
        whole = "…" in expected or shown == actual.keys()
        return whole and all(k in actual and is_like(expected[k], actual[k]) for k in shown)
    if isinstance(expected, list) and isinstance(actual, list):
        if "…" in expected:
            expected = expected[: expected.index("…")]
            actual = actual[: len(expected)]
        return len(expected) == len(actual) and all(map(is_like, expected, actual))
    if isinstance(expected, int) and isinstance(actual, int) and min(expected, actual) > 10**12:
        return True
    return bool(expected == actual)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the examples in it, whose sale has begun three minutes ago."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    file = tmp_path / "examples" / "evening-sale.toml"
    begins = datetime.now(UTC) - timedelta(minutes=3)
    text = file.read_text(encoding="utf-8")
    for name, at in (("opens_at", begins), ("ends_at", begins + timedelta(hours=2))):
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {at.isoformat()}", text, flags=re.M)
        assert count == 1
    file.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_is_true(guide: str, home: Path) -> None:
    if "curl " in text_of(guide) and shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    with EmbeddedServer(home / "data") as server, asyncio.Runner() as runner:
        engine = Engine(server.url)
        runner.run(engine.start())
        reader = Reader(guide, home, engine, runner)
        try:
            reader.read()
        finally:
            reader.leave()
            runner.run(engine.aclose())


class Understood(Exception):
    """The command line has read everything it was given, and wants to connect."""


def commands_anywhere() -> list[str]:
    """Every `seckill …` of the guides: in a console, in a unit file, in a sentence."""
    found = set()
    for guide in GUIDES:
        for block in blocks_of(guide):
            if block.language == "console":
                found |= {command for command, _ in commands_of(block.text)}
            elif block.language == "ini":
                found |= set(re.findall(r"^ExecStart=\S*(seckill .*)$", block.text, re.M))
        prose = re.sub(r"^```.*?^```$", "", text_of(guide), flags=re.M | re.S)
        found |= set(re.findall(r"`(seckill [^`]*)`", prose))
    return sorted(command for command in found if command.startswith("seckill "))


@pytest.mark.parametrize("command", commands_anywhere())
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(*_: Any, **__: Any) -> Engine:
        raise Understood

    monkeypatch.setattr(Target, "engine", engine)
    words = shlex.split(re.split(r" [|&;] ?", command)[0])[1:]
    # A sentence may name a whole group of commands: `seckill sale`.
    if words in (["sale"], ["stock"], ["order"]):
        return
    with pytest.raises(Understood):
        app(words, standalone_mode=False)


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide: str) -> None:
    for target in re.findall(r"\]\(([^)#]*)[^)]*\)", text_of(guide)):
        if not target.startswith("http") and target:
            assert (ROOT / "docs" / target).exists(), target
    for page, anchor in re.findall(r"\]\(([\w.]*)#([^)]*)\)", text_of(guide)):
        headings = re.findall(r"^#+ (.*)$", text_of(page.removesuffix(".md") or guide), re.M)
        anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
        assert anchor in anchors, f"{page}#{anchor}"


# -- what the tables say ----------------------------------------------------------------------


def table(guide: str, *columns: str) -> list[list[str]]:
    """The rows of the one table that begins with these columns; code marks are dropped."""
    found = []
    for part in re.findall(r"(?:^\|.*\|\n)+", text_of(guide), re.M):
        rows = [
            [cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
            for line in part.splitlines()
        ]
        if tuple(rows[0][: len(columns)]) == columns:
            found.append(rows[2:])
    assert len(found) == 1, f"{len(found)} tables of docs/{guide}.md begin with {columns}"
    return found[0]


def test_every_status() -> None:
    rows = table("orders", "status", "HTTP", "again?", "meaning")
    documented = [
        (name, http, again, meaning) for name, http, again, meaning, *_ in rows
    ]
    assert documented == [
        (
            status.name,
            f"{problems.ANSWERS[status].http} {problems.ANSWERS[status].code}",
            "yes" if status.transient else "no",
            status.meaning,
        )
        for status in Status
    ]
    assert all(who and what for *_, who, what in rows)


def test_every_exception() -> None:
    """Those a caller meets; the table says what each answers over HTTP."""
    rows = table("orders", "exception", "HTTP")
    documented = {name: http for name, http, *_ in rows}
    at_start = {"EmbeddedError", "MissingExtra", "UnsuitableServer"}
    expected = {
        cls.__name__: f"{kind.http} {kind.code}"
        for cls, kind in problems.RAISED.items()
        if cls is not SeckillError and cls.__name__ not in at_start
    }
    assert documented == expected
    public = {name for name in errors.__all__ if name != "SeckillError"}
    text = text_of("orders") + text_of("operations") + text_of("sales")
    assert {name for name in public if name not in text} == set()


def test_every_problem() -> None:
    """All codes that are not the answer of the engine, wherever they come from."""
    kinds = [kind for kind in vars(problems).values() if isinstance(kind, problems.Kind)]
    rows = table("http", "code", "HTTP", "title")
    assert sorted(tuple(row[:3]) for row in rows) == sorted(
        (kind.code, str(kind.http), kind.title) for kind in kinds
    )


def test_every_route() -> None:
    from seckill.server import health, orders, sales

    rows = table("http", "method", "path")
    assert {tuple(row[:2]) for row in rows} == {
        (route.method, route.path)
        for module in (health, orders, sales)
        for route in module.ROUTES
    }


@pytest.mark.parametrize(
    ("columns", "document"),
    [
        (("field of an order",), wire.OrderDocument),
        (("field of a problem",), wire.ProblemDocument),
    ],
)
def test_every_field_of_a_document(columns: tuple[str, ...], document: type) -> None:
    assert [row[0] for row in table("http", *columns)] == list(document.__struct_fields__)


def test_every_kind_of_event() -> None:
    rows = table("events", "kind", "detail")
    assert [row[0] for row in rows] == list(EventKind)


@pytest.mark.parametrize(("columns", "model"), [(("sale field",), Sale), (("item field",), Item)])
def test_every_field_of_a_sale_file(columns: tuple[str, ...], model: type[Sale | Item]) -> None:
    """Names, defaults and bounds: the two ends of a range are taken, one beyond is refused."""
    rows = table("sales", *columns)
    fields = msgspec.structs.fields(model)
    assert [row[0] for row in rows] == [field.name for field in fields]
    for field, (name, written, default, *_) in zip(fields, rows, strict=True):
        if field.required:
            assert default == "required"
        else:
            shown = "none" if field.default is None else f"{field.default:,}"
            assert default == shown, name
        if bounds := re.match(r"([\d,]+) to ([\d,]+)$", written):
            low, high = (int(bound.replace(",", "")) for bound in bounds.groups())
            for value, taken in ((low, True), (high, True), (low - 1, False), (high + 1, False)):
                # Durations are bounded more tightly in files than in Python, see salefile.py.
                if name in ("hold_ms", "pay_ms") and value == low - 1:
                    continue
                assert is_taken(model, name, value) == taken, (name, value)


def is_taken(model: type[Sale | Item], name: str, value: int) -> bool:
    others: dict[str, Any] = {}
    if name == "price_fen" or name == "list_price_fen":
        others = {"list_price_basis": "近30天最低成交价", "list_price_fen": 10**10, "price_fen": 0}
    fields = others | {name: value}
    if name == "list_price_fen" and value >= 0:
        fields["price_fen"] = 0
    if name == "price_fen":
        fields["list_price_fen"] = max(value, 0)
        if value > 10**10:
            fields["list_price_fen"] = 10**10
    try:
        make_item(**fields) if model is Item else make_sale(**fields)
    except InvalidInput:
        return False
    return True


# -- what the payment matrix says -------------------------------------------------------------


async def order_in(engine: Engine, sale: Sale, buyer: str, state: str) -> Order:
    """An order in the state that a row of the matrix names; "pay-1" has paid for a paid one."""
    held = (await engine.reserve(sale.id, buyer, "k", {"a": 1})).order
    assert held is not None
    match state:
        case "paying":
            await engine.begin_payment(sale.id, held.id)
        case "confirmed":
            await engine.confirm(sale.id, held.id, "pay-1")
        case "refunded":
            await engine.confirm(sale.id, held.id, "pay-1")
            await engine.refund(sale.id, held.id, "r-1", return_units=True, return_limit=True)
        case "released":
            await engine.release(sale.id, held.id)
        case "expired":
            await travel(engine, sale.id, sale.hold_ms)
            await engine._expire(sale.id, 100)
    now = await engine.order(sale.id, held.id)
    assert now is not None
    assert now.state is State(state)
    return now


@pytest.fixture
async def quiet(server: EmbeddedServer) -> AsyncIterator[Engine]:
    async with Engine(server.url, durability="memory", sweep_ms=0) as engine:
        yield engine


async def last_event(engine: Engine, sale: str) -> tuple[int, str]:
    seq, kind = 0, ""
    async for event in engine.history(sale):
        seq, kind = event.seq, event.kind.value
    return seq, kind


@pytest.mark.parametrize("row", table("orders", "order is", "payment"), ids=lambda row: row[0])
async def test_payment_matrix(row: list[str], quiet: Engine) -> None:
    state, payment, answer, event, *_ = row
    left = 0 if "nothing left" in state else 9
    state = state.partition(",")[0]
    sale = make_sale({"a": 1 + left})
    await quiet.create(sale)
    await quiet.open(sale.id)
    order = await order_in(quiet, sale, "buyer-1", state)
    if not left:
        assert (await quiet.reserve(sale.id, "buyer-2", "k", {"a": 1})).ok
    if payment == "the same again" and state not in ("confirmed", "refunded"):
        await quiet.confirm(sale.id, order.id, "pay-1")
    if payment == "the 17th":
        for number in range(1, 17):
            await quiet.confirm(sale.id, order.id, f"pay-{number}")
    before, _ = await last_event(quiet, sale.id)
    given = {"first": "pay-1", "the same again": "pay-1", "another": "pay-2", "the 17th": "pay-17"}
    outcome = await quiet.confirm(sale.id, order.id, given[payment])
    after, kind = await last_event(quiet, sale.id)
    assert outcome.status.name == answer
    assert (kind if after > before else "none") == event
