"""The demo's processes: a server that keeps every order on disk, an intake and a load, each in a
process of its own, and all of them gone when the demo ends, in whatever way.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Final

from seckill.errors import SeckillError

__all__ = ["Child", "DemoFailed", "child"]

START_S: Final = 20.0
STOP_S: Final = 10.0
LINE_BYTES_MAX: Final = 1 << 20


class DemoFailed(SeckillError):
    """The demo could not be carried through, so it has proved nothing."""


class Child:
    """A process of the demo, spoken to in lines over its stdin and stdout."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._stdin: StreamWriter = process.stdin  # type: ignore[assignment] # it is a pipe
        self._stdout: StreamReader = process.stdout  # type: ignore[assignment] # so is this
        self._log = log

    async def read_line(self) -> str:
        """The next line the child prints. Raises DemoFailed when it has ended instead."""
        line = await self._stdout.readline()
        if not line:
            raise DemoFailed(await self.obituary())
        return line.decode().strip()

    async def lines(self) -> AsyncIterator[str]:
        """Every line until the child closes its stdout."""
        while line := await self._stdout.readline():
            yield line.decode().strip()

    async def send(self, line: str) -> None:
        """Writes a line to the child's stdin. Raises DemoFailed when it has ended."""
        self._stdin.write(line.encode() + b"\n")
        try:
            await self._stdin.drain()
        except ConnectionError:
            raise DemoFailed(await self.obituary()) from None

    async def wait(self) -> int:
        """The child's exit code, once it has ended."""
        return await self._process.wait()

    @property
    def ended(self) -> bool:
        """Whether the child is gone."""
        return self._process.returncode is not None

    async def obituary(self) -> str:
        """Why the child is gone: its exit code and the end of what it wrote to stderr."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_S)
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"the {self.name} process ended with code {self._process.returncode}{last}"


@contextlib.asynccontextmanager
async def child(name: str, module: str, *args: str, folder: Path) -> AsyncIterator[Child]:
    """Runs ``python -m module`` until the block ends; its stderr goes to a file in ``folder``."""
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Without -P a file in the current directory could pass for a module of ours.
            "-P",
            "-m",
            module,
            *args,
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            limit=LINE_BYTES_MAX,
            # Ctrl-C is for the demo, which then ends its children in the right order.
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        if process.returncode is None:
            process.send_signal(SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.send_signal(SIGKILL)
                await process.wait()
