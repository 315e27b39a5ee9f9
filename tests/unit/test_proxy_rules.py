"""The scripts keep to what the proxies of managed Redis look for before they let one through.

Such a proxy reads the text of a script to learn which keys it will touch (docs/redis.md says who
asks for what). So whatever is decided only when the script runs is refused: a key in a variable, a
computed command, a call inside a call. Here each script is read as such a proxy reads it, whole,
with its fragments in place. That the numbers of keys and arguments are those of its header is in
tests/lua/test_headers.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.crc import key_slot

from seckill.keys import (
    drawing_key,
    group_keys,
    queue_keys,
    refusals_key,
    shard_keys,
    stream_key,
)
from seckill.scripts import NAMES, script

ROOT = Path(__file__).parents[2]

# The commands that our scripts may call, and where in each stand its keys: the place of the first
# and of the last, counted from the command's own name; -1 is the last word, None is no key. None of
# them blocks, chooses by chance, asks more than the server that has the keys, or changes the
# database or the connection. Look a new one up in the vendors' lists before it is put in here.
COMMANDS: dict[str, tuple[int, int] | None] = {
    "DEL": (1, -1),
    "EXISTS": (1, -1),
    "GET": (1, 1),
    "GETRANGE": (1, 1),
    "HDEL": (1, 1),
    "HEXISTS": (1, 1),
    "HGET": (1, 1),
    "HGETALL": (1, 1),
    "HINCRBY": (1, 1),
    "HLEN": (1, 1),
    "HMGET": (1, 1),
    "HSET": (1, 1),
    "LLEN": (1, 1),
    "LPUSH": (1, 1),
    "LRANGE": (1, 1),
    "LTRIM": (1, 1),
    "PEXPIRE": (1, 1),
    "RENAME": (1, 2),
    "RPUSH": (1, 1),
    "SADD": (1, 1),
    "SMEMBERS": (1, 1),
    "SREM": (1, 1),
    "STRLEN": (1, 1),
    "TIME": None,
    "UNLINK": (1, -1),
    "XACK": (1, 1),
    "XADD": (1, 1),
    "XGROUP": (2, 2),
    "XINFO": (2, 2),
    "XLEN": (1, 1),
    "XPENDING": (1, 1),
    "XRANGE": (1, 1),
    # As lua/take.lua has it: GROUP g consumer COUNT n STREAMS key id, and never BLOCK.
    "XREADGROUP": (7, 7),
    "XTRIM": (1, 1),
    "ZADD": (1, 1),
    "ZCARD": (1, 1),
    "ZRANGEBYSCORE": (1, 1),
    "ZREMRANGEBYSCORE": (1, 1),
}
# No vendor names a limit. A script goes over the wire once for each server and restart, and whoever
# stands in between reads it as one word.
BYTES_MAX = 65_536

# What a proxy gives as its reason, by the word that a test looks for.
LITERAL = "first word of a call is no literal"
COMMAND = "no command that every server lets a script call"
KEY = "a key is no KEYS[n]"
EXPRESSION = "KEYS outside of a key's place"
NESTED = "a call inside a call"
WAY = "redis is used otherwise than by redis.call(…)"
CHANCE = "chance decides"
SIZE = "too long"


class Call(NamedTuple):
    """One ``redis.call(…)``: the words between its brackets, and their place in the script."""

    words: tuple[str, ...]
    start: int
    end: int


def plain(source: str) -> str:
    """A script without its comments. Strings stay: a dash in one is no comment."""
    tokens = r"--\[\[.*?\]\]|--[^\n]*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
    return re.sub(
        tokens,
        lambda found: " " if found[0].startswith("--") else found[0],
        source,
        flags=re.DOTALL,
    )


def calls_of(text: str) -> Iterator[Call]:
    """Every call of a command, those inside another one too."""
    for found in re.finditer(r"\bredis\s*\.\s*p?call\s*\(", text):
        words, end = words_from(text, found.end())
        yield Call(tuple(words), found.start(), end)


def words_from(text: str, at: int) -> tuple[list[str], int]:
    """The arguments of a call whose bracket opens just before ``at``, and where it ends."""
    words, begun, depth = [], at, 1
    while depth:
        char = text[at]
        if char in "'\"":
            # To the end of the string, past what a backslash hides.
            at += 1
            while text[at] != char:
                at += 2 if text[at] == "\\" else 1
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if (char == "," and depth == 1) or depth == 0:
            words.append(text[begun:at].strip())
            begun = at + 1
        at += 1
    return words, at


def keys_at(call: Call) -> slice:
    """Where the keys of a call stand."""
    places = COMMANDS[call.words[0].strip("'")]
    if places is None:
        return slice(0, 0)
    first, last = places
    return slice(first, len(call.words) if last < 0 else last + 1)


def broken_rules(source: str) -> list[tuple[str, str]]:
    """The rules that a script breaks, each with the text that breaks it."""
    text = plain(source)
    calls = list(calls_of(text))
    found = [*_broken_by(calls, text), *_lines(EXPRESSION, r"KEYS", without_keys(text, calls))]
    found += _lines(WAY, r"\bredis\b", re.sub(r"\bredis\s*\.\s*call\s*\(", "", text))
    found += _lines(CHANCE, r"\bmath\s*\.\s*random|\bloadstring\b|\bload\b|\b_G\b", text)
    if len(source.encode()) > BYTES_MAX:
        found.append((SIZE, f"{len(source.encode()):,} bytes"))
    return found


def without_keys(text: str, calls: list[Call]) -> str:
    """The script without the keys that stand in the place of one; what is left stands elsewhere."""
    for call in sorted(calls, key=lambda each: each.start, reverse=True):
        if call.words[0].strip("'") in COMMANDS:
            words = list(call.words)
            words[keys_at(call)] = [
                re.sub(r"^KEYS\[\d+\]$", "", word) for word in words[keys_at(call)]
            ]
            text = f"{text[: call.start]}({', '.join(words)}){text[call.end :]}"
    return text


def _lines(rule: str, pattern: str, text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if re.search(pattern, line):
            yield rule, line.strip()


def _broken_by(calls: list[Call], text: str) -> Iterator[tuple[str, str]]:
    for call in calls:
        shown = text[call.start : call.end]
        literal = re.fullmatch(r"'([A-Z]+)'", call.words[0])
        if literal is None:
            yield LITERAL, shown
        elif literal[1] not in COMMANDS or "'BLOCK'" in call.words:
            yield COMMAND, shown
        else:
            keys = call.words[keys_at(call)]
            if not all(re.fullmatch(r"KEYS\[\d+\]", word) for word in keys):
                yield KEY, shown
            if not keys and COMMANDS[literal[1]] is not None:
                yield KEY, shown
        if any("redis" in word for word in call.words):
            yield NESTED, shown


# -- the scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", NAMES)
def test_a_proxy_lets_every_script_through(verb: str) -> None:
    assert broken_rules(script(verb).source) == []


@pytest.mark.parametrize("verb", NAMES)
def test_no_call_is_overlooked(verb: str) -> None:
    """What the rules are held against is all that the script calls."""
    text = plain(script(verb).source)
    assert len(list(calls_of(text))) == len(re.findall(r"\bredis\b", text)) > 0


SOUND = """--[[
sound: a script that breaks no rule.
]]
local function look(key) return redis.call('HGET', KEYS[2], key) end -- redis.call('GET', key)
redis.call('HSET', KEYS[1], 'a (b', "it's", look('x'), unpack({ 'KEYS', 1 }, 1, 2))
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[7])) do look(group[2]) end
redis.call('UNLINK', KEYS[1], KEYS[2])
return redis.call('TIME')
"""


def test_a_sound_script_breaks_no_rule() -> None:
    # A string is no key, be it called so.
    assert broken_rules(SOUND.replace("'KEYS'", "'keys'")) == []
    assert [call.words[0] for call in calls_of(plain(SOUND))] == [
        "'HGET'",
        "'HSET'",
        "'XINFO'",
        "'UNLINK'",
        "'TIME'",
    ]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (LITERAL, "redis.call(verb, KEYS[1])"),
        (LITERAL, "redis.call('H' .. 'GET', KEYS[1], 'a')"),
        (LITERAL, "redis.call(ARGV[1], KEYS[1])"),
        (LITERAL, "redis.call('hget', KEYS[1], 'a')"),
        (COMMAND, "redis.call('SELECT', 1)"),
        (COMMAND, "redis.call('KEYS', '*')"),
        (COMMAND, "redis.call('SCAN', 0)"),
        (COMMAND, "redis.call('PUBLISH', 'a', 'b')"),
        (COMMAND, "redis.call('BLPOP', KEYS[1], 0)"),
        (COMMAND, "redis.call('XREAD', 'STREAMS', KEYS[1], '0')"),
        (
            COMMAND,
            "redis.call('XREADGROUP', 'GROUP', 'g', 'c', 'BLOCK', 0, 'STREAMS', KEYS[1], '>')",
        ),
        (COMMAND, "redis.call('SPOP', KEYS[1])"),
        (COMMAND, "redis.call('WAIT', 1, 0)"),
        (COMMAND, "redis.call('CONFIG', 'GET', 'a')"),
        (KEY, "redis.call('GET', 'sk:{a:0}:sale')"),
        (KEY, "redis.call('GET', ARGV[1])"),
        (KEY, "redis.call('GET', key)"),
        (KEY, "redis.call('GET', KEYS[i])"),
        (KEY, "redis.call('GET', KEYS[1] .. ':one')"),
        (KEY, "redis.call('UNLINK', KEYS[1], key)"),
        (KEY, "redis.call('RENAME', KEYS[1], 'b')"),
        (KEY, "redis.call('UNLINK', unpack(KEYS))"),
        (KEY, "redis.call('XGROUP', 'CREATE', name, 'g', '0')"),
        (KEY, "redis.call('HLEN')"),
        (EXPRESSION, "local key = KEYS[1]"),
        (EXPRESSION, "if KEYS[13] then look('x') end"),
        (EXPRESSION, "look(KEYS[1])"),
        (EXPRESSION, "redis.call('HSET', KEYS[1], 'a', KEYS[2])"),
        (EXPRESSION, "for i = 1, #KEYS do look(i) end"),
        (NESTED, "redis.call('HSET', KEYS[1], 'a', redis.call('GET', KEYS[2]))"),
        (NESTED, "redis.call('RPUSH', KEYS[1], unpack(redis.call('HKEYS', KEYS[2])))"),
        (WAY, "redis.pcall('GET', KEYS[1])"),
        (WAY, "local call = redis.call"),
        (WAY, "redis.replicate_commands()"),
        (WAY, "redis.log(1, 'a')"),
        (CHANCE, "local n = math.random(2)"),
        (CHANCE, "loadstring('return 1')()"),
        (SIZE, "-- " + "x" * BYTES_MAX),
    ],
)
def test_each_rule_is_broken_by_what_it_forbids(rule: str, line: str) -> None:
    # The last word of the script has to stay the last one.
    sound = SOUND.replace("'KEYS'", "'keys'").replace("return redis", f"{line}\nreturn redis")
    assert rule in {found for found, _ in broken_rules(sound)}


# -- how they are called ------------------------------------------------------------------------


@pytest.mark.parametrize("sale", ["a", "A-b_c", "0", "x" * 40])
def test_all_keys_of_a_sale_are_in_one_slot(sale: str) -> None:
    keys = (
        *shard_keys(sale),
        *queue_keys(sale),
        *group_keys(sale, "ledger"),
        *group_keys(sale, "any {group}"),
        drawing_key(sale),
        refusals_key(sale),
        stream_key(sale),
    )
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert {key.count("{") for key in keys if "group" not in key} == {1}


def test_two_sales_are_in_two_slots() -> None:
    slots = {key_slot(shard_keys(f"sale-{number}")[0].encode()) for number in range(1000)}
    # Of 1,000 in 16,384, some 30 meet another one by chance.
    assert len(slots) > 900


def test_no_script_runs_inside_a_transaction() -> None:
    """The proxies refuse EVAL, EVALSHA and SCRIPT between MULTI and EXEC."""
    inside = [
        part
        for folder in ("seckill", "server")
        for path in (ROOT / folder).rglob("*.py")
        for part in transactions_of(path.read_text("utf-8"))
    ]
    assert inside, "nobody looks at anything"
    assert [part for part in inside if runs_a_script(part)] == []


def test_a_script_inside_a_transaction_would_be_seen() -> None:
    source = (
        "async def f(c):\n    async with c.pipeline(transaction=True) as p:\n        p.{}\n"
        "    async with c.pipeline(transaction=False) as p:\n        p.evalsha('1', 1, 'a')\n"
    )
    found = transactions_of(source.format("hget('a', 'b')"))
    assert [runs_a_script(part) for part in found] == [False]
    for call in ("evalsha('1', 1, 'a')", "execute_command('EVALSHA', '1')", "script_load('')"):
        found = transactions_of(source.format(call))
        assert [runs_a_script(part) for part in found] == [True]


def transactions_of(source: str) -> list[str]:
    """What stands inside of each pipeline that is a transaction, which is what it is by default."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.AsyncWith | ast.With):
            continue
        for item in node.items:
            opened = ast.unparse(item.context_expr)
            if ".pipeline(" in opened and "transaction=False" not in opened:
                found.append("\n".join(ast.unparse(line) for line in node.body))
    return found


def runs_a_script(text: str) -> bool:
    return (
        re.search(r"\beval(sha)?\(|\bscript_|['\"](EVAL|SCRIPT)", text, re.IGNORECASE) is not None
    )


def test_the_guide_says_which_check_must_be_off() -> None:
    """One rule of one vendor can't be kept: a batch of any length needs unpack."""
    unpacks = any(re.search(r"\bunpack\(", plain(script(verb).source)) for verb in NAMES)
    guide = (ROOT / "docs" / "redis.md").read_text("utf-8")
    assert unpacks == ("`script_check_enable`" in guide)
