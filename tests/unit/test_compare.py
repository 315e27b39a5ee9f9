"""benchmarks/compare.py: its arithmetic, what it says when there is nothing to compare, and that an
order which became dearer is noticed.
"""

from __future__ import annotations

import shutil
import subprocess
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import compare
from benchmarks.compare_buyers import Failed
from benchmarks.compare_count import Cost, run
from benchmarks.compare_figures import Figure, dearer, dearer_functions, figures, steadiness, table
from benchmarks.compare_trees import default_base, resolve, tree_of, working_tree

ROOT = Path(compare.__file__).parents[1]
PARTS = ("seckill", "server", "lua")

PLANTED = """

def _dearer(self, *columns):
    for _ in range(40):
        pass
    return _submit(self, *columns)


_submit, Lane.submit = Lane.submit, _dearer
"""
DEARER = "seckill/lane.py:_dearer +1"
TOUCHED = ("order in stock", "order by socket", "Engine.reserve, no HTTP")


def git(repository: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    asked = ["git", "-C", str(repository), *who, *arguments]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository: Path) -> str:
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "a")
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of something that has the folders of this project."""
    found = tmp_path / "repository"
    for part in PARTS:
        (found / part).mkdir(parents=True)
        (found / part / "__init__.py").write_text(f"# {part}\n")
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(found))
    commit(found)
    (found / "server" / "__init__.py").write_text("# later\n")
    commit(found)
    return found


def cost(operation: str, functions: dict[str, float] | None = None, **units: float) -> Cost:
    return Cost(operation, units, functions or {})


# -- the arithmetic --------------------------------------------------------------------------------


def test_a_change_is_one_of_the_means() -> None:
    figure = Figure("order", "bytecodes", (1_000.0, 1_020.0), (1_050.0, 1_071.0))
    assert figure.change == pytest.approx(0.05)
    assert figure.spread == pytest.approx(20 / 1_010)
    assert figure.is_dearer(0.03)
    assert not figure.is_dearer(0.06)


def test_what_may_be_chance_is_not_dearer() -> None:
    figure = Figure("order", "bytecodes", (1_000.0, 1_000.0), (1_000.0, 1_100.0))
    assert figure.change == pytest.approx(0.05)
    assert not figure.is_dearer(0.03)


def test_cheaper_is_never_dearer() -> None:
    assert not Figure("order", "calls", (100.0,), (50.0,)).is_dearer(0.0)


def test_nothing_cannot_become_something() -> None:
    figure = Figure("sold out", "Redis commands", (0.0, 0.0), (1.0, 1.0))
    assert figure.change == inf
    assert figure.is_dearer(0.03)
    assert "from 0 dearer" in table([figure], 0.03)


def test_a_hundredth_of_a_command_is_none() -> None:
    figure = Figure("sold out", "Redis commands", (0.0, 0.01), (0.01, 0.02))
    assert (figure.change, figure.spread) == (0.0, 0.0)


def test_instructions_decide_where_they_were_counted() -> None:
    bytecodes = Figure("order", "bytecodes", (100.0,), (110.0,))
    commands = Figure("order", "Redis commands", (1.0,), (2.0,))
    cheaper = Figure("order", "instructions", (100.0,), (99.0,))
    other = Figure("place", "bytecodes", (100.0,), (110.0,))
    assert dearer([bytecodes, commands], 0.03) == [bytecodes, commands]
    assert dearer([bytecodes, commands, cheaper, other], 0.03) == [commands, other]
    assert table([bytecodes, cheaper], 0.03).count("dearer") == 0


def test_figures_are_collected_from_all_runs() -> None:
    base = [[cost("a", bytecodes=10, calls=1)], [cost("a", bytecodes=12, calls=1)]]
    now = [[cost("a", bytecodes=20, calls=2)], [cost("a", bytecodes=20, calls=2)]]
    # One more run of each, which counts something else, and could not count everything.
    base += [[cost("a", instructions=5), cost("b", instructions=1)]]
    now += [[cost("a", instructions=6)]]
    assert figures(base, now) == [
        Figure("a", "bytecodes", (10, 12), (20, 20)),
        Figure("a", "calls", (1, 1), (2, 2)),
        Figure("a", "instructions", (5,), (6,)),
    ]


def test_a_table_names_an_operation_once() -> None:
    found = [
        Figure("order", "bytecodes", (1_800.0, 1_800.0), (1_900.0, 1_900.0)),
        Figure("order", "calls", (90.5,), (90.5,)),
        Figure("place", "calls", (10.0,), (9.0,)),
    ]
    lines = table(found, 0.03).splitlines()
    assert [line.split()[0] for line in lines] == ["operation", "order", "calls", "place"]
    assert lines[1].split()[2:] == ["1,800", "1,900", "+5.6%", "dearer", "0.00%"]
    assert lines[3].split()[2:] == ["10.00", "9.00", "-10.0%", "0.00%"]
    assert len({len(line) for line in lines}) == 1


def test_what_is_not_steady_is_said() -> None:
    steady = Figure("order", "calls", (1_000.0, 1_001.0), (1.0, 1.0))
    shaky = Figure("place", "bytecodes", (100.0, 105.0), (1.0, 1.0))
    assert "0.10% apart at most (order, calls)." in steadiness([steady])
    assert "not steady" not in steadiness([steady])
    assert "4.88% apart at most (place, bytecodes). That is not steady" in steadiness(
        [steady, shaky]
    )


def test_the_functions_that_became_dearer() -> None:
    base = [cost("a", {"x.py:f": 10.0, "x.py:g": 5.0}), cost("b", {"x.py:h": 1.0})]
    now = [cost("a", {"x.py:f": 13.0, "x.py:new": 7.0, "x.py:g": 5.1}), cost("b")]
    assert dearer_functions("a", base, now) == ["x.py:new +7.00", "x.py:f +3.00"]
    assert dearer_functions("c", base, now) == []


# -- the trees -------------------------------------------------------------------------------------


def test_a_tree_is_laid_out_as_it_is_installed(repository: Path, tmp_path: Path) -> None:
    (repository / "lua" / "__pycache__").mkdir()
    (repository / "lua" / "new.lua").write_text("-- nobody has added this yet\n")
    now = working_tree(repository, tmp_path / "now")
    base = tree_of(repository, resolve(repository, "HEAD~1"), tmp_path / "base")
    files = {
        name: {str(file.relative_to(tree)): file.read_text() for file in tree.rglob("*.*")}
        for name, tree in (("base", base), ("now", now))
    }
    assert files["base"] == {
        "seckill/__init__.py": "# seckill\n",
        "seckill/server/__init__.py": "# server\n",
        "seckill/lua/__init__.py": "# lua\n",
    }
    assert files["now"] == files["base"] | {
        "seckill/server/__init__.py": "# later\n",
        "seckill/lua/new.lua": "-- nobody has added this yet\n",
    }
    assert not (now / "seckill/lua/__pycache__").exists()


def test_the_default_base(repository: Path) -> None:
    assert default_base(repository) == "HEAD~1"
    (repository / "lua" / "a.lua").write_text("-- changed\n")
    assert default_base(repository) == "HEAD"
    fork = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "--quiet", "-b", "faster")
    commit(repository)
    assert default_base(repository) == fork


def test_a_commit_without_an_intake(repository: Path, tmp_path: Path) -> None:
    git(repository, "rm", "--quiet", "-r", "server")
    with pytest.raises(Failed, match="has not all of seckill, server, lua"):
        tree_of(repository, commit(repository), tmp_path)


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert compare.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_an_unknown_revision(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ROOT", repository)
    for revision in ("nowhere", "HEAD~9", "--help=x", "HEAD:lua"):
        said = said_by(capsys, "--", revision)
        assert said.startswith(f"compare: git knows no revision {revision!r} here; name a commit")


def test_no_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    assert "is no checkout of git" in said_by(capsys)


def test_no_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said_by(capsys).startswith("compare: git is not installed")


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "nowhere" / "figures.json"
    assert f"No such file or directory: '{file}'" in said_by(capsys, f"--json={file}")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--allow", "much", "'much' is no percentage; give 0 to 1000"),
        ("--allow", "-1", "'-1' is no percentage"),
        ("--allow", "nan", "'nan' is no percentage"),
        ("--bursts", "2", "'2' is no such number; give 3 to 10000"),
        ("--bursts", "x", "'x' is no such number"),
    ],
)
def test_bad_options(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main([f"{option}={value}"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# -- real runs -------------------------------------------------------------------------------------


def quiet(*_: object) -> None:
    pass


def test_a_tree_that_does_not_start(tmp_path: Path) -> None:
    tree = working_tree(ROOT, tmp_path)
    with (tree / "seckill" / "lane.py").open("a") as file:
        file.write("\nraise RuntimeError('planted')\n")
    with pytest.raises(Failed, match=r"^RuntimeError: planted$"):
        run(tree, 3, callgrind=False, say=quiet)


def test_another_tree_is_not_measured_instead(tmp_path: Path) -> None:
    """What is installed here would fill the gap."""
    tree = working_tree(ROOT, tmp_path)
    (tree / "seckill" / "server").rename(tmp_path / "elsewhere")
    with pytest.raises(Failed, match=r"is not of the tree that is measured|No module named"):
        run(tree, 3, callgrind=False, say=quiet)


def blamed(said: str, operation: str) -> str:
    """What is said from this operation's blame on; nothing, if it has not become dearer."""
    return said.partition(f"More than 4 % dearer: {operation}.")[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_order_that_became_dearer_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet", str(source))
    commit(source)
    with (source / "seckill" / "lane.py").open("a") as file:
        file.write(PLANTED)
    monkeypatch.setattr(compare, "ROOT", source)
    # Once is enough for what is planted; what may be chance is another matter.
    monkeypatch.setattr(compare, "RUNS", 1)
    written = tmp_path / "figures.json"
    arguments = ("HEAD", "--no-valgrind", "--bursts=3", "--allow=4", f"--json={written}")
    # On a busy machine what is kept for a moment is asked for each time, and three bursts may all
    # come in other rounds than those before: then once more.
    for _ in range(5):
        code = compare.main(arguments)
        said, progress = capsys.readouterr()
        if code == 1 and all(DEARER in blamed(said, operation) for operation in TOUCHED):
            break
    assert code == 1, progress
    # Where nobody watches a status line, a line for each run as it starts.
    assert progress.splitlines() == ["compare: base, run 1 of 1", "compare: now, run 1 of 1"]
    for operation in TOUCHED:
        assert DEARER in blamed(said, operation), said
    report: dict[str, Any] = msgspec.json.decode(written.read_bytes())
    assert report["base"] == git(source, "rev-parse", "HEAD")
    by_name = {(each["operation"], each["unit"]): each for each in report["figures"]}
    lane = by_name["Engine.reserve, no HTTP", "bytecodes"]
    assert lane["dearer"]
    # Not by much less, nor by something else.
    more = lane["now"][0] - lane["base"][0]
    assert 100 <= more <= 180
    assert by_name["Engine.reserve, no HTTP", "Redis commands"]["change"] == 0
