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
from msgspec.structs import replace
from rich.cells import cell_len

from seckill.cli.top_picture import picture
from seckill.cli.top_reading import Frame, GroupLag, SaleView, ServerView, Watcher
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import RedisUnavailable, UnknownSale
from seckill.keys import SALES, shard_keys
from seckill.sale import Sale
from tests.cli.conftest import run_seckill
from tests.faults.test_servers import by_cluster
from tests.faults.topologies import HOST, ClusterGroup
from tests.support import make_item, make_sale

SERVER = ServerView(
    name="Valkey 9.9.9",
    ops_per_s=12,
    used_bytes=9 << 20,
    limit_bytes=10 << 20,
    clients=7,
    blocked=1,
    fsync="always",
    fsync_delayed=3,
    trip_ms=0.5,
)
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
    (server,) = frame.servers
    assert (server.fsync, server.role, server.address) == ("no", "master", "")


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
            # One that is stopped by a loss is what somebody has to see.
            header = shard_keys(paused.id)[0]
            await engine._calls.client_of(header).hset(header, "state", "fenced")
            frame = await watcher.look()
            assert [view.id for view in frame.sales][:2] == [paused.id, selling.id]
            await engine._calls.client_of(header).hset(header, "state", "paused")
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
    return Frame(1_800_000_000_000, (SERVER,), tuple(views), 2)


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
    several = tuple(masters(7, away=2))
    assert len(several) == 7
    frames = [frame, Frame(frame.at_ms, frame.servers, (broken, *frame.sales), 0)]
    frames += [Frame(frame.at_ms, several, (broken, *frame.sales), 0)]
    for one in [*frames, Frame(frame.at_ms, frame.servers, (), 0)]:
        for width in (20, 40, 60, 80, 100, 120, 200):
            for height in (3, 8, 16, 24, 50, 100):
                for text in ("", trouble):
                    lines = picture(one, width, height, text).plain.split("\n")
                    assert len(lines) <= height
                    assert max(map(cell_len, lines)) <= width
    whole = picture(frame, 120, None).plain
    assert all(item.sku[:10] in whole for item in items)
    assert "and 2 more: seckill top SALE" in whole


def masters(count: int, *, away: int) -> Iterator[ServerView]:
    """Of a cluster, the one numbered ``away`` does not answer; the higher the more they do."""
    for number in range(count):
        address = f"10.0.0.{number}:6379"
        if number == away:
            yield ServerView(address=address, sales=3, problem="the connection broke " * 9)
        else:
            yield replace(SERVER, address=address, sales=number, ops_per_s=10**number)


def test_each_master_of_a_cluster_has_a_line() -> None:
    lines = picture(Frame(1, tuple(masters(4, away=2)), (), 0), 130, None).plain.split("\n")
    assert lines[0].startswith("seckill top  Valkey 9.9.9  4 masters, 1,011 ops/s ")
    beginnings = [
        "10.0.0.0:6379  0 sales ·     1 ops/s · 9.0 MB used",
        "10.0.0.1:6379   1 sale ·    10 ops/s · 9.0 MB used",
        "10.0.0.2:6379  away, with 3 sales: the connection broke",
        "10.0.0.3:6379  3 sales · 1,000 ops/s · 9.0 MB used",
    ]
    for line, beginning in zip(lines[1:], beginnings, strict=False):
        assert line.startswith(beginning)
    assert lines[5:] == ["", "no sale is open or to come"]


def test_of_many_masters_those_are_shown_that_matter() -> None:
    frame = Frame(1, tuple(masters(9, away=2)), (), 0)
    lines = picture(frame, 130, 12).plain.split("\n")
    assert [line.split()[0] for line in lines[1:4]] == [f"10.0.0.{n}:6379" for n in (2, 7, 8)]
    assert lines[4] == "and 6 more masters, 1,111,011 ops/s"
    assert picture(frame, 130, 12, "no news").plain.split("\n")[1:3] == ["no news", ""]


