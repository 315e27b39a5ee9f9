"""What a script says of itself at its head is what its body does."""

from __future__ import annotations

import re

import pytest

from seckill.keys import NAMES as KEY_NAMES
from seckill.scripts import FORMAT, NAMES, script
from seckill.status import Status
from tests.lua.core import LUA, header_answers, header_text

ORDER_EVENTS = {"held", "paying", "confirmed", "released", "expired", "refunded", "refund_due"}
QUEUE_EVENTS = {"opened", "closed", "listed", "valued", "drawn"}
SALE_EVENTS = {"created", "opened", "paused", "resumed", "closed", "settled", "stock", "rebuilt"}
HEADINGS = ("KEYS", "ARGV", "Returns", "Events")

all_scripts = pytest.mark.parametrize("verb", NAMES)


def own_body(verb: str) -> str:
    """A script's own text below its header, without what it includes and without comments."""
    text = (LUA / f"{verb}.lua").read_text("utf-8").partition("\n]]\n")[2]
    return re.sub(r"--[^\n]*", "", text)


def whole_body(verb: str) -> str:
    """The same with its fragments in place, as the server gets it."""
    return re.sub(r"--(?!\[\[)[^\n]*", "", script(verb).source.partition("\n]]\n")[2])


def section(verb: str, heading: str) -> str:
    """The lines under one heading of the header, up to the next heading or an empty line."""
    found = re.search(
        rf"^{heading} +(.*?)(?=^\S|\n\n|\Z)", header_text(verb) + "\n", re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"{verb}.lua has no {heading}"
    return " ".join(found[1].split())


def test_every_script_is_known_and_every_known_one_exists() -> None:
    assert sorted(path.stem for path in LUA.glob("*.lua")) == sorted(NAMES)


@all_scripts
def test_it_opens_with_its_promise(verb: str) -> None:
    first, *rest = header_text(verb).split("\n")
    assert re.fullmatch(rf"{verb}: [a-z].{{20,}}", first)
    promise = "\n".join([first, *rest]).partition("\n\n")[0]
    assert promise.endswith(".")


@all_scripts
def test_every_section_is_there_in_order(verb: str) -> None:
    places = [header_text(verb).index(f"\n{heading} ") for heading in HEADINGS]
    assert places == sorted(places)
    for heading in HEADINGS:
        assert section(verb, heading)
    assert header_answers(verb)


def key_count(verb: str) -> int:
    """How many keys the header tells of."""
    numbers = [int(number) for number in re.findall(r"\[(\d+)\]", section(verb, "KEYS"))]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


@all_scripts
def test_the_keys_are_the_same_everywhere(verb: str) -> None:
    """So KEYS[n] means the same in every fragment, and seckill.keys can build them once. A script
    may have more of its own after these."""
    expected = " ".join(f"[{i}] {name}" for i, name in enumerate(KEY_NAMES, 1))
    documented = section(verb, "KEYS")
    assert documented == expected or re.match(re.escape(expected) + r"[, ].*\[8\]", documented)


@all_scripts
def test_the_documented_arguments_are_those_it_reads(verb: str) -> None:
    documented = section(verb, "ARGV")
    numbers = [int(number) for number in re.findall(r"\[(\d+)(?: …)?\]", documented)]
    assert numbers == list(range(1, len(numbers) + 1))
    body = whole_body(verb)
    read = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", body)}
    open_end = re.search(r"for i = (\d+), #ARGV", body)
    if open_end:
        read.add(int(open_end[1]))
        assert f"[{open_end[1]} …]" in documented
    assert sorted(read) == numbers


@all_scripts
def test_arguments_are_named_at_the_top(verb: str) -> None:
    """All but create, which hands its many numbers straight on to one HSET."""
    if verb == "create":
        return
    top = own_body(verb).strip().split("\n\n")[0]
    names = re.search(r"local ([^=]+)=\s*ARGV\[1\]", top)
    assert names is not None
    assert names[1].split(",")[0].strip() == "caller"


@all_scripts
def test_the_answers_named_are_those_it_gives(verb: str) -> None:
    named = {status.name for status in header_answers(verb)}
    if verb == "reserve":
        named.remove("EXISTS")  # its answer is the record itself
    mapped = {"CONFIRMED", "REFUNDED", "RELEASED", "EXPIRED"}
    tables = r"local (?:SETTLED_)?STATUS = \{.*?\n\}"
    body = re.sub(tables, "", whole_body(verb), flags=re.DOTALL)
    used = set(re.findall(r"STATUS\.([A-Z_]+)", body))
    used |= mapped if "SETTLED_STATUS[" in body else set()
    assert named <= used
    assert set(re.findall(r"STATUS\.([A-Z_]+)", own_body(verb))) <= named


@all_scripts
def test_the_events_named_are_those_it_writes(verb: str) -> None:
    body = own_body(verb)
    written = {
        word
        for word in ORDER_EVENTS
        if re.search(rf"write_order\([^)]*'{word}'|kind = [^\n]*'{word}'|'{word}\|", body)
    }
    written |= {f"sale {word}" for word in SALE_EVENTS if f"'{word}|" in body}
    written |= {f"queue {word}" for word in QUEUE_EVENTS if f"'queue_{word}|" in body}
    written |= {"queue closed"} if "close_list(" in body else set()
    written |= {"sale paused"} if "pause_for_jump(" in body else set()
    written |= {"sale settled"} if "settle_if_done(" in body else set()
    documented = re.sub(r"\([^)]*\)", "", section(verb, "Events")).partition(";")[0]
    named = {word.strip() for word in documented.split(",")} - {"none"}
    if verb == "reserve":
        # A pause for a jump of the clock is told by the sale's header; it is rare here.
        written -= {"sale paused"} - named
    assert named == written


@all_scripts
def test_it_says_that_it_works_at_maxmemory_exactly_if_it_does(verb: str) -> None:
    assert ("Works at maxmemory" in header_text(verb)) == (
        "write_even_when_full()" in own_body(verb)
    )


@all_scripts
def test_commands_and_keys_are_written_literally(verb: str) -> None:
    """Managed proxies refuse a script whose keys or commands are held in variables."""
    body, count = whole_body(verb), key_count(verb)
    calls = re.findall(r"redis\.p?call\b(?=(.{0,100}))", body, re.DOTALL)
    assert calls
    for call in calls:
        # XINFO and XGROUP have two words.
        literal = re.match(
            r"\(\s*'([A-Z]+)'(?:, '(?:GROUPS|CREATE|STREAM)')?\s*(.*)", call, re.DOTALL
        )
        assert literal is not None, call
        if literal[1] != "TIME":
            # A group's read has its key behind what it reads for.
            skipped = ".*?'STREAMS'" if literal[1] == "XREADGROUP" else ""
            key = re.match(rf"{skipped},\s*KEYS\[(\d+)\]", literal[2])
            assert key, call
            assert 1 <= int(key[1]) <= count, call
    assert "redis.pcall" not in body
    assert "loadstring" not in body
    assert not re.findall(r"KEYS(?!\[\d+\])", body)
    assert not re.findall(r"ARGV(?!\[\d+\]|\[i\]|\[i \+ 1\])(?<!#ARGV)", body)
    assert "redis" not in re.sub(r"redis\.call\(", "", body)


def test_the_format_is_the_same_in_python() -> None:
    found = re.search(r"^local FORMAT = (\d+)$", (LUA / "lib/sale.lua").read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) == FORMAT


@all_scripts
def test_every_status_is_one_that_python_knows(verb: str) -> None:
    for name in re.findall(r"STATUS\.([A-Z_]+)", whole_body(verb)):
        assert name in Status.__members__
