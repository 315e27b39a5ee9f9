"""Requests as nobody should write them: orders, and questions for places, with whatever a client,
a proxy or somebody with bad intent may do to them.

In what is drawn, SALE, QUEUE and TICKET stand for names of the test's own; KNOWN, OTHER, HOLDER and
NEW for the user tokens of four buyers, of whom HOLDER has the ticket and NEW was never seen before;
KEY for a key that nobody has used.
"""

from __future__ import annotations

import re
from itertools import pairwise, zip_longest
from typing import Final, NamedTuple

from hypothesis import strategies as st

__all__ = ["LAST", "TIME", "TWISTED", "Talk", "pieces_of", "talks"]

TIME: Final = "GET /v1/time HTTP/1.1\r\nHost: x\r\n\r\n"
LAST: Final = "GET /v1/time HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BODY: Final = '{"items":[{"sku":"a","quantity":1}]}'


class Talk(NamedTuple):
    """What is sent on one connection: requests, each as its head and its body; a place (in 1/10,000
    of the whole) with what takes its byte's place; where it is cut, in 1/10,000 as well. Without
    cuts a request is a piece, together with the one before it if it ``joins``. ``waits`` says after
    which pieces the client waits until all is answered."""

    requests: list[tuple[str, str]]
    noise: tuple[int, bytes] | None
    cuts: list[int] | None
    joins: list[bool]
    waits: list[bool]


