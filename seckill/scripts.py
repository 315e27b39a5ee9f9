"""Finds the Lua scripts, resolves their includes and knows their hashes.

A line ``--@include "lib/name"`` is replaced by that fragment, once: a fragment that is already in
is not put in again, a missing one and a cycle are errors.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["FORMAT", "NAMES", "Script", "expand", "script"]

FORMAT: Final = 1
"""The script format these scripts write and understand; equals FORMAT in lua/lib/sale.lua."""

NAMES: Final = (
    "add_stock",
    "admit",
    "begin_payment",
    "close",
    "confirm",
    "create",
    "draw",
    "expire",
    "fence",
    "find",
    "inspect",
    "join",
    "lease",
    "leave",
    "list",
    "name_value",
    "note",
    "open",
    "pause",
    "queue",
    "rebuild",
    "rebuild_admit",
    "rebuild_begin",
    "rebuild_due",
    "rebuild_found",
    "rebuild_load",
    "refund",
    "release",
    "requeue",
    "reserve",
    "resume",
    "roll_call",
    "rotate",
    "take",
    "tick",
    "trim",
)

_INCLUDE = re.compile(r'^--@include "([a-z_/]+)"$', re.MULTILINE)


class Script(msgspec.Struct, frozen=True):
    """A script ready for EVALSHA."""

    name: str
    source: str
    sha: str


def expand(name: str, root: Traversable) -> str:
    """The text of ``root/name.lua`` with its includes in place.

    Raises FileNotFoundError for a missing fragment and ValueError for a cycle.
    """
    done: set[str] = set()

    def read(part: str, above: tuple[str, ...]) -> str:
        if part in above:
            raise ValueError("include cycle: " + " -> ".join((*above, part)))
        if part in done:
            return ""
        file = root.joinpath(f"{part}.lua")
        if not file.is_file():
            raise FileNotFoundError(f"{part}.lua, included by {above[-1] if above else 'nobody'}")
        text = _INCLUDE.sub(
            lambda match: read(match[1], (*above, part)), file.read_text(encoding="utf-8")
        )
        done.add(part)
        return text

    return read(name, ())


@cache
def script(name: str) -> Script:
    """One of the shipped scripts, by the name of its verb."""
    # Imported here, because it brings in tempfile and the like with every import of the engine.
    from importlib import resources

    source = expand(name, resources.files("seckill.lua"))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
