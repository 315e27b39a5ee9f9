"""The draw: the vectors of docs/fair-draw.md, fairness counted over many seeds, and the stand-alone
checkers of examples/draw against the engine's.

Every seed is fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
import re
import shutil
import subprocess
import sys
from array import array
from collections import Counter
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seckill import draw
from seckill.draw import NO_RANK, DrawRecord, ListDigest, mix_of, ranks_of, score_of
from seckill.errors import InvalidInput
from tests.draws import LIST_SECRET, made_draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "draw"
DIGEST = hashlib.sha256(b"a list").hexdigest()
DRAWS = 10_000
NORMAL_1E6 = 4.753
"""A normal variable exceeds this with a chance of one in a million."""


def seed_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def mix_no(index: int, of: str = "") -> bytes:
    return mix_of(seed_of(f"{of}{index}"), DIGEST)


# -- the guide ----------------------------------------------------------------------------------


def guide() -> str:
    return (ROOT / "docs" / "fair-draw.md").read_text("utf-8")


def vectors() -> Any:
    (text,) = re.findall(r"(?ms)^```json\n(.*?)^```$", guide())
    return json.loads(text)


def test_vectors_of_the_guide() -> None:
    given = vectors()
    seed, secret = bytes.fromhex(given["seed"]), bytes.fromhex(given["list secret"])
    assert draw.commitment_of(seed) == given["commitment"]
    for ticket in given["tickets"]:
        salt = draw.salt_of(secret, ticket["buyer"])
        assert salt.hex() == ticket["salt"]
        assert draw.holder_of(salt, ticket["buyer"]) == ticket["holder"]
        assert draw.holders(secret)(ticket["buyer"]) == ticket["holder"]
    rows = [(ticket["number"], ticket["weight"], ticket["holder"]) for ticket in given["tickets"]]
    digest = ListDigest()
    lines = [
        digest.add(line)
        for line in draw.ticket_lines("evening-2026-11-28", given["definition id"], rows)
    ]
    assert digest.hex() == given["digest"]
    assert digest.tickets == len(rows)
    assert f"```\n{b''.join(lines).decode()}```\n" in guide()
    mix = mix_of(seed, given["digest"], given["public value"])
    assert mix.hex() == given["mix"]
    assert mix_of(seed, given["digest"]).hex() == given["mix without a public value"]
    for ticket in given["tickets"]:
        score = score_of(mix, ticket["number"], ticket["weight"]).hex()
        assert len(ticket["values"]) == ticket["weight"]
        assert score == min(ticket["values"])
    weights = [0] * 6
    for number, weight, _ in rows:
        weights[number] = weight
    ranks = {ticket["number"]: ticket["rank"] for ticket in given["tickets"]}
    assert list(ranks_of(mix, weights)) == [ranks.get(number, NO_RANK) for number in range(6)]
    assert sorted(ranks, key=ranks.__getitem__) == given["order"]


def test_files_of_the_guide() -> None:
    given = vectors()
    record = DrawRecord.decode((EXAMPLES / "draw.json").read_bytes())
    assert (record.seed, record.commitment) == (given["seed"], given["commitment"])
    assert (record.digest, record.public_value) == (given["digest"], given["public value"])
    assert record.mix == bytes.fromhex(given["mix"])
    assert f"```\n{(EXAMPLES / 'tickets.txt').read_text()}```\n" in guide()


def test_record_is_read_as_it_was_written() -> None:
    record = made_draw(5).record
    assert DrawRecord.decode(record.encode()) == record
    fields = [name for name, _ in re.findall(r"(?m)^\| `(\w+)` \| (.*)$", guide())]
    assert fields[-len(DrawRecord.__struct_fields__) :] == list(DrawRecord.__struct_fields__)


# -- ranks --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), max_size=400), st.binary(min_size=32, max_size=32))
def test_ranks_are_a_permutation_by_score(weights: list[int], mix: bytes) -> None:
    ranks = ranks_of(mix, weights)
    there = [number for number, weight in enumerate(weights) if weight]
    scored = sorted((score_of(mix, number, weights[number]), number) for number in there)
    expected = [NO_RANK] * len(weights)
    for rank, (_, number) in enumerate(scored):
        expected[number] = rank
    assert list(ranks) == expected


def test_one_who_leaves_changes_nobody_elses_order() -> None:
    mix = mix_no(0)
    everybody = ranks_of(mix, [1] * 100)
    weights = [1] * 100
    weights[7] = 0
    without = ranks_of(mix, weights)
    assert without[7] == NO_RANK
    assert [rank - (rank > everybody[7]) for n, rank in enumerate(everybody) if n != 7] == [
        rank for n, rank in enumerate(without) if n != 7
    ]


def test_a_large_draw_comes_in_small_steps() -> None:
    """Each step is bounded by counts, so that an event loop is never held for long."""
    tickets = 20_000
    steps = draw.rank_steps(mix_no(0), array("B", [1]) * tickets)
    count, ranks = 0, None
    while ranks is None:
        try:
            next(steps)
            count += 1
        except StopIteration as end:
            ranks = end.value
    assert count > tickets // 512
    by_score = sorted((score_of(mix_no(0), number), number) for number in range(tickets))
    assert sorted(range(tickets), key=ranks.__getitem__) == [number for _, number in by_score]


def test_equal_scores_go_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_scorer", lambda mix: lambda number, weight: bytes(32))
    assert list(ranks_of(bytes(32), [1] * 300)) == list(range(300))


@pytest.mark.parametrize("weight", [-1, 101])
def test_a_weight_out_of_range(weight: int) -> None:
    with pytest.raises(InvalidInput, match=r"weight: .* of ticket 1 is out of range"):
        ranks_of(bytes(32), [1, weight])


def test_secrets_of_another_length() -> None:
    with pytest.raises(InvalidInput, match="seed: has 31 bytes"):
        draw.commitment_of(bytes(31))
    with pytest.raises(InvalidInput, match="seed: has 33 bytes"):
        mix_of(bytes(33), DIGEST)
    with pytest.raises(InvalidInput, match="key: has 0 bytes"):
        draw.salt_of(b"", "buyer-1")


def test_everything_the_mix_is_made_of_counts() -> None:
    mixes = {
        mix_of(seed, digest, public)
        for seed in (bytes(32), bytes(31) + b"\1")
        for digest in (DIGEST, hashlib.sha256(b"another list").hexdigest())
        for public in (None, "7", "8")
    }
    assert len(mixes) == 2 * 2 * 3


# -- fairness -----------------------------------------------------------------------------------


def chi_square_bound(degrees: int) -> float:
    """What a chi-square variable exceeds about once in a million times (Wilson and Hilferty)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + NORMAL_1E6 * math.sqrt(part)) ** 3


