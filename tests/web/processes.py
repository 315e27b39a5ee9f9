"""Intakes in processes of their own: one that calls ``run``, and ``seckill serve`` as a whole."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.children import child
from tests.web.intake import Client

__all__ = [
    "ROOT",
    "Process",
    "Serve",
    "connections_of",
    "is_alive",
    "process_on",
    "serve",
    "until",
    "until_read",
    "until_refused",
    "workers_of",
]

ROOT = Path(__file__).parents[2]


class Process(Client):
    """An intake in a process of its own."""

    def __init__(
        self, session: aiohttp.ClientSession, base: str, child: asyncio.subprocess.Process
    ) -> None:
        super().__init__(session, base)
        self.child = child

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    async def ended(self, seconds: float) -> int:
        """The exit code; it fails the test when there is none in time, or a word on stderr."""
        async with asyncio.timeout(seconds):
            _, stderr = await self.child.communicate()
        assert stderr == b"", stderr.decode()
        assert self.child.returncode is not None
        return self.child.returncode


_PROGRAM = """
import sys
from seckill import Engine
from seckill.server import run
from seckill.server.settings import Server, Settings
from tests.web.intake import trusting
engine = Engine(sys.argv[1], durability="memory", timeout_ms=60_000)
settings = Settings(server=Server(drain_s=float(sys.argv[2]), read_timeout_s=300))
run(
    engine, port=0, path=sys.argv[3] or None, settings=settings, identify=trusting,
    on_ready=lambda address: print(address, flush=True),
)
"""


@asynccontextmanager
async def process_on(
    url: str, *, drain_s: float = 60.0, path: Path | None = None
) -> AsyncIterator[Process]:
    """A process that calls ``run`` and takes everybody for the mall's backend. It waits long for
    Redis and for clients, so that no test depends on how quick the machine is."""
    arguments = ("-c", _PROGRAM, url, str(drain_s), str(path or ""))
    async with _child(*arguments) as process:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip()
        assert address, (await process.communicate())[1].decode()
        if path is None:
            connector: aiohttp.BaseConnector = aiohttp.TCPConnector(limit=0)
        else:
            assert address == f"unix:{path}"
            connector, address = aiohttp.UnixConnector(str(path)), "http://intake"
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Process(session, address, process)


class Serve(Process):
    """A ``seckill serve``, its parent process, and what it said when it took requests."""

    said = ""
    url = ""


@asynccontextmanager
async def serve(*options: str, key: str | None = None) -> AsyncIterator[Serve]:
    """``seckill serve --port 0`` with these options; the client sends ``key``, or the one that
    ``--dev`` printed."""
    async with _child("-P", "-m", "seckill.cli", "serve", "--port", "0", *options) as parent:
        assert parent.stdout is not None
        said = ""
        while "Ctrl-C ends it" not in said:
            line = (await parent.stdout.readline()).decode()
            assert line, said + (await parent.communicate())[1].decode()
            said += line
        key = key or _first(r"SECKILL_KEY=(\S+)", said)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": f"Bearer {key}"}
        ) as session:
            started = Serve(session, _first(r"takes orders on (\S+)", said), parent)
            started.said, started.url = said, _first(r"server (\S+)", said)
            yield started


def workers_of(parent: int) -> set[int]:
    """The pids of the workers below a parent that is itself a Python process."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue  # It has ended meanwhile.
        if int(fields[1]) == parent and fields[0] != "Z" and b"seckill.cli" in command:
            found.add(int(status.parent.name))
    return found


def _established(port: int) -> list[list[str]]:
    """The kernel's lines about the connections to this port, as their listener has them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        fields
        for fields in lines
        if fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port
    ]


async def until_read(base: str) -> None:
    """Until whoever listens there has read all that was sent to it. What this process has begun to
    send is on its way first: it takes a few turns of the event loop."""
    for _ in range(20):
        await asyncio.sleep(0.005)
    port = int(base.rpartition(":")[2])
    # tx_queue:rx_queue; the second is what has come and was not read.
    await until(lambda: not any(int(f[4].partition(":")[2], 16) for f in _established(port)))


def connections_of(pid: int, port: int) -> int:
    """How many connections to this port a process has taken."""
    established = {f"socket:[{fields[9]}]" for fields in _established(port)}
    links = Path(f"/proc/{pid}/fd").iterdir()
    return sum(str(link.readlink()) in established for link in links)


async def until_refused(base: str) -> None:
    """Until nobody listens there any more: the signal that was sent has come."""
    port = int(base.rpartition(":")[2])
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue
            writer.close()
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be reaped is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits for it, and fails the test when it does not come."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _child(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    clean: dict[str, Any] = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SECKILL_") or name == "SECKILL_REDIS_SERVER"
    }
    # gunicorn leaves a socket to the garbage collector.
    warnings = "error,ignore::ResourceWarning" if "serve" in arguments else "error"
    async with child(
        *(sys.executable, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=clean | {"PYTHONWARNINGS": warnings, "PYTHONPATH": str(ROOT)},
    ) as process:
        yield process


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]
