"""One server whose clock and disk can be tampered with, whose data can be put back to an older
state, and a link to it that can freeze what is under way."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import redis

from tests.faults.disk import can_watch_syncs
from tests.faults.link import Link, _State
from tests.faults.topology_node import PATIENCE_S, POLL_S, Node

__all__ = ["ChaosNode", "StallingLink", "mute"]

SHIM_SOURCE = Path(__file__).with_name("chaos_shim.c")
TABLE = struct.Struct("=qq")
NO_END = -1
# How many of the connections a stall is about.
STALLED = 0.5


@functools.cache
def _shim() -> Path:
    """The shim, compiled once a process."""
    folder = Path(tempfile.mkdtemp(prefix="seckill-chaos-shim-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shim = folder / "chaos_shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "ask can_watch_syncs first"
    command = [compiler, "-O2", "-fPIC", "-shared", "-o", str(shim), str(SHIM_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return shim


class ChaosNode(Node):
    """A Node with an AOF, a clock and a disk that obey us. Needs Linux and a C compiler."""

    def __init__(self, folder: Path, config: Mapping[str, str | int]) -> None:
        super().__init__(folder, config)
        assert can_watch_syncs(), "chaos needs Linux and a C compiler"
        assert self._disk is not None, "chaos needs a server with an AOF"
        self._table = folder / "chaos_table"
        self._table.write_bytes(TABLE.pack(0, NO_END))
        # The shim of the disk comes first: it is told of a write that ours has cut short.
        environment = self._disk.environment
        environment["LD_PRELOAD"] = f"{environment['LD_PRELOAD']}:{_shim()}"
        environment["SECKILL_CHAOS_TABLE"] = str(self._table)
        self._kept_data = folder / "older"
        self._ahead_ms = 0

    def step_clock(self, by_ms: int) -> None:
        """The server's clock makes a step."""
        self._ahead_ms += by_ms
        self._put(0, self._ahead_ms * 1000)

    def leave_room(self, room_bytes: int = NO_END) -> None:
        """How many bytes still fit on the disk; without a number no end of them."""
        self._put(1, room_bytes)

    def crash(self, *, cut: bool) -> int:
        """SIGKILL; with ``cut`` what was not synced is gone. Returns how many bytes that was."""
        if cut:
            return self.kill()
        os.kill(self.pid, signal.SIGKILL)
        # Waits for its end, and takes nothing from its files.
        self.stop()
        return 0

    def mend(self) -> bool:
        """Starts the server if it has ended by itself; whether it had."""
        until_s = time.monotonic() + PATIENCE_S
        while self.running and time.monotonic() < until_s:
            # A server that answers now is not about to end of what was before.
            with contextlib.suppress(redis.RedisError, OSError):
                if self.ask("PING", timeout_s=1.0):
                    return False
            time.sleep(POLL_S)
        self.stop()
        self.start()
        return True

    def keep_data(self) -> None:
        """Keeps what is in the files now, as a snapshot of the disk would have it."""
        paused = self.paused
        self.pause()
        shutil.rmtree(self._kept_data, ignore_errors=True)
        shutil.copytree(self._aof, self._kept_data)
        if not paused:
            self.unpause()

    def restore_data(self) -> None:
        """Kills the server and starts it with what was kept."""
        self.kill()
        shutil.rmtree(self._aof)
        shutil.copytree(self._kept_data, self._aof)
        self.start()

    @property
    def _aof(self) -> Path:
        return self._data / "appendonlydir"

    def _put(self, place: int, value: int) -> None:
        # In place: a file that is written anew would be another one than the server has mapped.
        with self._table.open("r+b", buffering=0) as table:
            table.seek(place * TABLE.size // 2)
            table.write(struct.pack("=q", value))


class StallingLink(Link):
    """A link of which some connections can be frozen while all others pass: as when one of several
    ways through a network breaks, or packets wait in some queue."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        super().__init__(target_port, seed=seed)
        self._frozen: list[_State] = []

    def stall(self) -> None:
        """What comes over about half of the connections that are there now waits until ``heal``,
        and then goes on, also when its sender has long hung up."""
        self._switch(self._stall())

    @property
    def stalled(self) -> int:
        """How many connections are frozen."""
        return sum(connection._state is not self._state for connection in self._connections)

    async def _stall(self) -> None:
        state = _State(0)
        state.set(parted=True)
        self._frozen.append(state)
        for connection in self._connections:
            if self._state.random.random() < STALLED:
                connection._state = state

    async def _heal(self) -> None:
        await super()._heal()
        for connection in self._connections:
            connection._state = self._state
        for state in self._frozen:
            state.set(parted=False)
        self._frozen.clear()


def mute(link: Link, ports: Collection[int]) -> int:
    """What passes between the server and those whom it sees at these ports of theirs is held back,
    and lost with the link's next ``cut``; all others are served. Returns how many those are."""
    return link._switch(_mute(link, ports))


async def _mute(link: Link, ports: Collection[int]) -> int:
    state = _State(0)
    state.set(parted=True)
    count = 0
    for connection in link._connections:
        # The second one leads to the server, once that has let it in.
        for writer in connection._writers[1:]:
            if writer.get_extra_info("sockname")[1] in ports:
                connection._state = state
                count += 1
    return count
