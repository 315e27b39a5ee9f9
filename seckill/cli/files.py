"""Files that a command writes: whole, or not at all; and files that hold what it was not told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IROTH
from typing import BinaryIO, Final

from seckill.cli.output import warn
from seckill.errors import InvalidInput

__all__ = ["plain_text", "written"]

_FILE: Final = "file:"
TEXT_BYTES_MAX: Final = 64 * 1024


def plain_text(text: str, named: str) -> str:
    """What an option or a variable says: its text, or with ``file:PATH`` that of the file, as in
    the intake's settings. ``named`` is the option or variable. Raises InvalidInput."""
    if not text.startswith(_FILE):
        return text
    path = Path(text.removeprefix(_FILE))
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
            is_world_readable = os.fstat(file.fileno()).st_mode & S_IROTH
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "no such path"
        problem = f"{path} cannot be read: {reason}"
        raise InvalidInput(named, problem, "name a file that is there") from None
    if len(data) > TEXT_BYTES_MAX:
        problem = f"{path} is larger than {TEXT_BYTES_MAX} bytes"
        raise InvalidInput(named, problem, "name a file with the URL alone")
    try:
        plain = data.decode().strip()
    except UnicodeDecodeError:
        raise InvalidInput(named, f"{path} is not UTF-8", "name a file in UTF-8") from None
    if not plain:
        raise InvalidInput(named, f"{path} is empty", "write the URL into it")
    if is_world_readable:
        warn(f"{named}: everybody on this machine can read {path}; chmod o-r")
    return plain


@contextmanager
def written(path: Path, option: str) -> Iterator[BinaryIO]:
    """A file to write to, which stands under its name once all of it is there. Raises InvalidInput
    when it can't be written; ``option`` is where it was named."""
    remedy = "name a file in a folder of yours"
    if path.is_dir():
        raise InvalidInput(option, f"{path} is a folder", remedy)
    # What a link names stays linked; and a device or a pipe can't be replaced, only written to.
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    except OSError as error:
        if error.filename is None and not isinstance(error, BrokenPipeError):
            # A full disk names no file.
            error.filename = os.fspath(target)
        if error.filename not in (os.fspath(part), os.fspath(target)):
            raise
        problem = f"{path} can't be written: {error.strerror}"
        raise InvalidInput(option, problem, remedy) from None
    finally:
        part.unlink(missing_ok=True)
