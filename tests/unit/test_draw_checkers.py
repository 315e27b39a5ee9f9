"""The stand-alone checkers of examples/draw agree with the engine, and with each other."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seckill import draw
from seckill.draw import ranks_of
from tests.draws import LIST_SECRET, made_draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "draw"
GUIDE = ROOT / "docs" / "fair-draw.md"


def random_draws(count: int) -> list[dict[str, Any]]:
    """Draws of all kinds, each with one buyer and the place that the engine gives."""
    chance = random.Random("draws")
    cases = []
    for index in range(count):
        size = chance.choice([1, 2, 3, 10, 40])
        weights = [chance.choice([0, 1, 1, 1, 2, 7]) for _ in range(size)]
        weights[chance.randrange(size)] = 1
        made = made_draw(
            weights=weights,
            seed=hashlib.sha256(b"draw %d" % index).digest(),
            public_value=chance.choice([None, "3", "双色球 03 07 12"]),
        )
        number = chance.choice([n for n, weight in enumerate(weights) if weight])
        mix = made.record.mix
        assert mix is not None
        cases.append(
            {
                "draw": json.loads(made.record.encode()),
                "tickets": made.tickets.decode(),
                "buyer": f"buyer-{number}",
                "salt": draw.salt_of(LIST_SECRET, f"buyer-{number}").hex(),
                "place": [ranks_of(mix, weights)[number] + 1, sum(map(bool, weights))],
            }
        )
    return cases


def python_checker() -> Any:
    spec = importlib.util.spec_from_file_location("check", EXAMPLES / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node here")
    return found


NODE_BATCH = """
import { readFileSync } from 'node:fs'
const { check } = await import(process.argv[2])
const cases = JSON.parse(readFileSync(process.argv[3], 'utf8'))
const answers = cases.map(({ draw, tickets, buyer, salt }) => {
  try {
    return check(draw, Buffer.from(tickets), buyer, salt)
  } catch (error) {
    return error.message
  }
})
console.log(JSON.stringify(answers))
"""


def node_answers(cases: list[dict[str, Any]], folder: Path) -> Any:
    (folder / "batch.mjs").write_text(NODE_BATCH, "utf-8")
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    words = [node(), "batch.mjs", (EXAMPLES / "check.mjs").as_uri(), "cases.json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def python_answers(cases: list[dict[str, Any]]) -> list[Any]:
    check, answers = python_checker().check, []
    for case in cases:
        try:
            place = check(case["draw"], case["tickets"].encode(), case["buyer"], case["salt"])
            answers.append(list(place))
        except ValueError as error:
            answers.append(str(error))
    return answers


def test_checkers_agree_with_the_engine(tmp_path: Path) -> None:
    cases = random_draws(1_000)
    expected = [case["place"] for case in cases]
    assert python_answers(cases) == expected
    assert node_answers(cases, tmp_path) == expected


def test_checkers_refuse_what_was_changed(tmp_path: Path) -> None:
    (case,) = random_draws(1)
    record, tickets = case["draw"], case["tickets"]
    cut = tickets[: tickets.rstrip().rindex("\n") + 1]
    changed = [
        case | {"draw": record | {"seed": bytes(32).hex()}},
        case | {"draw": record | {"definition": record["definition"] + " "}},
        case | {"draw": record | {"tickets": record["tickets"] + 1}},
        case | {"draw": record | {"sale": "another"}},
        case | {"tickets": cut},
        case | {"tickets": tickets + "\n"},
        case | {"buyer": "somebody"},
        case | {"salt": bytes(16).hex()},
    ]
    named = next(one for one in random_draws(9) if one["draw"]["public_value"] is not None)
    unnamed = next(one for one in random_draws(9) if one["draw"]["public_value"] is None)
    # A value that somebody adds or drops when the list is known.
    for one, value in ((named, None), (unnamed, "29")):
        changed.append(one | {"draw": one["draw"] | {"public_value": value}})
    answers = python_answers(changed)
    assert all(isinstance(answer, str) for answer in answers)
    seed, definition, count, sale, digest, _, absent, _, dropped, added = answers
    assert dropped == added == "the definition and the public value do not fit"
    assert seed == "the seed is not the one that was committed to"
    assert definition.startswith("the definition is not")
    assert count == "the list has another number of tickets"
    assert sale == "the list is of another sale"
    assert digest == "the list is not the one that was closed"
    assert absent.startswith("this buyer is not in the list")
    assert node_answers(changed, tmp_path) == answers


def test_checkers_as_the_guide_calls_them(tmp_path: Path) -> None:
    """The guide shows the Python one; the other takes the same words and prints the same."""
    shown, printed = re.search(  # type: ignore[union-attr]
        r"(?ms)^\$ python3 examples/draw/check\.py (.*?)\n(.*?)^```$", GUIDE.read_text("utf-8")
    ).groups()
    words = [
        str(EXAMPLES / word) if word.endswith((".json", ".txt")) else word for word in shown.split()
    ]
    for name in ("check.py", "check.mjs"):
        done = run(name, tmp_path, *words)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr


def run(name: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = sys.executable if name.endswith(".py") else node()
    command = [program, str(EXAMPLES / name), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


BUYER = ("buyer-5", "dcb818e148225df50166164c920a8816")
GOOD = ("draw.json", "tickets.txt", *BUYER)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "usage: "),
        (GOOD[:3], 2, "usage: "),
        (("none.json", *GOOD[1:]), 2, "a file or the salt is of no use: "),
        (("draw.json", "none.txt", *BUYER), 2, "a file or the salt is of no use: "),
        (("tickets.txt", *GOOD[1:]), 2, "a file or the salt is of no use: "),
        (("list.json", *GOOD[1:]), 2, "a file or the salt is of no use: "),
        ((*GOOD[:3], "no hex"), 2, "a file or the salt is of no use: "),
        (("secret.json", *GOOD[1:]), 2, "the seed is not revealed yet\n"),
        (("another.json", *GOOD[1:]), 1, "the seed is not the one that was committed to\n"),
        (("draw.json", "shorter.txt", *BUYER), 1, "the list is not the one that was closed\n"),
        ((*GOOD[:2], "buyer-6", BUYER[1]), 1, "this buyer is not in the list, or the salt is"),
    ],
)
@pytest.mark.parametrize("name", ["check.py", "check.mjs"])
def test_checkers_say_in_one_line_what_is_wrong(
    name: str, words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    record = json.loads((EXAMPLES / "draw.json").read_bytes())
    tickets = (EXAMPLES / "tickets.txt").read_text("utf-8")
    files = {
        "draw.json": json.dumps(record),
        "secret.json": json.dumps(record | {"seed": None}),
        "another.json": json.dumps(record | {"seed": bytes(32).hex()}),
        "list.json": "[]",
        "tickets.txt": tickets,
        "shorter.txt": "".join(tickets.splitlines(keepends=True)[:-1]),
    }
    for file, text in files.items():
        (tmp_path / file).write_text(text, "utf-8")
    done = run(name, tmp_path, *words)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith(said)
    assert "place " not in done.stdout
    # The guide shows one of these.
    if words[1:2] == ("shorter.txt",):
        assert f"$ python3 examples/draw/check.py {' '.join(words)}\n…\n{said}```\n" in (
            GUIDE.read_text("utf-8")
        )


@pytest.mark.parametrize("name", ["check.py", "check.mjs"])
def test_checkers_need_nothing_else(name: str) -> None:
    text = (EXAMPLES / name).read_text("utf-8")
    imported = re.findall(r"(?m)^(?:import|from) (\w+)|from '(.*?)'$", text)
    allowed = {"hashlib", "hmac", "json", "sys", "pathlib"}
    assert imported
    for python, javascript in imported:
        assert python in allowed or javascript.startswith("node:")
    # Short enough to be read by whoever does not want to trust it: the reckoning itself, and all.
    reckoning = re.search(r"(?ms)^(?:def|export function) check\(.*?\n(?=\n\n|})", text)
    assert reckoning is not None
    assert len(reckoning[0].splitlines()) <= 43
    assert sum(map(bool, text.splitlines())) <= 68
