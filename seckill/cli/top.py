"""``seckill top``: what the sales do, as they do it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from seckill.cli.command import DataDir, RedisUrl, Target
from seckill.cli.output import new_console
from seckill.cli.reach import reach
from seckill.cli.top_picture import picture
from seckill.cli.top_reading import Frame, Watcher
from seckill.errors import SeckillError
from seckill.sale import check_sale_id

__all__ = ["top"]

EVERY_S: Final = 1.0
_QUIT: Final = b"qQ\x03\x04"


def top(
    sale: Annotated[
        str | None, typer.Argument(metavar="[SALE]", help="One sale; all of them without it.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame, over one second, and end.")
    ] = False,
    redis: RedisUrl = None,
    embedded: DataDir = None,
) -> None:
    """Watch the sales live: stock, orders a second, who reads the events. q ends it."""
    if sale is not None:
        check_sale_id(sale, "sale")
    console = new_console()
    live = console.is_terminal and not once
    target = Target(redis, embedded, allow_unverified=True)
    asyncio.run(_top(target, sale, console, live=live))


async def _top(target: Target, sale: str | None, console: Console, *, live: bool) -> None:
    async with reach(target) as url:
        watcher = Watcher(url, sale)
        try:
            # The first look has no rates; and what is wrong with it (no server, no such sale) is
            # an error of the command, whereas later it is news.
            frame = await watcher.look()
            if live:
                await _watch(watcher, frame, console)
            else:
                await asyncio.sleep(EVERY_S)
                console.print(picture(await watcher.look(), console.width, None))
        finally:
            await watcher.aclose()


async def _watch(watcher: Watcher, frame: Frame, console: Console) -> None:
    """Paints until somebody presses q, or Ctrl-C, or the process is told to end."""
    trouble, since_s = "", monotonic()

    def paint() -> None:
        width, height = console.size
        screen.update(picture(frame, width, height, trouble), refresh=True)

    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as screen:
        async with _asked_to_end(keys, on_resize=paint) as end:
            while not end.is_set():
                paint()
                try:
                    async with asyncio.timeout(EVERY_S):
                        await end.wait()
                except TimeoutError:
                    pass
                if end.is_set():
                    break
                look = asyncio.ensure_future(watcher.look())
                leave = asyncio.ensure_future(end.wait())
                # q must not have to wait for a server that hangs.
                await asyncio.wait({look, leave}, return_when=asyncio.FIRST_COMPLETED)
                leave.cancel()
                if not look.done():
                    look.cancel()
                    await asyncio.gather(look, return_exceptions=True)
                    break
                try:
                    frame, trouble, since_s = look.result(), "", monotonic()
                except SeckillError as error:
                    trouble = f"no news for {monotonic() - since_s:,.0f} s: {error}"


@contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard's descriptor, with keys coming one by one and unseen; None without a keyboard.

    Whatever happens, the terminal is as it was afterwards.
    """
    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@asynccontextmanager
async def _asked_to_end(
    keyboard: int | None, *, on_resize: Callable[[], None]
) -> AsyncIterator[asyncio.Event]:
    """An event that is set by q, Ctrl-C, SIGTERM or a terminal that has gone."""
    end, loop = asyncio.Event(), asyncio.get_running_loop()
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_key(keyboard: int) -> None:
        pressed = os.read(keyboard, 64)
        if not pressed or any(key in _QUIT for key in pressed):
            end.set()

    for number in endings:
        loop.add_signal_handler(number, end.set)
    loop.add_signal_handler(signal.SIGWINCH, on_resize)
    # Stopped in the middle (Ctrl-Z), it would leave its picture and no cursor to the shell.
    suspend = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    if keyboard is not None:
        loop.add_reader(keyboard, on_key, keyboard)
    try:
        yield end
    finally:
        if keyboard is not None:
            loop.remove_reader(keyboard)
        for number in (*endings, signal.SIGWINCH):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGTSTP, suspend)
