"""Writes the table of docs/durability.md from reports of runs, so that no figure is without one:

    python -m benchmarks.durability_table [--write] [REPORT …]

Without a name the reports are those that are kept, benchmarks/results/*.json, as far as they have
figures of `durability`. With --write the table is put between the guide's markers, otherwise it is
printed; tests/unit/test_durability_table.py compares the two. Refused are a quick run and one in
which a sale broke a promise.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.durability import ENGINE, HTTP, NAME, against
from benchmarks.durability_sites import MODES
from benchmarks.readme import RESULTS
from benchmarks.report import Report, Row, broken, read
from benchmarks.report import _number as number
from seckill.errors import InvalidInput

__all__ = ["BEGIN", "END", "GUIDE", "main", "put", "table"]

GUIDE: Final = Path(__file__).parents[1] / "docs" / "durability.md"
BEGIN: Final = "<!-- By `python -m benchmarks.durability_table --write`. -->"
END: Final = "<!-- End of what was written by it. -->"
NOTHING: Final = (
    "No run is kept yet; `python -m benchmarks durability` measures it on a machine of yours."
)
_HEAD: Final = (
    *("server", "promise", "HTTP path, orders/s", "of `memory`"),
    *("p50, p99", "engine path, orders/s", "of `memory`"),
)


def table(reports: Sequence[Report]) -> str:
    """The table as Markdown, with the runs that it is made of. Raises InvalidInput."""
    mine = [report for report in reports if any(_figures(report))]
    if not mine:
        return NOTHING
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD)]
    for report in mine:
        _check(report)
        here = list(_figures(report))
        for server in dict.fromkeys(row.server for row in here):
            rows = {row.question: row for row in here if row.server == server}
            cells = ((server, f"`{mode}`", *_cells(rows, mode)) for mode in MODES)
            lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([*map(_run, mine), "", *lines])


def _figures(report: Report) -> Iterator[Row]:
    return (row for row in report.rows if row.benchmark == NAME)


def _check(report: Report) -> None:
    run = f"the run of {report.facts.get('date', 'no date')}"
    if "quick" in report.facts:
        raise InvalidInput(run, "was a quick one, whose figures say nothing", "run it without")
    if bad := broken(report.rows):
        raise InvalidInput(run, f"is worth nothing: {bad[0].note}", "mend that and run it again")


def _run(report: Report) -> str:
    facts = report.facts
    machine = facts["machine"].rpartition(", ")[0]  # The kernel says little to anybody.
    stolen = f"; stolen {facts['stolen']}" if "stolen" in facts else ""
    return f"`{facts['command']}`, {facts['date'][:10]}: {machine}; {facts['disk']}{stolen}."


def _cells(rows: dict[str, Row], mode: str) -> Iterator[str]:
    for path in (HTTP, ENGINE):
        rate, ratio = rows.get(f"{path}: {mode}"), rows.get(against(path, mode))
        yield "–" if rate is None or rate.median is None else number(rate.median)
        if mode == "memory":
            yield "1"
        elif ratio is None or ratio.median is None or ratio.low is None or ratio.high is None:
            yield ratio.note if ratio and ratio.note else "–"
        else:
            yield f"{number(ratio.median)} ({number(ratio.low)} … {number(ratio.high)})"
        if path == HTTP:
            times = re.search(r"p50 ([\d.]+), p99 ([\d.]+) ms", rate.note if rate else "")
            yield f"{times[1]}, {times[2]} ms" if times else "–"


def put(guide: str, text: str) -> str:
    """The guide with this table in its place. Raises InvalidInput."""
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not place.search(guide):
        raise InvalidInput(str(GUIDE), "has no place for the table", f"write {BEGIN} and {END}")
    return place.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", guide)


def kept() -> Iterable[Report]:
    """The reports that are kept."""
    return (read(path) for path in sorted(RESULTS.glob("*.json")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability_table")
    parser.add_argument("reports", nargs="*", metavar="REPORT", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into docs/durability.md")
    asked = parser.parse_args(arguments)
    try:
        text = table([read(path) for path in asked.reports] or list(kept()))
        if asked.write:
            GUIDE.write_text(put(GUIDE.read_text("utf-8"), text), "utf-8")
        else:
            print(text)
    except InvalidInput as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