def chi_square(counts: Counter[Any], cells: int, expected: float) -> float:
    empty = cells - len(counts)
    return sum((count - expected) ** 2 for count in counts.values()) / expected + empty * expected


def permutations_statistic(drawn: list[tuple[int, ...]], size: int) -> tuple[float, int]:
    cells = math.factorial(size)
    counts = Counter(drawn)
    assert set(counts) <= set(permutations(range(size)))
    return chi_square(counts, cells, len(drawn) / cells), cells - 1


def table_statistic(drawn: list[tuple[int, ...]], size: int) -> tuple[float, int]:
    """How often each ticket had each rank. Rows and columns have fixed sums, so the plain sum is
    too large by size / (size - 1), and there are (size - 1) squared degrees of freedom."""
    counts = Counter(pair for ranks in drawn for pair in enumerate(ranks))
    plain = chi_square(counts, size * size, len(drawn) / size)
    return plain * (size - 1) / size, (size - 1) ** 2


STATISTICS = {
    size: permutations_statistic if size <= 5 else table_statistic for size in range(3, 9)
}


@cache
def drawn_of(size: int) -> list[tuple[int, ...]]:
    """The ranks of so many tickets, with each of 10,000 seeds."""
    return [tuple(ranks_of(mix_no(index), [1] * size)) for index in range(DRAWS)]


