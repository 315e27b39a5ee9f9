"""Checks of the process that will take the orders, made on its host and as its user."""

from __future__ import annotations

import resource
from typing import Final

from seckill.doctor.finding import Finding, green, red, yellow

__all__ = ["check_open_files"]

OPEN_FILES_SPARE: Final = 256
"""Connections to Redis, the log, listening sockets, the loop's own."""


def check_open_files(max_in_flight: int) -> Finding:
    """Whether a worker started from here may open a file for every connection it needs.

    Each request under way has a connection, and about as many are kept open between two requests.
    """
    needed = 2 * max_in_flight + OPEN_FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    seen = (
        f"{'any number' if soft == unlimited else f'{soft:,}'} a process, {needed:,} needed for "
        f"{max_in_flight:,} requests at once"
    )
    if soft == unlimited or soft >= needed:
        return green("open-files", seen)
    remedy = f"run `ulimit -n {needed}` before, or set LimitNOFILE={needed} in its unit"
    # What is left when half of the requests keep no connection: tight, but it serves.
    if soft >= max_in_flight + OPEN_FILES_SPARE:
        return yellow("open-files", seen, remedy)
    if hard != unlimited and hard < needed:
        remedy += f" (root must raise the hard limit, {hard:,})"
    return red("open-files", seen, remedy)
