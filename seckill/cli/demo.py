"""``seckill demo``: sells a real sale over real sockets and proves that nothing was oversold,
undersold or lost.

    this process ── embedded server, the screen, the proof
      ├── intake   demo_intake.py: seckill.server on a loopback port
      └── load     demo_load.py: every buyer, over HTTP
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
import signal
import tempfile
from collections import deque
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from seckill import redis as servers
from seckill.cli.command import Json, open_ledger
from seckill.cli.demo_check import check_books, plainest_first
from seckill.cli.demo_ledger import bring_up, check_ledger, sale_report
from seckill.cli.demo_messages import Books, LoadOrders, Progress, Proofs
from seckill.cli.demo_report import Report, ScriptTime, make_report, read_story
from seckill.cli.demo_sale import demo_sale
from seckill.cli.demo_screen import Screen
from seckill.cli.demo_stage import START_S, Child, DemoFailed, child
from seckill.cli.output import Stopped, complain
from seckill.cli.verify import violation_text
from seckill.engine import Engine
from seckill.errors import MissingExtra
from seckill.sale import Sale
from seckill.snapshot import Snapshot
from seckill.verify import verify

if TYPE_CHECKING:
    from seckill.ledger.report import Report as SaleReport

__all__ = ["demo"]

TIME_LIMIT_S: Final = 120.0
OPENS_IN_MS: Final = 1_200
LOOK_S: Final = 0.2
# All must be quiet for so long before the crowd is told to go home.
QUIET_S: Final = 0.6
# So long after the last deadline the stock must have moved.
STILL_S: Final = 3.0
PEAK_WINDOW_S: Final = 1.0

_UNCHECKED: Final = "stopped; nothing was checked"


def demo(
    buyers: Annotated[
        int, typer.Option(min=100, max=100_000, help="How many people want something.")
    ] = 50_000,
    json: Json = False,
) -> None:
    """Sell a real sale to a crowd over HTTP, and prove that nothing was oversold or lost."""
    for extra, module in (("server", "aiohttp"), ("server", "uvloop"), ("ledger", "aiosqlite")):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(extra, module)
    screen = Screen(json=json)
    try:
        report, summary = asyncio.run(_perform(buyers, screen))
    except KeyboardInterrupt:
        raise Stopped(_UNCHECKED, code=128 + signal.SIGINT) from None
    except asyncio.CancelledError:
        raise Stopped(_UNCHECKED, code=128 + signal.SIGTERM) from None
    screen.final(report, summary)
    if not report.ok:
        raise typer.Exit(complain(violation_text(report.violations[0]), code=1))


async def _perform(buyers: int, screen: Screen) -> tuple[Report, SaleReport]:
    if task := asyncio.current_task():
        # These must unwind like Ctrl-C, so that no process and no directory is left behind.
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        async with asyncio.timeout(TIME_LIMIT_S) as limit:
            with tempfile.TemporaryDirectory(prefix="seckill-demo-") as name, screen:
                folder = Path(name)
                async with Engine.embedded(folder / "data", sweep_ms=0) as engine:
                    return await _Demo(engine, buyers, screen, folder).run()
    except TimeoutError:
        if limit.expired():
            raise DemoFailed(f"the demo did not end within {TIME_LIMIT_S:.0f} s") from None
        raise


class _Demo:
    def __init__(self, engine: Engine, buyers: int, screen: Screen, folder: Path) -> None:
        self._engine = engine
        self._buyers = buyers
        self._screen = screen
        self._folder = folder
        self._ledger = f"sqlite:///{folder}/ledger.db"
        self._proofs = Proofs(secrets.token_hex(32), f"sk_{secrets.token_urlsafe(32)}")
        self._began_s = monotonic()
        self._progress: Progress | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._rate = self._peak = 0.0

    async def run(self) -> tuple[Report, SaleReport]:
        """From the first process to the verdict."""
        engine, folder = self._engine, self._folder
        async with (
            child(
                "intake", "seckill.cli.demo_intake", engine.url, self._ledger, folder=folder
            ) as intake,
            child("load", "seckill.cli.demo_load", folder=folder) as load,
        ):
            async with asyncio.timeout(START_S):
                await intake.send(msgspec.json.encode(self._proofs).decode())
                address = await intake.read_line()
                await load.read_line()
            sale = await self._create()
            before = await _script_time(engine.url)
            books = await self._sell(sale, address, intake, load)
            after = await _script_time(engine.url)
        self._screen.note("the sale is over; replaying its events")
        await engine.close(sale.id)
        snapshot = await engine.snapshot(sale.id)
        verdict = await verify(engine, sale.id)
        story = await read_story(engine, sale.id, sale.opens_ms, sale.total_units)
        violations = [*verdict.violations, *check_books(books, story, snapshot)]
        async with open_ledger(self._ledger, new=True) as ledger:
            await bring_up(engine, ledger)
            rows, drift = await check_ledger(ledger, sale.id, story)
            summary = await sale_report(ledger, sale.id)
        report = make_report(
            engine=engine,
            sale=sale,
            snapshot=snapshot,
            story=story,
            books=books,
            verdict=verdict,
            violations=plainest_first([*violations, *drift]),
            rows=rows,
            scripts=ScriptTime(after.calls - before.calls, after.micros - before.micros),
            peak=self._peak,
            seconds=monotonic() - self._began_s,
        )
        return report, summary

    async def _create(self) -> Sale:
        sale = demo_sale(OPENS_IN_MS)
        for outcome in (await self._engine.create(sale), await self._engine.open(sale.id)):
            if not outcome.ok:
                raise DemoFailed(f"the sale could not be opened: {outcome.status.meaning}")
        return sale

    async def _sell(self, sale: Sale, address: str, intake: Child, load: Child) -> Books:
        host, _, port = address.removeprefix("http://").rpartition(":")
        books = self._folder / "books.json"
        orders = LoadOrders(
            host=host,
            port=int(port),
            sale=sale.id,
            skus=tuple(item.sku for item in sale.items),
            limits=tuple(item.limit_per_buyer for item in sale.items),
            limit_per_order=sale.limit_per_order,
            opens_ms=sale.opens_ms,
            buyers=self._buyers,
            books=str(books),
            proofs=self._proofs,
        )
        await load.send(msgspec.json.encode(orders).decode())
        listening = asyncio.create_task(self._listen(load))
        quiet_s, still_s, told = 0.0, 0.0, False
        units: object = None
        try:
            while not listening.done():
                await asyncio.wait({listening}, timeout=LOOK_S)
                if intake.ended:
                    raise DemoFailed(await intake.obituary())
                snapshot = await self._engine.snapshot(sale.id)
                if self._progress is not None:
                    self._screen.live(sale, snapshot, self._progress, self._buyers, self._rate)
                quiet_s = quiet_s + LOOK_S if self._is_quiet(snapshot) else 0.0
                still = snapshot.stock == units and self._all_came()
                still_s = still_s + LOOK_S if still else 0.0
                units = snapshot.stock
                # Units that neither sell nor come back are lost, and will not be found by waiting.
                lost = still_s >= (sale.hold_ms + sale.pay_ms) / 1000 + STILL_S
                if not told and (quiet_s >= QUIET_S or lost or self._is_broken(snapshot)):
                    told = True
                    await load.send("finish")
            await listening
        finally:
            listening.cancel()
        if await load.wait() or not books.is_file():
            raise DemoFailed(await load.obituary())
        return msgspec.json.decode(books.read_bytes(), type=Books)

    async def _listen(self, load: Child) -> None:
        decode = msgspec.json.Decoder(Progress).decode
        async for line in load.lines():
            progress = self._progress = decode(line)
            marks = self._marks
            marks.append((progress.at_s, progress.decided))
            while len(marks) > 2 and marks[1][0] <= progress.at_s - PEAK_WINDOW_S:
                marks.popleft()
            passed_s = progress.at_s - marks[0][0]
            if passed_s >= PEAK_WINDOW_S:
                self._rate = (progress.decided - marks[0][1]) / passed_s
                self._peak = max(self._peak, self._rate)

    def _all_came(self) -> bool:
        return self._progress is not None and self._progress.arrivals_done

    def _is_quiet(self, snapshot: Snapshot) -> bool:
        """Whether nothing is under way any more, and nobody who waits could still get a unit."""
        progress = self._progress
        return (
            progress is not None
            and progress.arrivals_done
            and not progress.busy
            and not any(stock.held for stock in snapshot.stock.values())
            and not any(
                stock.available and progress.waiting.get(sku)
                for sku, stock in snapshot.stock.items()
            )
        )

    def _is_broken(self, snapshot: Snapshot) -> bool:
        """Whether a promise is broken already, so that there is no point in going on."""
        return (self._progress is not None and self._progress.broken > 0) or any(
            min(stock.available, stock.held) < 0
            or stock.available + stock.held + stock.confirmed != stock.total
            for stock in snapshot.stock.values()
        )


async def _script_time(url: str) -> ScriptTime:
    pool = servers.connect_pool(url, connections=1, timeout_s=None)
    try:
        stats: dict[str, Any] = await servers.connect_client(pool).info("commandstats")
    finally:
        await pool.disconnect()
    evalsha = stats.get("cmdstat_evalsha", {"calls": 0, "usec": 0})
    return ScriptTime(int(evalsha["calls"]), int(evalsha["usec"]))