@pytest.mark.parametrize("size", STATISTICS)
def test_every_order_is_equally_likely(size: int) -> None:
    statistic, degrees = STATISTICS[size](drawn_of(size), size)
    assert statistic < chi_square_bound(degrees)
    # Nor may it be more even than chance is.
    assert statistic > degrees / 10


@pytest.mark.parametrize("size", STATISTICS)
def test_a_slight_bias_would_be_seen(size: int) -> None:
    """The same statistics, of draws of which every fifteenth does not happen."""
    drawn = [
        tuple(range(size)) if index % 15 == 0 else ranks
        for index, ranks in enumerate(drawn_of(size))
    ]
    statistic, degrees = STATISTICS[size](drawn, size)
    assert statistic > chi_square_bound(degrees)


@pytest.mark.parametrize("weights", [(1, 2), (1, 3, 1), (5, 1, 1, 2), (10, 1, 1, 1, 1, 1)])
def test_weights_are_chances(weights: tuple[int, ...]) -> None:
    """Who comes first, and who comes second behind each first, within 3 sigma."""
    pairs: Counter[tuple[int, int]] = Counter()
    for index in range(DRAWS):
        ranks = list(ranks_of(mix_no(index, of="weighted"), weights))
        pairs[ranks.index(0), ranks.index(1)] += 1
    total = sum(weights)
    firsts = Counter[int]()
    for (first, _), count in pairs.items():
        firsts[first] += count
    for number, weight in enumerate(weights):
        assert_within_3_sigma(firsts[number], DRAWS, weight / total)
        for second, its_weight in enumerate(weights):
            if second != number:
                chance = weight / total * its_weight / (total - weight)
                assert_within_3_sigma(pairs[number, second], DRAWS, chance)


def assert_within_3_sigma(count: int, draws: int, chance: float) -> None:
    sigma = math.sqrt(draws * chance * (1 - chance))
    assert abs(count - draws * chance) <= 3 * sigma, (count, draws * chance, sigma)


# -- the stand-alone checkers ---------------------------------------------------------------------


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
            seed=seed_of(f"draw {index}"),
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
        case | {"draw": record | {"seed": None}},
        case | {"draw": record | {"definition": record["definition"] + " "}},
        case | {"draw": record | {"tickets": record["tickets"] + 1}},
        case | {"draw": record | {"sale": "another"}},
        case | {"tickets": cut},
        case | {"tickets": tickets + "\n"},
        case | {"buyer": "somebody"},
        case | {"salt": bytes(16).hex()},
    ]
    answers = python_answers(changed)
    assert all(isinstance(answer, str) for answer in answers)
    seed, _, definition, count, sale, digest, _, absent, _ = answers
    assert seed.startswith("the seed is not the one")
    assert definition.startswith("the definition is not")
    assert count == "the list has another number of tickets"
    assert sale == "the list is of another sale"
    assert digest == "the list is not the one that was closed"
    assert absent.startswith("this buyer is not in the list")
    assert node_answers(changed, tmp_path) == answers


def test_checkers_as_the_guide_calls_them(tmp_path: Path) -> None:
    """The guide shows the Python one; the other takes the same words and prints the same."""
    shown, printed = re.search(  # type: ignore[union-attr]
        r"(?ms)^\$ python3 examples/draw/check\.py (.*?)\n(.*?)^```$", guide()
    ).groups()
    words = [
        str(EXAMPLES / word) if word.endswith((".json", ".txt")) else word for word in shown.split()
    ]
    for program in ([sys.executable, "check.py"], [node(), "check.mjs"]):
        command = [program[0], str(EXAMPLES / program[1]), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr


@pytest.mark.parametrize("name", ["check.py", "check.mjs"])
def test_checkers_need_nothing_else(name: str) -> None:
    text = (EXAMPLES / name).read_text("utf-8")
    imported = re.findall(r"(?m)^(?:import|from) (\w+)|from '(.*?)'$", text)
    allowed = {"hashlib", "hmac", "json", "sys", "pathlib"}
    assert imported
    for python, javascript in imported:
        assert python in allowed or javascript.startswith("node:")
    assert len(text.splitlines()) <= 55
