"""Writes the README's section "Measured" from reports of runs, so that no figure of it is without
one: ``python -m benchmarks readme [--write] [REPORT …]``. Without a name the reports are those that
are kept, benchmarks/results/*.json. With --write the section is put between the README's markers,
otherwise it is printed; tests/unit/test_benchmark_readme.py compares the two.

Which rows of a report stand there is written down in readme_tables.py. Refused: a quick run, a run
in which a sale broke a promise or a benchmark had no end, two runs of one benchmark on one server,
a report that tells a path or an address of the machine, and one that lacks a row that a table asks
for.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.http_rig import INTAKE, NOOP, REFERENCES
from benchmarks.readme_tables import INTRODUCTION, OF_HTTP, SYSTEMS, TABLES, Table
from benchmarks.report import RATIO, VERIFY, Report, Row, Verdict, broken, read
from benchmarks.report import _number as number
from seckill.errors import InvalidInput

__all__ = ["BEGIN", "END", "RESULTS", "main", "put", "section"]

BEGIN: Final = (
    "<!-- By `python -m benchmarks readme --write`; what is written here by hand is lost. -->"
)
END: Final = "<!-- End of what was written by it. -->"
RESULTS: Final = Path(__file__).with_name("results")
README: Final = Path(__file__).parents[1] / "README.md"

# Units that a label does not name.
_SHOWN: Final = (RATIO, "µs", "ms", "s", "bytes")
_PRIVATE: Final = re.compile(r"(?<![\w.])(/(?:home|root|tmp|var|work|usr|opt|mnt|Users)\b|\w+://)")


def section(reports: Sequence[Report]) -> str:
    """The section as Markdown. Raises InvalidInput."""
    for report in reports:
        _check(report)
    _check_twice(reports)
    rows = [row for report in reports for row in report.rows]
    parts = ["\n".join(map(_run, reports)), INTRODUCTION.format(verified=_verified(rows))]
    if any(row.benchmark == "http" and row.values for row in rows):
        parts += [OF_HTTP, *_systems(rows)]
    parts += [part for table in TABLES for part in _table(table, rows)]
    return "\n\n".join(parts) + "\n"


def _check(report: Report) -> None:
    facts, rows = report.facts, report.rows
    run = f"the run of {facts.get('date', 'no date')}"
    if "quick" in facts:
        raise InvalidInput(
            run, "was a quick one, whose figures say nothing", "run it without --quick"
        )
    if bad := broken(rows):
        problem = f"is worth nothing: {bad[0].benchmark}: {bad[0].question}: {bad[0].note}"
        raise InvalidInput(run, problem, "mend that and run it again")
    told = [*facts.values(), *(row.note for row in rows)]
    if private := next(filter(_PRIVATE.search, told), None):
        problem = f"tells something of its machine: {private!r}"
        raise InvalidInput(run, problem, "leave it out of what is kept")


def _check_twice(reports: Iterable[Report]) -> None:
    seen: set[tuple[str, str]] = set()
    for report in reports:
        measured = {(row.benchmark, row.server) for row in report.rows if row.values}
        for benchmark, server in sorted(seen & measured):
            problem = "is there in two runs"
            raise InvalidInput(f"{benchmark} on {server}", problem, "give one run of it only")
        seen |= measured


def _run(report: Report) -> str:
    """What a reader must know of a run: a line of a list."""
    facts = report.facts
    machine = facts["machine"].rpartition(", ")[0]  # The kernel says little to anybody.
    return (
        f"- `{facts['command']}`, {facts['date'][:10]}, {facts['took']}: {machine};"
        f" {facts['disk']}; {facts['versions']}; {facts['servers']}; load {facts['load']}"
        + (f"; stolen {facts['stolen']}" if "stolen" in facts else "")
    )


def _verified(rows: Iterable[Row]) -> str:
    said = [row.note for row in rows if row.question == VERIFY]
    orders = [re.search(r"([\d,]+) orders", note) for note in said]
    total = sum(int(found[1].replace(",", "")) for found in orders if found)
    return f"{total:,}"


def _systems(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each server: who answers how many orders, and at which cost."""
    mine = [row for row in rows if row.benchmark == "http"]
    for server in dict.fromkeys(row.server for row in mine if row.values):
        here = {row.question: row for row in mine if row.server == server}
        head = [_plain(server), "in stock, a second", "seckill against it"]
        head += ["sold out, a second", "seckill against it", "CPU of 10,000 orders, its store's"]
        lines = [_system(who, here) for who in (INTAKE, NOOP, *REFERENCES)]
        yield _markdown(head, [line for line in lines if line])


