"""The README's figures are those of runs that are kept, and of none that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import profile, readme
from benchmarks.http_rig import GO, INTAKE, NOOP
from benchmarks.readme_tables import TABLES
from benchmarks.report import RATIO, RUN, VERIFY, Report, Row, Verdict, encode, read
from seckill.errors import InvalidInput

ROOT = Path(__file__).parents[2]
VALKEY = "Valkey 9.1.2, fsync always"
REDIS = "Redis 7.0.15, fsync always"
FACTS = {
    "command": "make bench",
    "date": "2026-11-23T06:10:00+00:00",
    "machine": "2 cores, Xeon, 6.1.0",
    "disk": "/disk: a sync of 4 KB takes 222 µs",
    "versions": "Python 3.11.7",
    "servers": "Valkey 9.1.2",
    "load": "0.1 0.2 0.3 (1, 5, 15 min) before the run",
    "took": "480 s",
}


def kept(*rows: Row, tmp_path: Path, **facts: str) -> Report:
    """A report as it comes back from its file."""
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    file.write_bytes(encode(FACTS | facts, rows))
    return read(file)


def http_rows(server: str = VALKEY) -> list[Row]:
    def of(question: str, unit: str, *values: float, note: str = "") -> Row:
        return Row.of("http", server, question, unit, values, note=note)

    return [
        of(f"in stock, the intake against: {NOOP}", RATIO, 1.4, 1.5, 1.6),
        of(f"in stock: {INTAKE}", "orders/s", 30_000, 31_000, 29_000),
        of(f"in stock: {NOOP}", "answers/s", 20_000, 20_500, note="wrk: p50 1.0, p99 2.0 ms"),
        of(f"CPU in stock: {INTAKE} / the server", "s/10k orders", 0.3, 0.32),
        of(f"CPU in stock: {INTAKE} / Redis", "s/10k orders", 0.1),
        of(f"CPU in stock: {INTAKE} / the load", "s/10k orders", 0.9),
        of("in batches of 200: intake", "orders/s", 80_000, 81_000),
        of("new user tokens, the intake against: no-op", RATIO, 0.2, 0.9),
        of("Redis time of an order, in stock: intake", "µs", 7.0),
        of("orders a script call, in stock: intake", "orders", 60.0),
        Row.fact(
            *("http", server, f"in stock, the intake against: {GO}", Verdict.INFO),
            *("≥ 1.2", "skipped: no go"),
        ),
        Row.fact("http", server, VERIFY, Verdict.MET, "no violation", "9 sales, 12,345 orders"),
    ]


def test_the_readme_shows_what_a_run_has(tmp_path: Path) -> None:
    text = readme.section([kept(*http_rows(), tmp_path=tmp_path)])
    lines = text.splitlines()
    assert lines[0] == (
        "- `make bench`, 2026-11-23, 480 s: 2 cores, Xeon; a sync of 4 KB takes 222 µs;"
        " Python 3.11.7; Valkey 9.1.2; load 0.1 0.2 0.3 (1, 5, 15 min) before the run"
    )
    assert "has replayed 12,345 orders of" in text.replace("\n", " ")
    assert "| **seckill** | 30,000 (29,000 … 31,000) | – | – | – | 0.31 + 0.10 s |" in lines
    [noop] = [line for line in lines if line.startswith("| an aiohttp handler")]
    assert "| 20,250 (20,000 … 20,500) | 1.50 × (1.40 … 1.60) | – | – |" in noop
    assert "wrk" not in text
    # A toolchain that is missing is named, and a ratio without a meaning is not given.
    assert "| Go net/http, pipelined RESP | skipped: no go | – | – | – | – |" in lines
    [new] = [line for line in lines if "first time" in line]
    assert new.endswith("| too noisy to say |")
    assert "| Redis time of an order | 7 µs |" in lines


def test_the_readme_has_a_column_for_each_server_of_several_runs(tmp_path: Path) -> None:
    first = kept(*http_rows(), tmp_path=tmp_path)
    second = kept(*http_rows(REDIS), tmp_path=tmp_path, command="python -m benchmarks http")
    lines = readme.section([first, second]).splitlines()
    assert [line[:26] for line in lines[:2]] == [
        "- `make bench`, 2026-11-23",
        "- `python -m benchmarks ht",
    ]
    head = "|  | Valkey 9.1.2, every order on disk | Redis 7.0.15, every order on disk |"
    assert head in lines
    assert sum("**seckill**" in line for line in lines) == 2
    assert " 24,690 orders" in " ".join(lines)


@pytest.mark.parametrize(
    ("facts", "more", "said"),
    [
        ({"quick": "tiny counts"}, None, "was a quick one"),
        (
            {},
            Row.fact("http", VALKEY, VERIFY, Verdict.MISSED, "no violation", "seq 7: oversold"),
            "worth nothing.*oversold",
        ),
        (
            {},
            Row.fact("lane", VALKEY, RUN, Verdict.MISSED, "an end", "failed: a lane"),
            "worth nothing.*failed: a lane",
        ),
        ({"disk": "/srv: x", "servers": "at /home/me/redis"}, None, "tells something.*/home/me"),
        (
            {},
            Row.fact("http", VALKEY, "x", Verdict.INFO, "–", "npm: https://npm.example"),
            "tells something.*npm.example",
        ),
    ],
)
def test_a_run_that_says_nothing_is_refused(
    facts: dict[str, str], more: Row | None, said: str, tmp_path: Path
) -> None:
    rows = http_rows() + ([more] if more else [])
    with pytest.raises(InvalidInput, match=said):
        readme.section([kept(*rows, tmp_path=tmp_path, **facts)])


def test_one_benchmark_on_one_server_comes_from_one_run(tmp_path: Path) -> None:
    runs = [kept(*http_rows(), tmp_path=tmp_path) for _ in range(2)]
    with pytest.raises(InvalidInput, match=f"http on {VALKEY}: is there in two runs"):
        readme.section(runs)
    # Words may come twice within one.
    readme.section([kept(*http_rows(), *http_rows()[:1], tmp_path=tmp_path)])


def test_a_row_that_a_table_asks_for_and_is_not_there_is_named(tmp_path: Path) -> None:
    rows = [row for row in http_rows() if not row.question.startswith("in batches")]
    with pytest.raises(InvalidInput, match="in batches of 200: intake"):
        readme.section([kept(*rows, tmp_path=tmp_path)])


def test_the_readme_itself_has_no_figure_without_a_run() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = sorted(readme.RESULTS.glob("*.json"))
    assert paths
    assert readme.put(text, readme.section([read(path) for path in paths])) == text
    # And there is no other figure in this section than those between the markers.
    chapter = text[text.index("\n## Measured\n") :]
    chapter = chapter[: chapter.index("\n## Guides\n")]
    by_hand = chapter.partition(readme.BEGIN)[0] + chapter.partition(readme.END)[2]
    assert "|" not in by_hand
    assert "×" not in by_hand


def test_figures_are_put_between_the_markers() -> None:
    text = f"# a\n\n{readme.BEGIN}\n\nold\n\n{readme.END}\n\nb\n"
    assert readme.put(text, "new\n") == f"# a\n\n{readme.BEGIN}\n\nnew\n\n{readme.END}\n\nb\n"
    with pytest.raises(InvalidInput, match="no markers"):
        readme.put("# a\n", "new\n")


def test_the_readme_asks_only_for_benchmarks_that_are_there() -> None:
    assert {table.benchmark for table in TABLES} <= profile.BENCHMARKS.keys()


def test_what_is_kept_is_written_into_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results"
    results.mkdir()
    page.write_text(f"# a\n\n{readme.BEGIN}\n{readme.END}\n\nb\n", encoding="utf-8")
    monkeypatch.setattr(readme, "README", page)
    monkeypatch.setattr(readme, "RESULTS", results)
    with pytest.raises(SystemExit):
        readme.main(["--write"])
    assert "results/ has no report" in capsys.readouterr().err
    (results / "2026-11-23.json").write_bytes(encode(FACTS, http_rows()))
    assert readme.main([]) == 0
    printed = capsys.readouterr().out
    assert "**seckill**" in printed
    assert readme.main(["--write"]) == 0
    written = page.read_text(encoding="utf-8")
    assert written == f"# a\n\n{readme.BEGIN}\n\n{printed}\n{readme.END}\n\nb\n"
    # And once more changes nothing.
    assert readme.main(["--write"]) == 0
    assert page.read_text(encoding="utf-8") == written
