"""The gate before an order and a ticket: gates of a mall's own, good and bad ones, and the proof of
work.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from seckill.admission import Admission
from seckill.embedded import EmbeddedServer
from seckill.engine import Engine
from seckill.errors import InvalidInput
from seckill.server import create_app, gate
from seckill.server.caller import Caller
from seckill.server.gate import Entry, Gate, ProofOfWork, ask, built_in, with_secret
from seckill.server.problems import GATE_REFUSED, PROOF_REQUIRED, Problem
from seckill.server.settings import Gate as Section
from seckill.server.settings import Settings
from tests.web.intake import Answer, Intake, serving

ROOT = Path(__file__).parents[2]
OLD, NEW, OTHER = "old" * 11, "new" * 11, "other" * 7
BITS = 8
NOW_S = 1_800_000_000.0
BODY = {"items": [{"sku": "a", "quantity": 1}]}

Open = Callable[..., AbstractAsyncContextManager[Intake]]


GUIDE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")


def solve(challenge: str, bits: int) -> str:
    """The solver that the guide shows."""
    source = next(
        block for block in re.findall(r"(?ms)^```python\n(.*?)^```$", GUIDE) if "sha256" in block
    )
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102 - the guide's own text
    return str(namespace["solve"](challenge, bits))


def entry(proof: str = "", *, sale: str = "s1", buyer: str = "b1") -> Entry:
    return Entry(sale, buyer, "k1", "", "127.0.0.1", proof)


def proof_for(
    work: ProofOfWork, *, sale: str = "s1", buyer: str = "b1", now_s: float = NOW_S
) -> str:
    made = work.challenge(sale, buyer, now_s)
    return solve(made.text, made.bits)


def refused(work: ProofOfWork, asked: Entry, now_s: float = NOW_S) -> str:
    """What is wrong with a proof, in words."""
    problem = work.check(asked, now_s)
    assert problem is not None
    assert problem.kind is PROOF_REQUIRED
    assert problem.field == "Seckill-Proof"
    assert problem.detail is not None
    wrong, _, remedy = problem.detail.partition("; ")
    assert "/v1/sales/{sale}/challenge" in remedy
    return wrong


# -- the proof of work by itself --------------------------------------------------------------


def test_a_proof_counts_for_its_buyer_and_sale_until_it_expires() -> None:
    work = ProofOfWork(BITS, [NEW], life_s=300)
    made = work.challenge("s1", "b1", NOW_S)
    assert (made.bits, made.expires_ms) == (BITS, int(NOW_S + 300) * 1000)
    proof = solve(made.text, made.bits)
    for now_s in (NOW_S, NOW_S + 1, NOW_S + 299.9):
        assert work.check(entry(proof), now_s) is None
    assert refused(work, entry(proof), NOW_S + 300) == "the challenge has expired"


def test_each_wrong_proof_is_refused_in_its_own_words() -> None:
    work = ProofOfWork(BITS, [NEW, OLD])
    good = proof_for(work)
    assert work.check(entry(good), NOW_S) is None
    challenge, _, suffix = good.partition(":")
    key, expires_s, bits, sale, buyer, mac = challenge.split(".")
    # One bit is missing.
    lame = next(
        text
        for n in range(10_000)
        if sha256((text := f"{challenge}:{n}").encode()).digest()[0] == 1
    )
    wrong = {
        "nothing": entry(),
        "another buyer's": entry(good, buyer="b2"),
        "another sale's": entry(good, sale="s2"),
        "a removed secret's": entry(proof_for(ProofOfWork(BITS, [OTHER]))),
        "expired": entry(proof_for(work, now_s=NOW_S - 301)),
        "too few bits": entry(proof_for(ProofOfWork(BITS - 1, [NEW]))),
        "not solved": entry(lame),
        "forged": entry(f"{key}.{expires_s}.{bits}.{sale}.{buyer}.{mac[::-1]}:{suffix}"),
        "text": entry("please"),
    }
    words = {what: refused(work, asked) for what, asked in wrong.items()}
    assert len(set(words.values())) == len(words), words
    assert words["another buyer's"] == "the challenge is for another buyer"
    assert words["not solved"] == "its SHA-256 does not begin with 8 zero bits"
    assert words["too few bits"] == "the challenge was for 7 bits, now it takes 8"


@pytest.mark.parametrize(
    ("part", "text", "words"),
    [
        (0, "00000000", "the challenge was signed with a secret that is not in use here any more"),
        (1, "1900000000", "the challenge was not made here"),
        (1, "soon", "the challenge was not made here"),
        (2, "9", "the challenge was not made here"),
        (2, "all", "the challenge was not made here"),
        (3, "00000000", "the challenge is for another sale"),
        (4, "00000000", "the challenge is for another buyer"),
        (5, "", "the challenge was not made here"),
        (5, "0" * 32, "the challenge was not made here"),
        (5, "é" * 32, "this is not a challenge, a colon and its solution"),
    ],
)
def test_no_part_of_a_challenge_can_be_changed(part: int, text: str, words: str) -> None:
    work = ProofOfWork(BITS, [NEW])
    parts = work.challenge("s1", "b1", NOW_S).text.split(".")
    parts[part] = text
    assert refused(work, entry(solve(".".join(parts), BITS))) == words


def test_a_forger_cannot_rename_a_challenge_of_another_buyer_or_sale() -> None:
    # The short digests choose the words only: with the right ones in place the MAC still decides.
    work = ProofOfWork(BITS, [NEW])
    mine = work.challenge("s1", "b1", NOW_S).text.split(".")
    for asked in (entry(buyer="b2"), entry(sale="s2"), entry(sale="s1b", buyer="1")):
        theirs = work.challenge(asked.sale, asked.buyer, NOW_S).text.split(".")
        forged = ".".join([*mine[:3], *theirs[3:5], mine[5]])
        proof = solve(forged, BITS)
        assert refused(work, entry(proof, sale=asked.sale, buyer=asked.buyer)) == (
            "the challenge was not made here"
        )


@pytest.mark.parametrize(
    "proof",
    [
        ":",
        "a:b",
        ".....:",
        "......:1",
        "a" * 10_000_000,
        "." * 128,
        "é.1.1.1.1.1:1",
        "\udcff.1.1.1.1.1:1",
        "1.1.1.1.1.1",
        "\0",
    ],
)
def test_text_that_is_no_proof_is_refused(proof: str) -> None:
    work = ProofOfWork(BITS, [NEW])
    assert refused(work, entry(proof))


def test_a_long_proof_is_not_even_hashed() -> None:
    work = ProofOfWork(1, [NEW])
    good = proof_for(work)
    assert "not a challenge" in refused(work, entry(good.ljust(129, "0")))
    challenge = good.partition(":")[0]
    # As long as it may be, it is a proof like any other.
    room = 128 - len(challenge) - 1
    longest = next(
        text
        for n in range(100)
        if sha256((text := f"{challenge}:{n:0{room}}").encode()).digest()[0] < 128
    )
    assert len(longest) == 128
    assert work.check(entry(longest), NOW_S) is None


def test_secrets_rotate_without_a_buyer_noticing() -> None:
    stages = [ProofOfWork(BITS, secrets) for secrets in ([OLD], [OLD, NEW], [NEW, OLD], [NEW])]
    # Workers restart one by one, so in each step the two sides must know what the other signs.
    for one, other in pairwise(stages):
        assert other.check(entry(proof_for(one)), NOW_S) is None
        assert one.check(entry(proof_for(other)), NOW_S) is None
    assert "not in use here any more" in refused(stages[3], entry(proof_for(stages[0])))


def test_harder_work_than_is_asked_for_counts() -> None:
    assert ProofOfWork(4, [NEW]).check(entry(proof_for(ProofOfWork(9, [NEW]))), NOW_S) is None


@pytest.mark.parametrize(
    ("field", "bits", "secrets"),
    [
        ("gate.work_bits", 0, [NEW]),
        ("gate.work_bits", 33, [NEW]),
        ("gate.secrets", 8, []),
        ("gate.secrets[1]", 8, [NEW, "too short"]),
    ],
)
def test_settings_that_cannot_work_are_refused(field: str, bits: int, secrets: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        ProofOfWork(bits, secrets)
    assert caught.value.field == field
    assert "too short" not in str(caught.value)


def test_the_settings_decide_whether_there_is_a_gate() -> None:
    assert built_in(Section()) is None
    with pytest.raises(InvalidInput) as caught:
        built_in(Section(work_bits=8))
    assert caught.value.field == "gate.secrets"
    work = built_in(Section(work_bits=8, life_s=10, secrets=(SecretStr(NEW), SecretStr(OLD))))
    assert work is not None
    assert work.challenge("s1", "b1", NOW_S).expires_ms == int(NOW_S + 10) * 1000
    assert work.check(entry(proof_for(ProofOfWork(8, [OLD]))), NOW_S) is None


def test_the_settings_that_the_guide_shows_are_settings() -> None:
    shown = re.findall(r"(?ms)^```ini\n(.*?)^```$", GUIDE)
    assert [Settings(**tomllib.loads(text)).gate.work_bits for text in shown] == [16]


def test_development_gets_a_secret_of_its_own() -> None:
    first, second = (with_secret(Section(work_bits=8)) for _ in range(2))
    assert first.secrets != second.secrets
    assert built_in(first) is not None
    assert with_secret(first) == first


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
@pytest.mark.parametrize("bits", [1, 8, 12])
def test_the_solver_for_mini_programs_finds_proofs(bits: int) -> None:
    work = ProofOfWork(bits, [NEW])
    program = ROOT / "examples" / "proof-of-work.js"
    # Sale and buyer of any length make challenges of the same length, so it is stretched here: the
    # blocks of SHA-256 must be right wherever they end.
    for text in (work.challenge("s1", "b1", NOW_S).text, *("x" * n for n in (1, 54, 55, 63, 119))):
        done = subprocess.run(
            ["node", program, text, str(bits)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        proof = done.stdout.strip()
        assert proof.startswith(f"{text}:")
        assert int.from_bytes(sha256(proof.encode()).digest(), "big") >> (256 - bits) == 0
        if "." in text:
            assert work.check(entry(proof), NOW_S) is None


# -- asking a gate ----------------------------------------------------------------------------


class MallGate:
    """Answers what it is told to, after having noted what it was asked."""

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self.answer = answer
        self.asked: list[Entry] = []

    async def admit(self, entry: Entry) -> Problem | None:
        self.asked.append(entry)
        return await self.answer()  # type: ignore[no-any-return]


async def lets_in() -> None:
    return None


async def refuses() -> Problem:
    return Problem(GATE_REFUSED, "call our service desk")


async def raises_a_problem() -> None:
    raise Problem(GATE_REFUSED, "call our service desk")


async def raises() -> None:
    raise RuntimeError("the risk service said 13800138000")


async def hangs() -> None:
    await asyncio.Event().wait()


async def says_false() -> bool:
    return False


async def says_true() -> bool:
    return True


async def waits_for_something_cancelled() -> None:
    other = asyncio.ensure_future(asyncio.Event().wait())
    other.cancel()
    await other


FAILING = (raises, hangs, says_false, says_true, waits_for_something_cancelled)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate has 50 ms here, and every test may be the first to complain."""
    monkeypatch.setattr(gate, "LIMIT_S", 0.05)
    monkeypatch.setattr(gate, "_complaints", gate._Complaints())


