"""What a power cut would leave of a server's AOF.

A SIGKILL alone proves nothing about durability: whatever the server has written is in the page
cache and survives it. So a shim in the server notes how much of each file was synced (see
fsync_shim.c), and after the kill the rest of every file of the AOF is cut off. Which files exist,
and under which names, is taken as durable; the server syncs its directory when it changes them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["Disk", "can_watch_syncs"]

SHIM_SOURCE = Path(__file__).with_name("fsync_shim.c")
ENTRY = struct.Struct("=Qq")
ENTRIES = 1024


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def can_watch_syncs() -> bool:
    """Whether a Disk can be made here: it needs Linux and a C compiler."""
    return sys.platform.startswith("linux") and _compiler() is not None


@functools.cache
def _shim() -> Path:
    """The shim, compiled once a process."""
    folder = Path(tempfile.mkdtemp(prefix="seckill-shim-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shim = folder / "fsync_shim.so"
    compiler = _compiler()
    assert compiler is not None, "ask can_watch_syncs first"
    command = [compiler, "-O2", "-fPIC", "-shared", "-o", str(shim), str(SHIM_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return shim


class Disk:
    """The files of one server's AOF, in ``folder``/appendonlydir, and how much of each is safe.

    The server must be started with ``environment``. The table of what was synced is kept in
    ``beside``, where the server writes nothing.
    """

    def __init__(self, folder: Path, *, beside: Path) -> None:
        self._folder = folder
        self._table = beside / "fsync_table"
        self.environment = {
            "LD_PRELOAD": str(_shim()),
            "SECKILL_FSYNC_TABLE": str(self._table),
        }
        # Inode to length of what was there before anybody wrote.
        self._found: dict[int, int] = {}
        self._table.write_bytes(bytes(ENTRY.size * ENTRIES))

    def reset(self) -> None:
        """To be called before each start: nothing has been synced by a server that is not there."""
        # Not truncated: a process that has it mapped would die of its next look at it.
        with self._table.open("r+b") as table:
            table.write(bytes(ENTRY.size * ENTRIES))
        self._found = {}
        self.note_found()

    def note_found(self) -> None:
        """Takes what the files hold now as durable, as far as it was not known to be less.

        To be called again once the server has loaded them: it has cut off the half command at the
        end, if any. What clients have written since is not taken for durable.
        """
        for file in self._files():
            # A server that runs may just have done away with it.
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                known = self._found.get(status.st_ino, status.st_size)
                self._found[status.st_ino] = min(known, status.st_size)

    @property
    def seen_syncs(self) -> bool:
        """Whether the shim has told of any sync: it can't in a server that is linked statically."""
        return bool(self._safe_lengths())

    def cut(self) -> int:
        """Cuts off what was not synced; nobody may be writing. Returns how many bytes that was."""
        safe = self._safe_lengths()
        lost = 0
        for file in self._files():
            status = file.stat()
            length = safe.get(status.st_ino, self._found.get(status.st_ino, 0))
            if length < status.st_size:
                os.truncate(file, length)
                lost += status.st_size - length
        return lost

    def _files(self) -> list[Path]:
        folder = self._folder / "appendonlydir"
        return list(folder.iterdir()) if folder.is_dir() else []

    def _safe_lengths(self) -> dict[int, int]:
        entries = ENTRY.iter_unpack(self._table.read_bytes())
        return {inode: length for inode, length in entries if inode}