def _system(who: str, here: dict[str, Row]) -> tuple[str, ...]:
    """One line, or nothing for what was not measured on this server."""
    rate = here.get(f"in stock: {who}")
    against = [here.get(f"{case}, the intake against: {who}") for case in ("in stock", "sold out")]
    if rate is None:
        # A toolchain that is not here is named; what met another server only is in its table.
        why = against[0].note if against[0] else ""
        word = why if why.startswith("skipped: ") and "measured with" not in why else ""
        return (SYSTEMS[who], word, "–", "–", "–", "–") if word else ()
    versions = rate.note.rpartition("; ")[0]
    name = f"{SYSTEMS[who]} ({versions})" if versions else SYSTEMS[who]
    spent = [
        here.get(f"CPU in stock: {who} / {of}") for of in ("the server", "Redis", "PostgreSQL")
    ]
    cpu = " + ".join(f"{median(row.values):.2f}" for row in spent if row) + " s"
    return (
        name,
        _cell(rate),
        _cell(against[0]),
        _cell(here.get(f"sold out: {who}")),
        _cell(against[1]),
        cpu,
    )


def _table(table: Table, rows: Sequence[Row]) -> Iterator[str]:
    """A caption and a table with a column for each server, if anything of it was measured."""
    mine = [row for row in rows if row.benchmark == table.benchmark]
    if not any(row.values for row in mine):
        return
    cells: dict[str, dict[str, Row]] = {}
    for label, pattern in table.lines:
        meant = [row for row in mine if re.fullmatch(pattern, row.question)]
        if not meant:
            problem = f"has no row {pattern!r}, which the README shows as {label!r}"
            raise InvalidInput(table.benchmark, problem, "mend benchmarks/readme_tables.py")
        # Of several that could be meant that counts which has a target.
        cells[label] = {row.server: row for row in sorted(meant, key=lambda row: row.target != "–")}
    servers = list(dict.fromkeys(row.server for row in mine if row.values))
    lines = [(label, *(_cell(by.get(server)) for server in servers)) for label, by in cells.items()]
    yield table.caption
    yield _markdown(("", *map(_plain, servers)), lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.verdict is Verdict.NOISY:
        return "too noisy to say"
    if row.median is None or row.low is None or row.high is None:
        return row.note
    unit = f" {row.unit}" if row.unit in _SHOWN else ""
    spread = f" ({_figure(row.low, row)} … {_figure(row.high, row)})" if len(row.values) > 1 else ""
    return f"{_figure(row.median, row)}{unit}{spread}"


def _figure(value: float, row: Row) -> str:
    return f"{value:.2f}" if row.unit == RATIO and value < 100 else number(value)


def _plain(server: str) -> str:
    """Without our own words for it."""
    name, _, fsync = server.partition(", fsync ")
    durable = {"": "", "always": ", every order on disk", "off": ", append-only file off"}
    return name + durable[fsync]


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    shown = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def put(text: str, figures: str) -> str:
    """A README with these figures between its markers. Raises InvalidInput."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidInput(
            "README.md", "has no markers for its figures", f"write {BEGIN} and {END}"
        )
    return f"{before}{BEGIN}\n\n{figures}\n{END}{after}"


def main(words: Sequence[str]) -> int:
    """Prints the section, or writes it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT")
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    asked = parser.parse_args(words)
    paths: list[Path] = asked.reports or sorted(RESULTS.glob("*.json"))
    if not paths:
        parser.error(f"{RESULTS.name}/ has no report, and none was named")
    if asked.write and asked.reports:
        parser.error("--write takes what is kept in benchmarks/results/: put the report there")
    try:
        figures = section([read(path) for path in paths])
        if asked.write:
            README.write_text(put(README.read_text(encoding="utf-8"), figures), encoding="utf-8")
        else:
            print(figures, end="")
    except InvalidInput as error:
        parser.error(str(error))
    return 0