async def test_who_is_let_in_and_who_is_not() -> None:
    await ask(MallGate(lets_in), entry())
    for answer in (refuses, raises_a_problem):
        with pytest.raises(Problem) as caught:
            await ask(MallGate(answer), entry())
        assert (caught.value.kind, caught.value.detail) == (GATE_REFUSED, "call our service desk")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("answer", FAILING)
async def test_a_gate_that_fails_lets_nobody_in(answer: Callable[[], Awaitable[Any]]) -> None:
    with pytest.raises(Problem) as caught:
        await ask(MallGate(answer), entry())
    assert (caught.value.kind.http, caught.value.kind.code) == (503, "gate_unavailable")


@pytest.mark.usefixtures("quick")
async def test_a_failing_gate_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        with pytest.raises(Problem):
            await ask(MallGate(raises), entry())
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_request_that_is_cancelled_stays_cancelled() -> None:
    task = asyncio.ensure_future(ask(MallGate(hangs), entry()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- over HTTP --------------------------------------------------------------------------------


async def by_header(request: web.Request) -> Caller:
    """A buyer by the header Test-Buyer, the mall's backend otherwise."""
    buyer = request.headers.get("Test-Buyer", "")
    return (
        Caller(buyer, tier="gold") if buyer else Caller(scopes=frozenset({"backend"}), name="mall")
    )


@pytest.fixture
def intake_with(redis_server: EmbeddedServer) -> Open:
    """Opens an intake with a gate, or with settings that have one."""

    @asynccontextmanager
    async def make(
        gate: Gate | None = None, settings: Settings | None = None
    ) -> AsyncIterator[Intake]:
        engine = Engine(redis_server.url, durability="memory", sweep_ms=0)
        app = create_app(engine, settings, identify=by_header, gate=gate)
        async with engine, serving(app) as base, aiohttp.ClientSession() as session:
            yield Intake(session, base, engine)

    return make


async def order(
    intake: Intake, sale: str, buyer: str | None = "b1", key: str = "k1", **headers: str
) -> Answer:
    who = {"Seckill-Buyer": "b9"} if buyer is None else {"Test-Buyer": buyer}
    headers = {"Idempotency-Key": key, **who, **headers}
    return await intake.call("POST", f"/v1/sales/{sale}/orders", json=BODY, headers=headers)


async def challenge(intake: Intake, sale: str, buyer: str = "b1") -> Answer:
    return await intake.call("GET", f"/v1/sales/{sale}/challenge", headers={"Test-Buyer": buyer})


async def test_an_order_takes_a_proof_and_its_retry_the_same_one(intake_with: Open) -> None:
    settings = Settings(gate=Section(work_bits=BITS, secrets=(SecretStr(NEW),)))
    async with intake_with(settings=settings) as intake:
        sale = (await intake.open_sale({"a": 5})).id
        bare = await order(intake, sale)
        assert bare.is_problem(403, "proof_required")
        assert bare.json["field"] == "Seckill-Proof"
        assert "/challenge" in bare.json["detail"]
        given = await challenge(intake, sale)
        assert given.http == 200
        assert given.headers["Cache-Control"] == "no-store"
        assert given.json.keys() == {"challenge", "bits", "expires_ms"}
        assert given.json["bits"] == BITS
        assert 290 < given.json["expires_ms"] / 1000 - time() <= 300
        header = {"Seckill-Proof": solve(given.json["challenge"], BITS)}
        created = await order(intake, sale, **header)
        assert created.http == 201
        again = await order(intake, sale, **header)
        assert (again.http, again.json["order"]) == (200, created.json["order"])
        assert (await order(intake, sale, key="k2", **header)).http == 201
        stolen = await order(intake, sale, "b2", **header)
        assert stolen.is_problem(403, "proof_required")
        assert "another buyer" in stolen.json["detail"]
        # The mall's own programs need none, for whatever buyer.
        assert (await order(intake, sale, None)).http == 201


def in_line() -> dict[str, Any]:
    """What makes a sale one with a queue that calls nobody yet."""
    opens_at = datetime.now(UTC) + timedelta(minutes=10)
    return {"admission": Admission(mode="queue"), "opens_at": opens_at}


async def join(intake: Intake, sale: str, buyer: str | None = "b1", **headers: str) -> Answer:
    who = {"Seckill-Buyer": "b9"} if buyer is None else {"Test-Buyer": buyer}
    return await intake.call("POST", f"/v1/sales/{sale}/tickets", headers=who | headers)


async def test_a_ticket_takes_a_proof_and_an_order_the_same_one(intake_with: Open) -> None:
    settings = Settings(gate=Section(work_bits=BITS, secrets=(SecretStr(NEW),)))
    async with intake_with(settings=settings) as intake:
        sale = (await intake.open_sale({"a": 5}, **in_line())).id
        bare = await join(intake, sale)
        assert bare.is_problem(403, "proof_required")
        assert bare.json["field"] == "Seckill-Proof"
        given = (await challenge(intake, sale)).json
        header = {"Seckill-Proof": solve(given["challenge"], given["bits"])}
        stolen = await join(intake, sale, "b2", **header)
        assert stolen.is_problem(403, "proof_required")
        # Nobody has a place without a proof.
        mine = await join(intake, sale, **header)
        assert (mine.http, mine.json["place"]["number"]) == (201, 0)
        assert (await join(intake, sale, **header)).code == "exists"
        # Looking and leaving costs no work.
        me, ticket = f"/v1/sales/{sale}/tickets/me", mine.json["place"]["ticket"]
        who = {"Test-Buyer": "b1", "Seckill-Ticket": ticket}
        assert (await intake.call("GET", me, headers=who)).http == 200
        assert (await order(intake, sale)).is_problem(403, "proof_required")
        assert (await order(intake, sale, **header)).is_problem(409, "not_open")
        assert (await intake.call("DELETE", me, headers=who)).http == 200
        # The mall's own programs need none, for whatever buyer.
        assert (await join(intake, sale, None)).http == 201


async def test_a_gate_of_the_malls_own_is_told_who_wants_to_join(intake_with: Open) -> None:
    gate = MallGate(lets_in)
    async with intake_with(gate) as intake:
        sale = (await intake.open_sale({"a": 5}, **in_line())).id
        assert (await join(intake, sale, **{"Seckill-Proof": "captcha-7"})).http == 201
        assert gate.asked == [Entry(sale, "b1", "", "gold", "127.0.0.1", "captcha-7")]
        gate.answer = refuses
        refusal = await join(intake, sale, "b2")
        assert refusal.is_problem(403, "gate_refused")
        assert refusal.json["detail"] == "call our service desk"
        assert (await join(intake, sale, None)).http == 201
        assert len(gate.asked) == 2


@pytest.mark.usefixtures("quick")
async def test_a_failing_gate_lets_nobody_join(intake_with: Open) -> None:
    gate = MallGate(raises)
    async with intake_with(gate) as intake:
        sale = (await intake.open_sale({"a": 5}, **in_line())).id
        failed = await join(intake, sale)
        assert failed.is_problem(503, "gate_unavailable")
        assert b"13800138000" not in failed.body
        gate.answer = lets_in
        assert (await join(intake, sale)).json["place"]["number"] == 0


async def test_two_workers_with_the_same_settings_know_each_others_challenges(
    intake_with: Open,
) -> None:
    settings = Settings(gate=Section(work_bits=BITS, secrets=(SecretStr(NEW),)))
    async with intake_with(settings=settings) as one, intake_with(settings=settings) as two:
        sale = (await one.open_sale({"a": 5})).id
        given = (await challenge(one, sale)).json
        header = {"Seckill-Proof": solve(given["challenge"], given["bits"])}
        assert (await order(two, sale, **header)).http == 201


async def test_without_a_proof_of_work_there_is_nothing_to_solve(intake_with: Open) -> None:
    async with intake_with() as intake:
        sale = (await intake.open_sale({"a": 5})).id
        given = await challenge(intake, sale)
        assert given.json == {"challenge": "", "bits": 0, "expires_ms": 0}
        # A client that always sends the header is none the worse.
        assert (await order(intake, sale, **{"Seckill-Proof": "x"})).http == 201


async def test_a_challenge_is_for_a_buyer_and_a_sale(intake_with: Open) -> None:
    async with intake_with(ProofOfWork(BITS, [NEW])) as intake:
        nobody = await intake.get("/v1/sales/s1/challenge")
        assert nobody.is_problem(400, "buyer_required")
        odd = await challenge(intake, "no%20sale")
        assert odd.is_problem(400, "invalid_input")
        assert odd.json["field"] == "sale"


async def test_a_gate_of_the_malls_own_is_told_who_wants_to_order(intake_with: Open) -> None:
    gate = MallGate(lets_in)
    async with intake_with(gate) as intake:
        sale = (await intake.open_sale({"a": 5})).id
        assert (await order(intake, sale, **{"Seckill-Proof": "captcha-7"})).http == 201
        assert gate.asked == [Entry(sale, "b1", "k1", "gold", "127.0.0.1", "captcha-7")]
        gate.answer = refuses
        refusal = await order(intake, sale, key="k2")
        assert refusal.is_problem(403, "gate_refused")
        assert refusal.json["detail"] == "call our service desk"
        assert (await order(intake, sale, None)).http == 201
        assert len(gate.asked) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("answer", FAILING)
async def test_a_failing_gate_costs_no_order_and_tells_nothing(
    intake_with: Open, answer: Callable[[], Awaitable[Any]]
) -> None:
    gate = MallGate(answer)
    async with intake_with(gate) as intake:
        sale = (await intake.open_sale({"a": 5})).id
        failed = await order(intake, sale)
        assert failed.is_problem(503, "gate_unavailable")
        assert b"13800138000" not in failed.body
        gate.answer = lets_in
        assert (await order(intake, sale)).http == 201
