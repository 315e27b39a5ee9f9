"""``seckill top``: one frame for a pipe, and the live view on a terminal of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len

from seckill.cli.top_picture import picture
from seckill.cli.top_reading import Frame, GroupLag, SaleView, ServerView, Watcher
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import RedisUnavailable, UnknownSale
from seckill.keys import shard_keys
from seckill.sale import Sale
from tests.cli.conftest import run_seckill
from tests.support import make_item, make_sale

ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of its own, because all of its sales are shown."""
    with EmbeddedServer(tmp_path / "data", appendfsync="no") as server:
        yield server


async def started(engine: Engine, *sales: Sale) -> None:
    for sale in sales:
        await engine.create(sale)
        await engine.open(sale.id)


# -- what is seen -----------------------------------------------------------------------------


async def test_frames_and_rates(engine: Engine) -> None:
    sale = make_sale({"a": 100, "b": 50}, title="早市 [bold]秒杀")
    await started(engine, sale)
    async for _ in engine.events(sale.id, "mall", follow=False):
        pass
    watcher = Watcher(engine.url, sale.id)
    try:
        began_s = time.monotonic()
        first = (await watcher.look()).sales[0]
        assert (first.orders_per_s, first.events_per_s) == (None, None)
        seen_s = time.monotonic()
        for number in range(20):
            await engine.reserve(sale.id, f"b{number}", "k", {"a": 1})
        await asyncio.sleep(0.1)
        within_s = time.monotonic() - seen_s
        frame = await watcher.look()
        around_s = time.monotonic() - began_s
    finally:
        await watcher.aclose()
    view = frame.sales[0]
    assert view.sale == sale
    assert view.snapshot is not None
    assert view.snapshot.stock["a"].held == 20
    assert view.orders_per_s is not None
    # The time between the two looks is not known better than this, give or take a millisecond.
    assert 20 / (around_s + 0.002) <= view.orders_per_s <= 20 / (within_s - 0.002)
    assert view.groups == (GroupLag("mall", 20, 0),)
    assert frame.server.fsync == "no"
    assert frame.server.role == "master"


async def test_which_sales_are_shown(hall: EmbeddedServer) -> None:
    async with Engine(hall.url, durability="memory", sweep_ms=0) as engine:
        later, selling, paused, closed, created = (make_sale() for _ in range(5))
        later = make_sale(
            opens_at=selling.opens_at.replace(year=2090),
            ends_at=selling.ends_at.replace(year=2091),
        )
        await started(engine, later, selling, paused, closed)
        await engine.create(created)
        await engine.pause(paused.id, "价格有误")
        await engine.close(closed.id)
        watcher = Watcher(hall.url, None)
        try:
            frame = await watcher.look()
            assert [view.id for view in frame.sales] == [
                selling.id,
                later.id,
                paused.id,
                created.id,
            ]
            # A damaged one comes first, and hides no other.
            await engine._calls.client_of("sk:sales").delete(shard_keys(later.id)[0])
            await engine._calls.client_of("sk:sales").set(shard_keys(later.id)[0], "x")
            await engine._calls.client_of("sk:sales").delete(shard_keys(paused.id)[4])
            await engine._calls.client_of("sk:sales").set(shard_keys(paused.id)[4], "x")
            views = {view.id: view.problem for view in (await watcher.look()).sales}
            assert list(views) == [later.id, selling.id, paused.id, created.id]
            assert "WRONGTYPE" in views[later.id]
            assert "WRONGTYPE" in views[paused.id]
            assert views[selling.id] == ""
        finally:
            await watcher.aclose()


async def test_a_server_that_goes_and_comes(hall: EmbeddedServer, tmp_path: Path) -> None:
    sale = make_sale()
    async with Engine(hall.url, durability="memory", sweep_ms=0) as engine:
        await started(engine, sale)
    watcher = Watcher(hall.url, sale.id)
    try:
        await watcher.look()
        hall.kill()
        with pytest.raises(RedisUnavailable):
            await watcher.look()
    finally:
        await watcher.aclose()


async def test_unknown_sale(engine: Engine) -> None:
    watcher = Watcher(engine.url, "nope")
    with pytest.raises(UnknownSale):
        await watcher.look()
    await watcher.aclose()


# -- how it is painted ------------------------------------------------------------------------


async def frame_of(engine: Engine, *sales: Sale) -> Frame:
    await started(engine, *sales)
    views: list[SaleView] = []
    for sale in sales:
        watcher = Watcher(engine.url, sale.id)
        views += (await watcher.look()).sales
        await watcher.aclose()
    server = ServerView("Valkey 9.9.9", "master", 12, 9 << 20, 10 << 20, 7, 1, "always", 3, 0.5)
    return Frame(1_800_000_000_000, server, tuple(views), 2)


