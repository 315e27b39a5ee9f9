"""A sale's whole history in one file: gzip, a JSON document a line.

{"seckill_archive": 1, "sale": …, "made": …, "origin_ms": …, "definition": {…}, …}
[seq, at_ms, "kind", "subject", "body"]        as a row of seckill_events
…
{"events": 1234}                               the last line; without it the file is cut off
"""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from seckill.errors import InvalidInput
from seckill.ledger.ledger import Ledger
from seckill.ledger.rows import Known, Raw, event_row, raw_event
from seckill.sale import Sale

__all__ = ["Archive", "read_archive", "write_archive"]

VERSION: Final = 1
_COLUMNS: Final = ("seq", "at_ms", "kind", "subject", "body")
_encode = msgspec.json.encode


class Archive(msgspec.Struct, frozen=True):
    """What an archive begins with, and its events one after the other, which must be read while the
    file is open. The iterator raises InvalidInput for a file that is damaged or cut off."""

    known: Known
    state: str
    refusals: dict[str, int]
    events: Iterator[Raw]


async def write_archive(ledger: Ledger, sale: str, path: Path, *, through_seq: int) -> int:
    """Writes the events up to this one, from the ledger; how many. The file is on disk, whole and
    under its name, when this returns. Raises UnknownSale, OSError, LedgerUnavailable."""
    row = await ledger.sale(sale)
    head = {
        "seckill_archive": VERSION,
        **{name: row[name] for name in ("sale", "made", "origin_ms", "state")},
        "definition": msgspec.Raw(row["definition"].encode()),
        "refusals": msgspec.Raw(row["refusals"].encode()),
    }
    part_path, count = path.with_name(path.name + ".part"), 0
    try:
        with part_path.open("wb") as file:
            with gzip.open(file, "wb", compresslevel=6) as lines:
                lines.write(_encode(head) + b"\n")
                async for part in ledger.events(sale, through_seq=through_seq):
                    # In another thread: packing some thousand events takes milliseconds.
                    await asyncio.to_thread(_write, lines, sale, part)
                    count += len(part)
                lines.write(_encode({"events": count}) + b"\n")
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        part_path.replace(path)
    finally:
        part_path.unlink(missing_ok=True)
    return count


def _write(lines: gzip.GzipFile, sale: str, part: list[Raw]) -> None:
    rows = (event_row(sale, raw) for raw in part)
    lines.write(b"".join(_encode([row[name] for name in _COLUMNS]) + b"\n" for row in rows))


@contextmanager
def read_archive(path: Path) -> Iterator[Archive]:
    """Opens an archive. Raises InvalidInput for a file that is none."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(gzip.open(path, "rb"))
        except OSError as error:
            problem = f"{path} can't be read: {error.strerror}"
            raise InvalidInput("archive", problem, "name an archive") from None
        lines = _lines(file, path)
        try:
            head = msgspec.json.decode(next(lines))
            if head["seckill_archive"] != VERSION:
                raise _damaged(path, f"has format {head['seckill_archive']!r}")
            sale = Sale.from_definition(_encode(head["definition"]))
            known = Known(sale, head["origin_ms"], head["made"])
            archive = Archive(known, head["state"], head["refusals"], _events(lines, path))
        except (LookupError, TypeError, ValueError, StopIteration) as error:
            if isinstance(error, InvalidInput):
                raise
            raise _damaged(path, "does not begin as one does") from None
        yield archive


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, OSError, zlib.error):
        raise _damaged(path, "is damaged or cut off") from None


def _events(lines: Iterator[bytes], path: Path) -> Iterator[Raw]:
    count = 0
    for line in lines:
        try:
            row = msgspec.json.decode(line)
            if isinstance(row, list):
                count += 1
                yield raw_event(*row)
                continue
            # Asking for one more line checks the sum at the end of the file.
            if row == {"events": count} and next(lines, None) is None:
                return
        except (LookupError, TypeError, ValueError):
            raise _damaged(path, f"can't be read after event {count}") from None
        break
    raise _damaged(path, f"is cut off or damaged after event {count}")


def _damaged(path: Path, problem: str) -> InvalidInput:
    return InvalidInput("archive", f"{path} {problem}", "take a whole archive of `sale remove`")
