"""Checks of the server a sale lives on, each from what ``readings`` has read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from seckill.doctor.finding import Finding, green, red, shown_bytes, yellow
from seckill.doctor.readings import Reading
from seckill.durability import replicas_of
from seckill.redis import AT_LEAST, IN_CLUSTER, VERSION_MIN, wanted

__all__ = [
    "AOF_BYTES_PER_ORDER",
    "BYTES_PER_ORDER",
    "BYTES_PER_TICKET",
    "ORDERS_PER_UNIT",
    "check_server",
]

BYTES_PER_ORDER: Final = 1_024
"""Memory to plan for an order. Measured with 100 bytes of attrs: 390 held, 673 paid."""

BYTES_PER_TICKET: Final = 110
"""Memory to plan for a buyer who waits in a queue, with an id of some 20 characters."""

AOF_BYTES_PER_ORDER: Final = 2_048
"""File to plan for an order. Measured from reserve to confirm: 1,546."""

ORDERS_PER_UNIT: Final = 2
"""Orders to plan for each unit: every one may once be held, lapse and be sold again."""

# From this share of what is free, the plan fits but leaves little.
TIGHT: Final = 0.75

SKEW_YELLOW_MS: Final = 100
SKEW_RED_MS: Final = 1_000
TRIP_YELLOW_MS: Final = 5
TRIP_RED_MS: Final = 100
WRITE_YELLOW_MS: Final = 20
WRITE_RED_MS: Final = 200
SLOW_MS: Final = 50
SLOW_WITHIN_S: Final = 900
REPLICA_LAG_S: Final = 10

_UNVERIFIED: Final = (
    "unverified: ask the server's operator; the intake starts only with allow_unverified"
)

# Which check judges a setting that an engine asks for; all others are of `persistence`.
_JUDGED_BY: Final = {"maxmemory-policy": "eviction", "min-replicas-to-write": "replicas"}


def check_server(reading: Reading) -> list[Finding]:
    """All findings of a server."""
    return [finding for check in _CHECKS if (finding := check(reading)) is not None]


def _settings(reading: Reading, check: str) -> Finding | None:
    """What an engine would refuse of the settings that this check is about; None if nothing."""
    hidden = []
    for name, (value, danger) in wanted(reading.durability).items():
        if _JUDGED_BY.get(name, "persistence") != check:
            continue
        got = reading.config.get(name)
        if got is None:
            hidden.append(name)
        elif got != value and (name not in AT_LEAST or int(got) < int(value)):
            seen = f"{name} is {got}: the server {danger}"
            remedy = f"set `CONFIG SET {name} {value}`"
            if reading.durability == "aof" and reading.info.get("connected_slaves"):
                remedy += ", or choose durability replicas:N, if that is what its replicas are for"
            return red(check, seen, remedy)
    if hidden:
        return yellow(check, f"the server hides {', '.join(hidden)}", _UNVERIFIED)
    return None


def _version(reading: Reading) -> Finding:
    info = reading.info
    valkey = info.get("valkey_version")
    version = str(valkey or info.get("redis_version", "0"))
    seen = f"{'Valkey' if valkey else 'Redis'} {version} at {reading.address}"
    if reading.in_cluster:
        seen += ", which has the sale" if reading.has_sale else ", for other sales"
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not valkey and numbers < VERSION_MIN:
        return red("server", seen, "use Redis 6.2 or later, or any Valkey")
    return green("server", seen)


def _role(reading: Reading) -> Finding:
    info = reading.info
    if info.get("cluster_enabled") and not reading.in_cluster:
        seen, _, remedy = IN_CLUSTER.removeprefix("is ").partition(": ")
        return red("role", f"{seen}, and was not asked as one", remedy)
    if not reading.is_master:
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        remedy = f"connect to the master, {master}"
        if reading.may_move:
            remedy = "a failover is under way: look again in some seconds"
        return red("role", f"a {info['role']} of {master}", remedy)
    if info.get("loading"):
        left_s = info.get("loading_eta_seconds", "?")
        return red("role", "still loading its data", f"wait; it expects {left_s} s more")
    return green("role", "a master, its data is loaded")


def _replicas(reading: Reading) -> Finding:
    info = reading.info
    replicas = [info[name] for name in info if re.fullmatch(r"slave\d+", name)]
    asked = replicas_of(reading.durability)
    wanted = info.get("min_slaves_good_slaves")
    told = reading.config.get("min-replicas-to-write", "0")
    if wanted is not None and told.isdigit() and int(wanted) < int(told):
        remedy = "bring the replicas back"
        if not asked:
            remedy += ", or set `CONFIG SET min-replicas-to-write 0`"
        return red(
            "replicas",
            f"{wanted} good ones, and min-replicas-to-write is {told}: every order is refused",
            remedy,
        )
    if not replicas and not asked:
        return green("replicas", "none")
    late = [
        f"{one.get('ip')}:{one.get('port')} ({one.get('state')}, {one.get('lag')} s behind)"
        for one in replicas
        if one.get("state") != "online" or int(one.get("lag", 0)) > REPLICA_LAG_S
    ]
    seen = f"{len(replicas) - len(late)} in step"
    if asked:
        seen += f", and every order waits for {asked}"
    if late:
        seen += f"; not in step: {', '.join(late)}"
    if len(replicas) - len(late) < asked:
        return red("replicas", seen, "add replicas, or look at their logs; or wait for fewer")
    if (unfit := _settings(reading, "replicas")) is not None:
        return unfit
    if late:
        return yellow("replicas", seen, "look at the replica's log")
    return green("replicas", seen)


def _persistence(reading: Reading) -> Finding:
    if reading.durability == "memory":
        return yellow(
            "persistence",
            "durability is memory: a crash may lose acknowledged orders",
            "use durability aof for a real sale, or replicas:N with replicas",
        )
    if "aof_enabled" in reading.info and not reading.info["aof_enabled"]:
        return red("persistence", "appendonly is no", "set `CONFIG SET appendonly yes`")
    if (unfit := _settings(reading, "persistence")) is not None:
        return unfit
    if replicas_of(reading.durability):
        return green(
            "persistence", "replicas have every order before it is acknowledged; an AOF is kept"
        )
    return green("persistence", "every order is on disk before it is acknowledged")


def _disk_writes(reading: Reading) -> Finding:
    info, config = reading.info, reading.config
    if info.get("aof_last_write_status", "ok") != "ok":
        return red("disk-writes", "the last write to the AOF failed", "look at the disk, now")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        if config.get("save") and config.get("stop-writes-on-bgsave-error") == "yes":
            return red(
                "disk-writes",
                "the last BGSAVE failed, so every order is refused",
                'look at the disk and the server\'s log; `CONFIG SET save ""` does without BGSAVE',
            )
        return yellow("disk-writes", "the last BGSAVE failed", "look at the server's log")
    if info.get("aof_last_bgrewrite_status", "ok") != "ok":
        return yellow(
            "disk-writes",
            "the last rewrite of the AOF failed: the file grows",
            "look at the disk, then run `BGREWRITEAOF`",
        )
    if "aof_enabled" not in info:
        return yellow("disk-writes", "the server does not tell", _UNVERIFIED)
    return green("disk-writes", "the last ones went well")


def _disk_space(reading: Reading) -> Finding | None:
    """Only where the server's directory is on this host: nobody else can tell."""
    config = reading.config
    folder = Path(config.get("dir") or "/nowhere")
    if reading.durability == "memory" or not reading.local:
        return None
    names = [config.get("appenddirname", ""), config.get("appendfilename", "")]
    try:
        if not any((folder / name).exists() for name in names if name):
            return None  # Another host's or a container's, reached through a forwarded port.
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    # A rewrite puts a second copy of the data beside the first.
    needed = _orders_to_come(reading) * AOF_BYTES_PER_ORDER + int(reading.info["used_memory"])
    seen = f"{shown_bytes(free)} free in {folder}, about {shown_bytes(needed)} needed"
    if free < needed:
        return red("disk-space", seen, "make room, or move the server's directory")
    if free * TIGHT < needed:
        return yellow("disk-space", seen, "make room")
    return green("disk-space", seen)


