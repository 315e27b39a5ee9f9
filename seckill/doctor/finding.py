"""What a check answers, and what all of them together say."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["CHECKS", "Finding", "Level", "Report", "green", "red", "shown_bytes", "yellow"]

# In the order in which a report lists them, by what they look at.
CHECKS: Final[dict[str, tuple[str, ...]]] = {
    "server": (
        "server",
        "role",
        "scripts",
        "replicas",
        "persistence",
        "disk-writes",
        "disk-space",
        "eviction",
        "memory",
        "clock",
        "connections",
        "latency",
        "fsync",
        "slow-log",
        "kernel",
    ),
    "sale": (
        "sale",
        "window",
        "admission",
        "keys",
        "stock",
        "sale-clock",
        "home",
        "groups",
        "dead-letters",
    ),
    "intake": (
        "open-files",
        "settings",
        "secrets",
        "user-keys",
        "file-modes",
        "api-keys",
        "webhook",
        "gate",
    ),
}


class Level(StrEnum):
    """green: as it should be. yellow: look at it, or it could not be seen. red: not with this."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


class Finding(msgspec.Struct, frozen=True):
    """What one check saw. ``remedy`` says what to do, and is empty where all is well. ``server`` is
    which one of a cluster it is about, host and port; empty where there is only one."""

    check: str
    level: Level
    seen: str
    remedy: str = ""
    server: str = ""


class Report(msgspec.Struct, frozen=True):
    """The findings, in the order of ``CHECKS``. A check that could not be made because of another
    finding, or that does not apply, is missing."""

    sale: str
    server: str
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The worst of all findings."""
        levels = {finding.level for finding in self.findings}
        return next((level for level in (Level.RED, Level.YELLOW) if level in levels), Level.GREEN)

    @classmethod
    def of(cls, sale: str, server: str, findings: list[Finding]) -> Report:
        """A report of these findings, put in order; servers of a cluster stay in theirs."""
        order = [check for checks in CHECKS.values() for check in checks]
        servers = list(dict.fromkeys(finding.server for finding in findings))

        def place(one: Finding) -> tuple[bool, int, int]:
            outside = one.check not in CHECKS["server"]
            return outside, servers.index(one.server), order.index(one.check)

        return cls(sale, server, tuple(sorted(findings, key=place)))


def green(check: str, seen: str) -> Finding:
    """All is well."""
    return Finding(check, Level.GREEN, seen)


def yellow(check: str, seen: str, remedy: str) -> Finding:
    """A person should look."""
    return Finding(check, Level.YELLOW, seen, remedy)


def red(check: str, seen: str, remedy: str) -> Finding:
    """Do not start the sale like this."""
    return Finding(check, Level.RED, seen, remedy)


def shown_bytes(size: float) -> str:
    """``3.2 MB``; a megabyte is 1,048,576 bytes, as in Redis."""
    units = ["GB", "MB", "kB", "bytes"]
    while abs(size) >= 1_024 and len(units) > 1:
        units.pop()
        size /= 1_024
    return f"{size:,.{0 if size >= 100 or units[-1] == 'bytes' else 1}f} {units[-1]}"