def test_who_the_master_is_and_who_is_none() -> None:
    def head(server: ServerView) -> str:
        return picture(Frame(1, (server,), (), 0), 120, None).plain.split("\n")[0]

    assert head(SERVER).startswith("seckill top  Valkey 9.9.9   ")
    # Behind sentinels, where it may be another one tomorrow.
    assert head(replace(SERVER, address="h:1")).startswith("seckill top  Valkey 9.9.9 at h:1   ")
    replica = head(replace(SERVER, role="slave"))
    assert replica.startswith("seckill top  Valkey 9.9.9  a slave, which takes no orders   ")
    pair = (replace(SERVER, address="h:1"), replace(SERVER, address="h:2", role="slave"))
    lines = picture(Frame(1, pair, (), 0), 130, None).plain.split("\n")
    assert ["takes no orders" in line for line in lines[:3]] == [False, False, True]


# -- a cluster --------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterGroup]:
    # So long that nobody takes the place of who is killed here.
    with ClusterGroup(tmp_path / "cluster", node_timeout_ms=600_000) as group:
        yield group


@pytest.mark.slow
async def test_all_masters_of_a_cluster_and_all_of_its_sales(
    cluster: ClusterGroup, tmp_path: Path
) -> None:
    url = by_cluster(cluster)
    sales = [make_sale() for _ in range(12)]
    over = make_sale()
    async with Engine(url, durability="memory", sweep_ms=0) as engine:
        await started(engine, *sales, over)
        await engine.close(over.id)
        for sale in sales:
            assert (await engine.reserve(sale.id, "ann", "k", {"a": 1})).ok
    homes = {sale.id: f"{HOST}:{cluster.node_of(shard_keys(sale.id)[0]).port}" for sale in sales}
    nodes = {f"{HOST}:{node.port}": node for node in cluster.masters()}
    wanted = {address: list(homes.values()).count(address) for address in nodes}
    lists = cluster.node_of(SALES)
    gone = next(address for address in homes.values() if nodes[address] is not lists)

    watcher = Watcher(url, None)
    try:
        frame = await watcher.look()
        assert {server.address: server.sales for server in frame.servers} == wanted
        assert {(server.role, server.problem) for server in frame.servers} == {("master", "")}
        assert {view.id: view.server for view in frame.sales} == homes
        assert all(view.snapshot and view.snapshot.orders == 1 for view in frame.sales)
        assert (await one_sale(url, sales[0].id)).sales[0].server == homes[sales[0].id]

        shown = run_seckill("top", "--redis", url, cwd=tmp_path).out
        for address, count in wanted.items():
            assert re.search(rf"(?m)^{address} +{count} sales? · ", shown)
        for sale in sales:
            assert f"{sale.id} on {homes[sale.id]}" in shown

        # Of one that is away the others know nothing, and what it has is still told of.
        nodes[gone].kill()
        after = await watcher.look()
        servers = {server.address: server for server in after.servers}
        assert {address for address, server in servers.items() if server.problem} == {gone}
        assert {address: server.sales for address, server in servers.items()} == wanted
        assert [view.id for view in after.sales] == [view.id for view in frame.sales]
        for view in after.sales:
            away = f"its server {gone} is away" if homes[view.id] == gone else ""
            assert (view.problem, view.snapshot is None) == (away, bool(away))

        # Nor is it the end when the list of sales is away as well; for who comes now it is.
        lists.kill()
        last = await watcher.look()
        assert [view.id for view in last.sales] == [view.id for view in frame.sales]
        with pytest.raises(RedisUnavailable, match="has the list of sales, is away"):
            await one_sale(url, None)
        for node in nodes.values():
            if node.running:
                node.kill()
        with pytest.raises(RedisUnavailable):
            await watcher.look()
    finally:
        await watcher.aclose()


async def one_sale(url: str, sale: str | None) -> Frame:
    """The first look of somebody."""
    watcher = Watcher(url, sale)
    try:
        return await watcher.look()
    finally:
        await watcher.aclose()


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
