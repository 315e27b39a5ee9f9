"""The draw: the vectors of docs/fair-draw.md, and fairness counted over many seeds.

Every seed is fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
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
from tests.draws import made_draw

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
