"""The intake of a tree, as a process in which is counted what it does: by itself, bytecode
instructions and calls of Python; or by callgrind, instructions of the machine.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from benchmarks.compare_buyers import SECRET, TIMEOUT_S, Failed

__all__ = ["BYTECODES", "CALLS", "INSTRUCTIONS", "Intake"]

BYTECODES: Final = "bytecodes"
CALLS: Final = "calls"
INSTRUCTIONS: Final = "instructions"

END_S: Final = 30.0
_SERVER: Final = Path(__file__).with_name("compare_server.py")
# Python takes too long to start while its instructions are counted. The two functions are called by
# compare_server.py, when it is told to start and to stop.
_CALLGRIND: Final = (
    *("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"),
    *("--zero-before=getloadavg", "--dump-before=getpriority"),
)
# What it writes when it is asked for the counts of one part of a run.
_TOTALS: Final = b"\ntotals: "


class Intake:
    """Used as a context manager. ``url`` is its address, ``tickets`` are the buyers' places."""

    def __init__(
        self, tree: Path, redis_url: str, folder: Path, buyers: Sequence[str], *, callgrind: bool
    ) -> None:
        self._callgrind = callgrind
        self._folder = folder
        self._tree = tree.resolve()
        how = "callgrind" if callgrind else "python"
        command = [sys.executable, "-P", str(_SERVER), how, redis_url, SECRET, *buyers]
        if callgrind:
            command = [*_CALLGRIND, f"--callgrind-out-file={folder}/callgrind", *command]
        # No setting of the environment is to get in, and no set is to have another order.
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("SECKILL_", "PYTHON"))}
        environ |= {"PYTHONPATH": str(self._tree), "PYTHONHASHSEED": "0"}
        with self._complaints.open("wb") as complaints:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                bufsize=0,
                env=environ,
                cwd=folder,
            )
        self.pid = self._process.pid
        self.url = ""
        self.tickets: list[str] = []
        self._parts = 0
        self._counting = False

    def __enter__(self) -> Self:
        try:
            ready = self._heard()
            # What is installed may be another tree, and hook itself into imports.
            for file in ready["files"]:
                if not Path(file).resolve().is_relative_to(self._tree):
                    raise Failed(f"{file} was imported, and is not of the tree that is measured")
            self.url, self.tickets = ready["url"], ready["tickets"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def _complaints(self) -> Path:
        return self._folder / "stderr"

    def _end(self) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # -- talking --------------------------------------------------------------------------------

    def ask(self, line: str) -> dict[str, Any]:
        """Sends a line and returns the answer. Raises Failed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:
            raise Failed(self._why()) from None
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        stdout, heard, until_s = self._process.stdout.fileno(), b"", monotonic() + TIMEOUT_S
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0.0, until_s - monotonic()))
            if not ready:
                raise Failed(f"it said nothing for {TIMEOUT_S} s")
            data = os.read(stdout, 1 << 18)
            if not data:
                raise Failed(self._why())
            heard += data
        answer: dict[str, Any] = msgspec.json.decode(heard)
        return answer

    def _why(self) -> str:
        """The last that it complained of."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        lines = self._complaints.read_text("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "it ended without a word"

    # -- counting -------------------------------------------------------------------------------

    def ready(self) -> None:
        """It is warm: from here on its instructions are counted."""
        if self._callgrind and not self._counting:
            self._vgdb("instrumentation on")
            self._counting = True

    def count(self, work: Callable[[], None]) -> tuple[dict[str, int], dict[str, int]]:
        """What the intake does during ``work``, by unit; and its bytecodes by function."""
        self.ask("rest")
        self.ask("start")
        work()
        self.ask("rest")
        found = self.ask("stop")
        if self._callgrind:
            return {INSTRUCTIONS: self._dumped()}, {}
        return {BYTECODES: found["bytecodes"], CALLS: found["calls"]}, found["functions"]

    def _dumped(self) -> int:
        self._parts += 1
        file = self._folder / f"callgrind.{self._parts}"
        text = file.read_bytes()
        file.unlink()
        return int(text.rpartition(_TOTALS)[2].split()[0])

    def _vgdb(self, command: str) -> None:
        asked = subprocess.run(
            ["vgdb", f"--pid={self.pid}", *command.split()],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if asked.returncode:
            raise Failed(f"vgdb {command}: {(asked.stderr.strip() or 'failed').splitlines()[-1]}")
