"""Does what is in the working tree make an order dearer than it was in BASE?

    python -m benchmarks.compare [BASE] [--allow PERCENT] [--json FILE] [--no-valgrind]
    make bench-compare BASE=main

Canonical workload: one intake with user tokens, limiter and metrics on, on a Redis of its own, with
64 buyers, whose requests come together (compare_buyers.py); each request is answered before the
next burst. Counted are bytecode instructions and calls of Python, commands of Redis, scripts' own
included, and, where valgrind is installed, instructions of the intake's process by callgrind. They
leave out the kernel and Redis itself, and say nothing of waiting: time is for `python -m
benchmarks`. But they are nearly the same in each run, whatever else the machine has to do.

BASE is a revision of git; without one it is where the branch has left the main branch, and on the
main branch the last commit, or the one before if nothing was changed since. Each tree is measured
twice, in turn, and how far its two runs are apart is printed. That takes about 2 minutes, 5 with
valgrind.

Where instructions were counted they decide, and bytecodes and calls tell where they went.

Exits 1 when an operation has become dearer than is allowed, by more than its runs are apart, and 2
when there was nothing to compare.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final

import msgspec

from benchmarks.compare_buyers import Failed
from benchmarks.compare_count import Cost, run
from benchmarks.compare_figures import Figure, dearer, dearer_functions, figures, steadiness, table
from benchmarks.compare_trees import default_base, resolve, tree_of, working_tree
from seckill.errors import SeckillError

__all__ = ["main"]

ROOT: Final = Path(__file__).parents[1]
ALLOW_PERCENT: Final = 3.0
RUNS: Final = 2
BURSTS: Final = 20
# Each takes fifty times as long.
BURSTS_CALLGRIND: Final = 12

BASE: Final = "base"
NOW: Final = "now"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares, prints, judges."""
    asked = _parser().parse_args(arguments)
    began_s = perf_counter()
    try:
        if asked.json:
            asked.json.touch()  # Minutes before it is written.
        name = asked.base or default_base(ROOT)
        commit = resolve(ROOT, name)
        with TemporaryDirectory(prefix="seckill-compare-") as folder:
            trees = {
                BASE: tree_of(ROOT, commit, Path(folder, BASE)),
                NOW: working_tree(ROOT, Path(folder, NOW)),
            }
            runs = _measured(trees, asked.bursts, with_valgrind=_has_valgrind(asked.no_valgrind))
    except (Failed, SeckillError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    found = figures(runs[BASE], runs[NOW])
    title = name if commit.startswith(name) else f"{name} ({commit[:12]})"
    print(f"base is {title}, now is the working tree; Python {platform.python_version()}\n")
    print(table(found, asked.allow / 100))
    print(f"\n{steadiness(found)} Took {perf_counter() - began_s:.0f} s.")
    if asked.json:
        _write(asked.json, commit, asked.allow, found)
    return _judged(found, runs, asked.allow)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", metavar="BASE", nargs="?", default="", help="a revision of git")
    parser.add_argument(
        "--allow",
        metavar="PERCENT",
        type=_percent,
        default=ALLOW_PERCENT,
        help=f"how much dearer anything may be ({ALLOW_PERCENT:g})",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as data, too")
    parser.add_argument("--no-valgrind", action="store_true", help="leave callgrind out")
    parser.add_argument(
        "--bursts",
        metavar="N",
        type=_count,
        default=0,
        help=f"of each operation in a run ({BURSTS}, {BURSTS_CALLGRIND} under callgrind)",
    )
    return parser


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage; give 0 to 1000")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 3 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no such number; give 3 to 10000")
    return value


def _has_valgrind(unwanted: bool) -> bool:
    return not unwanted and bool(shutil.which("valgrind") and shutil.which("vgdb"))


def _measured(
    trees: dict[str, Path], bursts: int, *, with_valgrind: bool
) -> dict[str, list[list[Cost]]]:
    """What each run of each tree has found. Raises Failed."""
    runs: dict[str, list[list[Cost]]] = {name: [] for name in trees}
    for callgrind in (False, True) if with_valgrind else (False,):
        times = bursts or (BURSTS_CALLGRIND if callgrind else BURSTS)
        for turn in range(RUNS):
            for name, tree in trees.items():
                where = f"{name}, run {turn + 1} of {RUNS}" + ", callgrind" * callgrind
                say = partial(_say, where)
                _begin(where)
                try:
                    runs[name].append(run(tree, times, callgrind=callgrind, say=say))
                except (Failed, OSError) as error:
                    raise Failed(f"{where}: {error}") from None
                finally:
                    _say()
    return runs


def _begin(where: str) -> None:
    """A line for each run where nobody watches a status line: a log, a pipe."""
    if not sys.stderr.isatty():
        print(f"compare: {where}", file=sys.stderr, flush=True)


def _say(*texts: str) -> None:
    """Progress for somebody who watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{': '.join(texts)}", end="", file=sys.stderr, flush=True)


def _judged(found: Sequence[Figure], runs: dict[str, list[list[Cost]]], allow: float) -> int:
    worse = dearer(found, allow / 100)
    if not worse:
        print(f"Nothing is more than {allow:g} % dearer.")
        return 0
    for operation in dict.fromkeys(figure.operation for figure in worse):
        print(f"More than {allow:g} % dearer: {operation}. By bytecodes, most of it is in:")
        functions = dearer_functions(operation, runs[BASE][0], runs[NOW][0])
        for line in functions or ["nothing that Python runs"]:
            print(f"  {line}")
    return 1


def _write(file: Path, commit: str, allow: float, found: Sequence[Figure]) -> None:
    worse = dearer(found, allow / 100)
    rows = [
        msgspec.to_builtins(figure)
        | {"change": figure.change, "spread": figure.spread}
        | {"dearer": figure in worse}
        for figure in found
    ]
    facts = {"base": commit, "python": platform.python_version(), "allow_percent": allow}
    file.write_bytes(msgspec.json.encode({**facts, "figures": rows}) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
