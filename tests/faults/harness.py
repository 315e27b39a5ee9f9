"""Crashes that lose what a power cut loses.

    FragileServer   an embedded server whose files shrink to what was synced when it is killed
    LoadProcess     the callers, in a process of their own
    crash_cycle     kill under load, cut, restart, look, let the callers in again

A SIGKILL alone proves nothing about durability, see disk.py.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self
from unittest import mock

import msgspec
import pytest
import redis

from seckill.embedded import SERVER_ENV, EmbeddedServer, find_server
from seckill.redis import Durability
from tests.faults.checker import History, Report, check, observe
from tests.faults.disk import Disk, can_watch_syncs

__all__ = ["FragileServer", "LoadProcess", "crash_cycle"]

ROOT = Path(__file__).parents[2]
# How long the load may take to get its first order through after a restart.
PATIENCE_S = 60.0


class FragileServer:
    """A server that forgets, when it crashes, whatever it had not synced.

    ``url`` stays the same over restarts; it leads nowhere from a crash until ``admit``, so that the
    state can be looked at, under ``inside_url``, before any caller changes it.
    """

    def __init__(self, folder: Path, *, appendfsync: str) -> None:
        if not can_watch_syncs():
            pytest.skip("the crash tests need Linux and a C compiler")
        data_dir = folder / "data"
        self._disk = Disk(data_dir, beside=folder)
        exports = " ".join(f"{name}='{value}'" for name, value in self._disk.environment.items())
        wrapper = folder / "server"
        wrapper.write_text(f"#!/bin/sh\nexport {exports}\nexec '{find_server().path}' \"$@\"\n")
        wrapper.chmod(0o700)
        with mock.patch.dict(os.environ, {SERVER_ENV: str(wrapper)}):
            self._server = EmbeddedServer(
                data_dir,
                appendfsync=appendfsync,
                # The AOF is rewritten when a test says so.
                config={"auto-aof-rewrite-percentage": "0"},
            )
        # A unix socket's path is limited to about 100 bytes, so pytest's tmp_path will not do.
        self._entrance = Path(tempfile.mkdtemp(prefix="seckill-crash-", dir="/tmp"))
        self.url = f"unix://{self._entrance}/s.sock"

    def __enter__(self) -> Self:
        self.start()
        assert self._disk.seen_syncs, "no sync was seen: is the server linked statically?"
        self.admit()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        shutil.rmtree(self._entrance)

    @property
    def inside_url(self) -> str:
        """The URL that leads to the server at once."""
        return self._server.url

    def start(self) -> None:
        """Starts the server and loads what the disk holds."""
        self._disk.reset()
        self._server.start()
        # Nobody has written yet: they are let in by ``admit``.
        self._disk.note_found()

    def admit(self) -> None:
        """Lets the callers in."""
        fresh = self._entrance / "fresh"
        fresh.symlink_to(self._server.url.removeprefix("unix://"))
        fresh.replace(self._entrance / "s.sock")

    def crash(self) -> int:
        """SIGKILL, then everything that was not synced goes. Returns how many bytes that was."""
        os.kill(self._server.pid, signal.SIGKILL)
        self._server.kill()
        return self._disk.cut()

    def rewrite(self) -> None:
        """Begins to write the AOF anew, so that the next crash may find it half done."""
        with redis.Redis.from_url(self.inside_url) as client:
            client.bgrewriteaof()


class LoadProcess:
    """tests/faults/load.py, and its history as far as it has been read."""

    def __init__(
        self, url: str, sale: str, folder: Path, *, seed: int, durability: Durability
    ) -> None:
        self._log = folder / "history.jsonl"
        self._log.touch()
        self.history = History()
        arguments = [url, sale, str(self._log), str(seed), "48", durability]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.load", *arguments], cwd=ROOT, stdin=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self) -> History:
        """The history up to now."""
        self.history.read(self._log)
        return self.history

    def wait_for_orders(self, number: int) -> None:
        """Waits until so many more orders were accepted than there are now."""
        goal = self.read().accepted + number
        deadline = time.monotonic() + PATIENCE_S
        while self.read().accepted < goal:
            assert self._process.poll() is None, "the load has died; its traceback is on stderr"
            assert time.monotonic() < deadline, "the load makes no progress"
            time.sleep(0.01)

    def finish(self) -> History:
        """Lets every call end and returns the whole history."""
        self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, "the load has died; its traceback is on stderr"
        return self.read()


class Cycle(msgspec.Struct, frozen=True):
    """What one crash did."""

    lost_bytes: int
    orders: int
    report: Report


def crash_cycle(
    server: FragileServer, load: LoadProcess, sale: str, rng: random.Random, *, rewrite: bool
) -> Cycle:
    """One crash at some moment under load, and what is there after the restart."""
    load.wait_for_orders(50)
    time.sleep(rng.uniform(0.1, 0.5))
    if rewrite:
        server.rewrite()
        time.sleep(rng.uniform(0.0, 0.03))
    lost_bytes = server.crash()
    server.start()
    history = load.read()
    seen = observe(server.inside_url, sale)
    report = check(history, seen)
    server.admit()
    return Cycle(lost_bytes, len(seen.orders), report)