def _eviction(reading: Reading) -> Finding:
    policy = reading.config.get("maxmemory-policy") or reading.info.get("maxmemory_policy")
    if policy is None:
        return yellow("eviction", "the server hides maxmemory-policy", _UNVERIFIED)
    if policy != "noeviction":
        return red(
            "eviction",
            f"maxmemory-policy is {policy}: orders could vanish",
            "set `CONFIG SET maxmemory-policy noeviction`",
        )
    return green("eviction", "nothing is evicted")


def _orders_to_come(reading: Reading) -> int:
    return max(0, reading.plan.units * ORDERS_PER_UNIT - reading.plan.orders)


def _memory(reading: Reading) -> Finding:
    info, plan = reading.info, reading.plan
    if "used_memory" not in info:
        return yellow("memory", "the server does not tell", _UNVERIFIED)
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    system = int(info.get("total_system_memory", 0))
    if not limit and not system:
        return yellow("memory", "the server does not tell its limit", _UNVERIFIED)
    needed = _orders_to_come(reading) * BYTES_PER_ORDER
    free = (limit or system) - used
    where = "of maxmemory" if limit else "of the machine (maxmemory is not set)"
    seen = (
        f"{shown_bytes(free)} free {where}; about {shown_bytes(needed)} for "
        f"{_orders_to_come(reading):,} orders of {plan.units:,} units in {plan.sales:,} sales"
    )
    if plan.queues:
        # How many will come, nobody knows beforehand.
        room = max(0, free - needed) // BYTES_PER_TICKET
        seen += f"; beside them room for {room:,} tickets more"
    enough_mb = -(-int((used + needed) / TIGHT) // 2**20)
    remedy = f"set `CONFIG SET maxmemory {enough_mb}mb`, if the machine has it"
    if limit and free <= 0:
        seen = f"full, so every order is refused: {shown_bytes(used)} used of {shown_bytes(limit)}"
        return red("memory", seen, remedy)
    if needed > free:
        return red("memory", seen, remedy)
    if needed > free * TIGHT:
        return yellow("memory", seen, remedy)
    return green("memory", seen)


def _clock(reading: Reading) -> Finding:
    skew_ms = reading.skew_ms
    # Half of the round trip is what the answer may have been under way.
    sure_ms = max(0.0, abs(skew_ms) - reading.round_trip_ms / 2)
    side = "ahead of" if skew_ms > 0 else "behind"
    seen = f"the server is {abs(skew_ms) / 1_000:,.3f} s {side} this host"
    remedy = "one of the two is wrong, and sales go by the server's: compare both with NTP"
    if sure_ms > SKEW_RED_MS:
        return red("clock", seen, remedy)
    if sure_ms > SKEW_YELLOW_MS:
        return yellow("clock", seen, remedy)
    return green("clock", seen)


def _connections(reading: Reading) -> Finding:
    clients = int(reading.info.get("connected_clients", 0))
    told = str(reading.config.get("maxclients") or reading.info.get("maxclients") or "")
    if not told.isdigit():
        return yellow("connections", f"{clients:,} clients, maxclients is hidden", _UNVERIFIED)
    limit = int(told)
    wanted = clients + reading.connections
    seen = f"{clients:,} of {limit:,} taken, about {reading.connections:,} more to come"
    if wanted > limit:
        return red("connections", seen, f"set `CONFIG SET maxclients {2 * wanted}`")
    return green("connections", seen)


def _latency(reading: Reading) -> Finding:
    seen = f"an answer takes {reading.trip_ms:.2f} ms"
    if reading.info.get("loading"):
        return yellow("latency", "not measured while it loads", "look again when it has loaded")
    remedy = "move the intake nearer to it, or see what keeps the server busy"
    if reading.trip_ms > TRIP_RED_MS:
        return red("latency", seen, remedy)
    if reading.trip_ms > TRIP_YELLOW_MS:
        return yellow("latency", seen, remedy)
    return green("latency", seen)


def _fsync(reading: Reading) -> Finding | None:
    if reading.durability == "memory" or not reading.is_master:
        return None
    if reading.write_ms is None:
        return yellow(
            "fsync", f"a write was refused: {reading.write_refusal}", "look at what it says"
        )
    # What a write takes longer than a question, it waits for the disk.
    disk_ms = max(0.0, reading.write_ms - reading.trip_ms)
    seen = f"a write waits {disk_ms:.1f} ms for the disk"
    if delayed := int(reading.info.get("aof_delayed_fsync", 0)):
        seen += f" ({delayed:,} delayed so far)"
    remedy = "use a disk with a faster fsync, or find who else keeps it busy"
    if disk_ms > WRITE_RED_MS:
        return red("fsync", seen, remedy)
    if disk_ms > WRITE_YELLOW_MS:
        return yellow("fsync", seen, remedy)
    return green("fsync", seen)


def _slow_log(reading: Reading) -> Finding:
    if reading.slow is None:
        return yellow("slow-log", "the server hides its slow log", _UNVERIFIED)
    since_s = reading.now_ms // 1_000 - SLOW_WITHIN_S
    slow = [one for one in reading.slow if one.at_s >= since_s and one.took_ms >= SLOW_MS]
    if not slow:
        return green("slow-log", f"nothing above {SLOW_MS} ms in {SLOW_WITHIN_S // 60} minutes")
    worst = max(slow, key=lambda one: one.took_ms)
    return yellow(
        "slow-log",
        f"{len(slow)} slow commands in {SLOW_WITHIN_S // 60} minutes, "
        f"the worst {worst.command} with {worst.took_ms:,.0f} ms",
        "find out who sends them (`SLOWLOG GET`); everybody waits meanwhile",
    )


def _kernel(reading: Reading) -> Finding | None:
    """Linux settings of a server on this host."""
    if not reading.local:
        return None
    try:
        pages = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        overcommit = Path("/proc/sys/vm/overcommit_memory").read_text().strip()
    except OSError:
        return None  # Not Linux, or a container that hides them.
    # The server switches huge pages off for itself when it may.
    if "[always]" in pages and reading.config.get("disable-thp") != "yes":
        return yellow(
            "kernel",
            "transparent huge pages are always on: a rewrite stalls the server",
            "run `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
        )
    info = reading.info
    grown = int(info.get("used_memory", 0)) + _orders_to_come(reading) * BYTES_PER_ORDER
    if overcommit != "1" and grown > int(info.get("total_system_memory", 0)) / 2:
        return yellow(
            "kernel",
            f"vm.overcommit_memory is {overcommit}: a rewrite of the AOF may find no memory",
            "run `sysctl vm.overcommit_memory=1`",
        )
    return green("kernel", "huge pages and overcommit are fine")


_CHECKS: Final[tuple[Callable[[Reading], Finding | None], ...]] = (
    _version,
    _role,
    _replicas,
    _persistence,
    _disk_writes,
    _disk_space,
    _eviction,
    _memory,
    _clock,
    _connections,
    _latency,
    _fsync,
    _slow_log,
    _kernel,
)