async def test_no_frame_is_larger_than_its_terminal(engine: Engine) -> None:
    items = tuple(
        make_item(f"sku-{i}" * (1 + i % 3), title="酱香型白酒 53度 500ml 单瓶装" * (1 + i % 2))
        for i in range(30)
    )
    sales = [make_sale(items=items, title="周六晚8点 会员秒杀专场" * 3), make_sale(), make_sale()]
    await started(engine, *sales[2:])
    await engine.pause(sales[2].id, "价格有误" * 20)
    frame = await frame_of(engine, *sales)
    trouble = "no news for 3 s: the connection broke " * 5
    broken = SaleView(id="broken", problem="can't be read: WRONGTYPE " * 9)
    frames = [frame, Frame(frame.at_ms, frame.server, (broken, *frame.sales), 0)]
    for one in [*frames, Frame(frame.at_ms, frame.server, (), 0)]:
        for width in (20, 40, 60, 80, 100, 120, 200):
            for height in (3, 8, 16, 24, 50, 100):
                for text in ("", trouble):
                    lines = picture(one, width, height, text).plain.split("\n")
                    assert len(lines) <= height
                    assert max(map(cell_len, lines)) <= width
    whole = picture(frame, 120, None).plain
    assert all(item.sku[:10] in whole for item in items)
    assert "and 2 more: seckill top SALE" in whole


async def test_room_goes_to_the_busiest(engine: Engine) -> None:
    items = tuple(make_item(f"sku-{i}") for i in range(20))
    sale = make_sale(items=items)
    await started(engine, sale)
    for index in (17, 3, 11):
        assert (await engine.reserve(sale.id, f"b{index}", "k", {f"sku-{index}": 1})).ok
    frame = await frame_of(engine, sale)
    shown = re.findall(r"(?m)^sku-\d+", picture(frame, 100, 11).plain)
    assert shown == ["sku-3", "sku-11", "sku-17"]


# -- the command ------------------------------------------------------------------------------


async def test_one_frame(engine: Engine, tmp_path: Path) -> None:
    sale = make_sale({"a": 7, "b": 8}, title="早市 [bold]秒杀")
    await started(engine, sale)
    for args in (("top", sale.id, "--once"), ("top", sale.id)):  # A pipe gets one in any case.
        done = run_seckill(*args, "--redis", engine.url, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert "\x1b" not in done.out
        assert f"早市 [bold]秒杀  {sale.id}" in done.out
        assert re.search(r"(?m)^stock +15 left · 0 held · 0 paid of 15", done.out)
        assert re.search(r"(?m)^orders +0  0/s", done.out)
        assert "nobody reads them" in done.out


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("top", "a b", "--redis", "redis://127.0.0.1:1"), 2, "sale: 'a b' holds ' '"),
        (("top", "--redis", "redis://127.0.0.1:1"), 1, "the connection to Redis broke"),
        (("top",), 2, "give --redis URL or --embedded DIR"),
    ],
)
def test_bad_input(tmp_path: Path, args: tuple[str, ...], code: int, text: str) -> None:
    done = run_seckill(*args, cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    assert text in done.err


@contextmanager
def terminal(*args: str, size: tuple[int, int] = (30, 100)) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    one = Terminal(ours, theirs, size, args)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        os.close(ours)
        os.close(theirs)


class Terminal:
    """A command on a terminal. ``seen`` is all it has written, with its control sequences."""

    def __init__(self, ours: int, theirs: int, size: tuple[int, int], args: tuple[str, ...]):
        self.ours, self.theirs = ours, theirs
        self.resize(*size)
        self.before = termios.tcgetattr(theirs)
        self.seen = ""
        env = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "seckill.cli", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env | {"TERM": "xterm-256color"},
            # Ctrl-C, and a change of its size, reach whom the terminal belongs to.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.set_blocking(ours, False)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str, *, after: int = 0) -> None:
        """Until this was written, behind the first ``after`` characters."""
        give_up_s = time.monotonic() + 60
        while text not in self.seen[after:]:
            assert time.monotonic() < give_up_s, f"no {text!r} in {self.seen[after:]!r}"
            try:
                self.seen += os.read(self.ours, 65_536).decode("utf-8", "replace")
            except BlockingIOError:
                time.sleep(0.02)

    def end(self) -> int:
        code = self.process.wait(60)
        self.wait_for(SHOW_CURSOR)
        return code


@pytest.mark.parametrize("how", ["q", "ctrl-c", "sigterm"])
async def test_live_view_ends_and_restores_the_terminal(engine: Engine, how: str) -> None:
    sale = make_sale(title="早市 [bold]秒杀")
    await started(engine, sale)
    with terminal("top", sale.id, "--redis", engine.url) as screen:
        screen.wait_for("早市 [bold]秒杀")
        assert ENTER_SCREEN in screen.seen
        if how == "sigterm":
            screen.process.send_signal(signal.SIGTERM)
        else:
            os.write(screen.ours, b"xq" if how == "q" else b"\x03")
        assert screen.end() == 0
        assert termios.tcgetattr(screen.theirs) == screen.before
        assert screen.seen.rindex(LEAVE_SCREEN) > screen.seen.rindex(ENTER_SCREEN)
        assert "Traceback" not in screen.seen


async def test_live_view_follows_the_sale_the_size_and_an_outage(hall: EmbeddedServer) -> None:
    sale = make_sale({"a": 1_234})
    async with Engine(hall.url, durability="memory", sweep_ms=0) as engine:
        await started(engine, sale)
        with terminal("top", "--redis", hall.url) as screen:
            screen.wait_for("1,234 left")
            for number in range(34):
                await engine.reserve(sale.id, f"b{number}", "k", {"a": 1})
            screen.wait_for("1,200 left")
            mark = len(screen.seen)
            screen.resize(6, 60)
            screen.wait_for("\x1b[H", after=mark)
            mark = len(screen.seen)
            hall.kill()
            screen.wait_for("no news for", after=mark)
            os.write(screen.ours, b"q")
            assert screen.end() == 0
    assert "Traceback" not in screen.seen
