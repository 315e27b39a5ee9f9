"""Everybody who plays a part in a chaos run, each a process of its own: loads, consumers, a keeper
of the ledger. Whoever is killed is followed by another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.faults.chaos_broken import BROKEN_ENV
from tests.faults.history import History

__all__ = ["GROUP", "PATIENCE_S", "Crew", "Worker", "wait_for"]

ROOT = Path(__file__).parents[2]
GROUP = "mall"
PATIENCE_S = 120.0


def wait_for(
    what: str,
    reached: Callable[[], object],
    *,
    patience_s: float = PATIENCE_S,
    pause_s: float = 0.03,
) -> None:
    """Waits for a cause, for as long as it may take on a slow machine. Raises TimeoutError."""
    until_s = time.monotonic() + patience_s
    while not reached():
        if time.monotonic() > until_s:
            raise TimeoutError(f"waited {patience_s:.0f} s in vain for {what}")
        time.sleep(pause_s)


class Worker:
    """One process. Its log grows in ``log``, what it complains of in a file beside that."""

    def __init__(self, role: str, log: Path, *arguments: object, broken: str) -> None:
        self.log = log
        self.killed = False
        self._told_to_end = False
        log.touch()
        environment = {**os.environ, BROKEN_ENV: broken}
        command = [sys.executable, "-m", "tests.faults.chaos_worker", role, *map(str, arguments)]
        with log.with_suffix(".err").open("wb") as complaints:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stderr=complaints
            )

    @property
    def ended(self) -> bool:
        """Whether it is not there any more."""
        return self._process.poll() is not None

    @property
    def at_work(self) -> bool:
        """Whether it has got through to the server. Raises RuntimeError if it has died."""
        if self.ended and not self.killed and not self._told_to_end:
            raise RuntimeError(f"{self.log.stem} has died: {self.complaint}")
        return self.killed or self.log.stat().st_size > 0

    @property
    def complaint(self) -> str:
        """The last line it has written on stderr."""
        lines = self.log.with_suffix(".err").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def kill(self) -> None:
        """SIGKILL. Can be repeated."""
        self.killed = True
        self._process.kill()
        self._process.communicate()

    def finish(self) -> str:
        """Lets it end by itself; what went wrong, if anything did."""
        if self.killed or self._told_to_end:
            return ""
        self._told_to_end = True
        try:
            self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.log.stem} does not end"
        if self._process.returncode != 0:
            return f"{self.log.stem} has died: {self.complaint}"
        return ""


class Crew:
    """All of them. ``url`` and ``durability`` are handed to each engine as they are."""

    def __init__(
        self, folder: Path, stack: ExitStack, *, sale: str, seed: int, broken: str, callers: int
    ) -> None:
        self.folder = folder
        self.sale = sale
        self.history = History()
        self.url = ""
        self.durability = ""
        self.loads: list[Worker] = []
        self.consumers: list[Worker] = []
        self.keepers: list[Worker] = []
        self._stack = stack
        self._seed = seed
        self._broken = broken
        self._callers = callers

    @property
    def ledger_url(self) -> str:
        """The database that the keeper writes."""
        return f"sqlite:///{self.folder}/ledger.db"

    def add_load(self) -> None:
        """One more load."""
        number = len(self.loads) + 1
        log = self.folder / f"load-{number}.jsonl"
        what = (self.url, self.sale, log, self._seed * 100 + number, self._callers)
        self._add(self.loads, "load", log, *what, self.durability, "--pace-ms", 20)

    def add_consumer(self) -> None:
        """One more consumer of one group."""
        name = f"consumer-{len(self.consumers) + 1}"
        log = self.folder / f"{name}.jsonl"
        what = (self.url, self.sale, log, GROUP, name, self.durability)
        self._add(self.consumers, "consume", log, *what)

    def add_keeper(self) -> None:
        """One more keeper of the ledger."""
        log = self.folder / f"keeper-{len(self.keepers) + 1}.log"
        self._add(self.keepers, "keep", log, self.url, self.ledger_url, self.durability)

    def replace(self, role: str) -> None:
        """Kills the one that has been there the longest, and lets another begin."""
        of: dict[str, tuple[list[Worker], Callable[[], None]]] = {
            "kill_load": (self.loads, self.add_load),
            "kill_consumer": (self.consumers, self.add_consumer),
            "kill_keeper": (self.keepers, self.add_keeper),
        }
        workers, add = of[role]
        living = [worker for worker in workers if not worker.killed]
        if living:
            living[0].kill()
            add()

    def _add(self, workers: list[Worker], role: str, log: Path, *arguments: Any) -> None:
        worker = Worker(role, log, *arguments, broken=self._broken)
        self._stack.callback(worker.kill)
        workers.append(worker)

    def read(self) -> History:
        """The calls up to now."""
        for load in self.loads:
            self.history.read(load.log)
        return self.history

    def all_at_work(self) -> bool:
        """Whether every load and consumer has got through at least once."""
        return all(worker.at_work for worker in (*self.loads, *self.consumers))

    def wait_for_orders(self, number: int) -> None:
        """Waits until so many more are accepted."""
        goal = self.read().accepted + number

        def reached() -> bool:
            for load in self.loads:
                _ = load.at_work
            return self.read().accepted >= goal

        wait_for(f"{number} orders", reached)

    @staticmethod
    def finish(workers: list[Worker]) -> list[str]:
        """Lets these end; what went wrong."""
        return [trouble for worker in workers if (trouble := worker.finish())]