def pieces_of(talk: Talk, own: dict[str, str]) -> list[bytes]:
    """What is sent, piece by piece. ``own`` is what the stand-ins stand for."""
    names = re.compile("|".join(own))
    # Only in heads: the length of a body has been said already.
    parts = [
        (names.sub(lambda found: own[found[0]], head) + body).encode()
        for head, body in talk.requests
    ]
    if talk.noise is None and talk.cuts is None:
        pieces = parts[:1]
        for part, joins in zip_longest(parts[1:], talk.joins[: len(parts) - 1]):
            if joins:
                pieces[-1] += part
            else:
                pieces.append(part)
        return pieces
    raw = b"".join(parts)
    if talk.noise is not None:
        at, noise = len(raw) * talk.noise[0] // 10_000, talk.noise[1]
        raw = raw[:at] + noise + raw[at + 1 :]
    cuts = [0, *(len(raw) * cut // 10_000 for cut in talk.cuts or ()), len(raw)]
    return [raw[a:b] for a, b in pairwise(cuts) if a < b]


# Most of these lists hold what is plain many times, or nothing would ever take the hot route.
ODD_BODIES: Final = (
    '{"items":[{"sku":"a","quantity":2},{"sku":"b","quantity":1}]}',
    '{"items":[{"sku":"a","quantity":1}],"attrs":"买"}',
    '{"items":[{"sku":"b","quantity":9}]}',
    '{"items":[{"sku":"x","quantity":1}]}',
    '{"items":[{"sku":"a","quantity":0}]}',
    '{"items":[],"more":1}',
    '{"items":"\ufeff"}',
    "[",
    "",
    TIME,
)
BODIES = st.sampled_from([*[BODY] * 20, *ODD_BODIES])
ODD_PATHS: Final = (
    *("/v1/sales/SALE/orders?", "/v1/sales/SALE/orders#a", "/v1/sales/SALE/%6frders"),
    *("/v1/sales/none/orders", "/v1/sales//orders", "//v1/sales/SALE/orders"),
    *("/v1/sales/SALE/orders:batch", "http://x/v1/sales/SALE/orders", "*"),
    *("/v1/sales/QUEUE/orders", "/v1/sales/SALE/./orders", "/v1/sales/SALE/orders\0"),
)
PATHS = st.sampled_from([*["/v1/sales/SALE/orders"] * 40, *ODD_PATHS])
PLACES = st.sampled_from(
    [
        *["/v1/sales/QUEUE/tickets/me"] * 30,
        *("/v1/sales/QUEUE/tickets/me?", "/v1/sales/QUEUE/tickets/me#a"),
        *("/v1/sales/SALE/tickets/me", "/v1/sales/none/tickets/me"),
        *("/v1/sales/QUEUE/tickets/m%65", "http://x/v1/sales/QUEUE/tickets/me"),
    ]
)
# Not "Connection: upgrade": aiohttp may lose what follows an upgrade that it declines.
ODD_LINES: Final = (
    *("X-A: b\r\n", "X-A:b \r\n", "X-A: b\r\n c\r\n", "X-A: b\r\n\tc\r\n", " folded\r\n"),
    *("X-A: b\n", "X-A: b\rX-B: c\r\n", "X-A : b\r\n", "X-A\r\n", ": b\r\n", "X-A: é\r\n"),
    *("Expect: 100-continue\r\n", "Expect: x\r\n", "Upgrade: h2c\r\n"),
    *("Upgrade: websocket\r\n", "Connection: keep-alive\r\n", "Connection: close\r\n"),
    *("Connection: close\r\nConnection: keep-alive\r\n", "Connection: x, close\r\n"),
    *("Content-Encoding: identity\r\n", "Content-Encoding: gzip\r\n", "Accept: a/b\r\n"),
    *("Seckill-Buyer: bob\r\n", "Idempotency-Key: k\r\n", "idempotency-key: KEY\r\n"),
    *("Host: y\r\n", "Content-Type: a/b\r\n", "Seckill-Proof: 1\r\n", "Cookie: a=b\r\n"),
    *("Authorization: Bearer OTHER\r\n", "AUTHORIZATION: Bearer KNOWN\r\n"),
)
MORE = st.sampled_from([*[""] * 30, *ODD_LINES])
ODD_KINDS: Final = (
    *("application/json;charset=utf-8", "Application/JSON", "application/json ", "a/b", ""),
)
KINDS = st.sampled_from([*["application/json"] * 20, *ODD_KINDS])
TOKENS = st.sampled_from([*["KNOWN"] * 8, *["OTHER"] * 4, "NEW", "x.y.z", ""])
HOLDERS = st.sampled_from([*["HOLDER"] * 8, "KNOWN", "NEW", "x.y.z"])
ODD_SCHEMES: Final = ("bearer ", "Bearer  ", "Basic ", "")
SCHEMES = st.sampled_from([*["Bearer "] * 20, *ODD_SCHEMES])
ODD_KEYS: Final = ("KEY2", "a b", "", "k" * 70, "é")
KEYS = st.sampled_from([*["KEY"] * 12, *ODD_KEYS])
TICKETS = st.sampled_from([*["TICKET"] * 20, "", "x", "A" * 28])
CODINGS = st.sampled_from(
    ["chunked"] * 6 + ["Chunked", "xchunked", "chunked, identity", "identity", "gzip, chunked", ""]
)


def _chunks(body: str, size: str) -> str:
    return f"{size}\r\n{body}\r\n0\r\n\r\n" if body else "0\r\n\r\n"


@st.composite
def framings(draw: st.DrawFn, body: str) -> tuple[str, str]:
    """The lines that say where a body ends, and the body as it is sent."""
    length = len(body.encode())
    plain = f"Content-Length: {length}\r\n"
    how = draw(st.sampled_from(["length"] * 30 + ["chunked"] * 4 + ["both", "double", "odd"]))
    if how == "length":
        return plain, body
    sizes = [f"{length:x}"] * 6 + [f"{length:X};a=b", f"0{length:x}", f"{length + 1:x}", "g"]
    chunked = _chunks(body, draw(st.sampled_from(sizes)))
    coding = f"Transfer-Encoding: {draw(CODINGS)}\r\n"
    if how == "chunked":
        return coding, chunked
    if how == "both":
        lines = draw(st.permutations([plain, coding]))
        return "".join(lines), draw(st.sampled_from([body, chunked, "0\r\n\r\n" + TIME]))
    others = (length, length + 1, max(0, length - 1), 0)
    if how == "double":
        return plain + f"Content-Length: {draw(st.sampled_from(others))}\r\n", body
    odd = draw(
        st.sampled_from(
            [
                *(f"+{length}", f"-{length}", f"0{length}", f" {length} ", f"{length}, {length}"),
                *(hex(length), f"{length}_", "", "x", *map(str, others)),
            ]
        )
    )
    return f"Content-Length: {odd}\r\n", body


@st.composite
def _heads(draw: st.DrawFn, method: str, path: str, lines: list[str]) -> str:
    if draw(st.integers(0, 4)) == 0:
        lines = draw(st.permutations(lines))
    if draw(st.integers(0, 9)) == 0:
        del lines[draw(st.integers(0, len(lines) - 1))]
    if draw(st.integers(0, 9)) == 0:
        lines = [_odd(line) for line in lines]
    version = draw(st.sampled_from(["1.1"] * 30 + ["1.0", "1.2", "2.0"]))
    head = f"{method} {path} HTTP/{version}\r\n{''.join(lines)}\r\n"
    if draw(st.integers(0, 30)) == 0:
        head = head.replace("\r\n", "\n", draw(st.sampled_from([1, 2, 99])))
    return head


def _odd(line: str) -> str:
    name, colon, value = line.partition(":")
    return name.swapcase() + colon + value


_PLAIN: Final = (
    "POST /v1/sales/SALE/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer KNOWN\r\n"
    "Idempotency-Key: KEY\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
)
_PLAIN_QUESTION: Final = (
    "GET /v1/sales/QUEUE/tickets/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer HOLDER\r\n"
    "Seckill-Ticket: TICKET\r\n\r\n"
)


def _twisted() -> list[tuple[str, str]]:
    head = _PLAIN.removesuffix("\r\n")
    found = [(f"{head}{line}\r\n", BODY) for line in ODD_LINES]
    changes = (
        ("Key: KEY\r", "Key: {}\r", ODD_KEYS),
        ("application/json", "{}", ODD_KINDS),
        ("Bearer ", "{}", ODD_SCHEMES),
        ("/v1/sales/SALE/orders", "{}", ODD_PATHS),
        ("KNOWN", "{}", ("NEW", "x.y.z", "HOLDER")),
        ("HTTP/1.1", "HTTP/{}", ("1.0", "1.2", "2.0")),
        ("POST", "{}", ("PUT", "GET", "post")),
    )
    for plain, changed, odd in changes:
        found += [(_PLAIN.replace(plain, changed.format(each)), BODY) for each in odd]
    length = str(len(BODY))
    found += [(_PLAIN.replace(length, str(len(body.encode()))), body) for body in ODD_BODIES]
    return found


TWISTED: Final = _twisted()
"""Each order that is plain but for one thing."""


@st.composite
def orders(draw: st.DrawFn) -> tuple[str, str]:
    """An order, or nearly: plain, plain but for one thing, or anything."""
    which = draw(st.sampled_from(["plain", "twisted", "anything"]))
    if which == "twisted":
        return draw(st.sampled_from(TWISTED))
    if which == "plain":
        whole = _PLAIN.replace("KNOWN", draw(st.sampled_from(["KNOWN", "OTHER"])))
        return whole, draw(st.sampled_from([BODY, BODY.replace('"a"', '"b"')]))
    framing, body = draw(framings(draw(BODIES)))
    lines = [
        "Host: x\r\n",
        f"Authorization: {draw(SCHEMES)}{draw(TOKENS)}\r\n",
        f"Idempotency-Key: {draw(KEYS)}\r\n",
        f"Content-Type: {draw(KINDS)}\r\n",
        framing,
        draw(MORE),
    ]
    method = draw(st.sampled_from(["POST"] * 30 + ["PUT", "GET", "post"]))
    return draw(_heads(method, draw(PATHS), lines)), body


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, str]:
    """A question for a place, or nearly. Every other one is plain."""
    if draw(st.booleans()):
        return _PLAIN_QUESTION, ""
    lines = [
        "Host: x\r\n",
        f"Authorization: {draw(SCHEMES)}{draw(HOLDERS)}\r\n",
        f"Seckill-Ticket: {draw(TICKETS)}\r\n",
        draw(MORE),
    ]
    method = draw(st.sampled_from(["GET"] * 30 + ["HEAD", "POST"]))
    return draw(_heads(method, draw(PLACES), lines)), ""


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    """What is sent on one connection. Most of the time a piece is a request, now and then several
    requests are one, and now and then it is cut anywhere."""
    kinds = st.sampled_from([st.just((TIME, "")), *[orders()] * 3, *[questions()] * 2])
    requests = [draw(draw(kinds)) for _ in range(draw(st.integers(1, 4)))]
    cuts = None
    if draw(st.integers(0, 2)) == 0:
        cuts = sorted(draw(st.lists(st.integers(0, 9_999), max_size=5)))
    noise = None
    if draw(st.integers(0, 7)) == 0:
        noise = draw(st.integers(0, 9_999)), draw(st.binary(max_size=2))
    joins = draw(st.lists(st.booleans(), max_size=4))
    waits = draw(st.lists(st.booleans(), min_size=6, max_size=6))
    return Talk([*requests, (LAST, "")], noise, cuts, joins, waits)
