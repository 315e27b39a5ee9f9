"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from seckill.errors import InvalidInput

__all__ = ["written"]


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
