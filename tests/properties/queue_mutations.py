"""Deliberate bugs in the scripts of the queue, for its twin to find."""

from __future__ import annotations

from tests.properties.mutations import Mutation

MUTATIONS = (
    Mutation("a turn is given twice", ("admit",), "queue.head = to\n", "queue.head = to - 1\n"),
    Mutation(
        "places that were given up are called",
        ("admit",),
        "if tonumber(position) < to then",
        "if false then",
    ),
    Mutation(
        "looking renews a token's life", ("admit",), "step.at_ms, step.unused, step.age)",
        "now_ms, step.unused, step.age)",
    ),
    Mutation("no bound of overbooking", ("admit",), "math.min(count, room)", "count"),
    Mutation("the line stands still", ("admit",), "pace.credit + earned", "pace.credit"),
    Mutation("the rate is ignored", ("admit",), "waiting, credit_at(pace, now_ms)", "waiting"),
    Mutation("a pause is ignored", ("admit",), "if not closed and (not last", "if (not last"),
    Mutation("a pause uses turns up", ("admit",), "closed and 0 or 1", "1"),
    Mutation("lapses are not counted", ("admit",), "queue.lapses + step.unused", "queue.lapses"),
    Mutation("uses are not counted", ("admit",), "step.unused = step.unused - count", ""),
    Mutation(
        "joining again gives a second place", ("join",), "given[buyer] or known[i]", "given[buyer]"
    ),
    Mutation(
        "whoever is called may stand in line again", ("join",), "position < queue.lapsed",
        "position < queue.head",
    ),
    Mutation(
        "the list closes too late", ("join", "admit"), "sale.now_ms >= queue.draw_ms",
        "sale.now_ms > queue.draw_ms",
    ),
    Mutation(
        "late joiners leave a hole", ("leave",), "if queue.closed and not queue.ranked then",
        "if queue.closed and not queue.ranked and number < queue.closed then",
    ),
    Mutation("a turn is not freed", ("leave",), "freed .. ':l', 1", "freed .. ':l', 0"),
    Mutation("a token never lapses", ("reserve",), "untils[i] <= turn_ms", "untils[i] == 0"),
    Mutation("a buyer comes many times", ("reserve",), "if steps and not purse_text", "if steps"),
    Mutation(
        "a token outlives its ticket", ("reserve",), "elseif tickets and", "elseif false and"
    ),
)  # fmt: skip
