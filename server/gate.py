"""The gate: what a mall may ask before it lets a buyer order or join a queue, and the proof of work
that is built in. docs/gate.md tells how to plug in another.

A challenge is ``<key>.<expires_s>.<bits>.<sale>.<buyer>.<mac>``: nothing of it is stored, it is
signed with HMAC-SHA-256 and bound to its sale, its buyer and its end. The proof is
``<challenge>:<suffix>``, whose SHA-256 begins with that many zero bits. It counts for that buyer in
that sale until it expires, so a blind retry works.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Iterable
from hashlib import blake2b, sha256
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from aiohttp import web
from pydantic import SecretStr

from seckill.errors import InvalidInput

from . import settings
from .problems import GATE_UNAVAILABLE, PROOF_REQUIRED, Problem

if TYPE_CHECKING:
    from .caller import Caller
    from .intake import Intake

__all__ = [
    "PROOF_HEADER",
    "Challenge",
    "Entry",
    "Gate",
    "ProofOfWork",
    "ask",
    "built_in",
    "pass_gate",
    "with_secret",
]

_log = logging.getLogger("seckill.server")

PROOF_HEADER: Final = "Seckill-Proof"
LIMIT_S: Final = 1.0
LOG_EVERY_S: Final = 60.0
SECRET_BYTES_MIN: Final = 32
BITS_MAX: Final = 32
# A challenge has about 75 characters. Nothing longer is looked at, let alone hashed.
PROOF_CHARS_MAX: Final = 128

_MAC_CHARS: Final = 32
_PARTS: Final = 6
_WHERE: Final = "get a challenge from /v1/sales/{sale}/challenge, solve it, and send it along"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Who wants to order, or to join the queue: the buyer, the idempotency key ("" for who joins),
    the member tier ("" if there is none), the client's address, and the header Seckill-Proof (""
    if there is none). The sale is what the request names; it may not exist."""

    sale: str
    buyer: str
    key: str
    tier: str
    address: str
    proof: str


class Gate(Protocol):
    """Asked once for every request of a buyer to order or to join a queue, retries included, and
    not for the mall's own programs."""

    async def admit(self, entry: Entry) -> Problem | None:
        """None lets the buyer in, a Problem is the answer. It has a second. If it takes longer or
        raises, nobody is let in and the answer is 503: a gate that is down must not be open."""


async def pass_gate(
    intake: Intake, request: web.Request, caller: Caller, sale: str, key: str = ""
) -> None:
    """Returns if the gate, where there is one, lets this caller in. ``key`` is the order's. Raises
    what ``ask`` raises."""
    if intake.gate is None or not caller.buyer:
        return
    proof, address = request.headers.get(PROOF_HEADER, ""), intake.addresses.of(request)
    await ask(intake.gate, Entry(sale, caller.buyer, key, caller.tier, address, proof))


async def ask(gate: Gate, entry: Entry) -> None:
    """Returns if the gate lets this buyer in. Raises its Problem, or GATE_UNAVAILABLE."""
    if type(gate) is ProofOfWork:
        # It never waits, and a time limit would cost as much as the check.
        problem = gate.check(entry, time())
    else:
        problem = await _answer_of(gate, entry)
    if problem is not None:
        raise problem


async def _answer_of(gate: Gate, entry: Entry) -> Problem | None:
    try:
        async with asyncio.timeout(LIMIT_S):
            answer = await gate.admit(entry)
        # A gate that says False or True instead must not be taken for either.
        if answer is not None and not isinstance(answer, Problem):
            raise TypeError(f"a gate answers None or a Problem, not {type(answer).__name__}")
    except Problem as problem:
        return problem
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Something that the gate waited for was cancelled, and not this request.
        _complaints.add(error)
    except Exception as error:  # noqa: BLE001 - a gate may raise anything
        _complaints.add(error)
    else:
        return answer
    return Problem(GATE_UNAVAILABLE)


class _Complaints:
    """Says in the log that the gate fails, and not once for each of ten thousand requests."""

    def __init__(self) -> None:
        self._unsaid = 0
        self._quiet_until_s = 0.0

    def add(self, error: BaseException) -> None:
        self._unsaid += 1
        if monotonic() < self._quiet_until_s:
            return
        _log.error("the gate failed, buyers were refused: %d so far", self._unsaid, exc_info=error)
        self._unsaid = 0
        self._quiet_until_s = monotonic() + LOG_EVERY_S


_complaints: Final = _Complaints()


class Challenge(msgspec.Struct, frozen=True):
    """``text`` is to be solved; it ends at ``expires_ms``, Unix time."""

    text: str
    bits: int
    expires_ms: int


class ProofOfWork:
    """The built-in gate: a buyer's device must have hashed a while, 2**bits times on average.

    It slows down whoever runs thousands of accounts on a few machines, and nobody else: a proof
    counts for one buyer in one sale, and says nothing about who the buyer is.
    """

    def __init__(self, bits: int, secrets: Iterable[str], *, life_s: int = 300) -> None:
        """The first of the secrets signs, all of them are accepted. All processes that serve a
        sale need the same ones. Raises InvalidInput."""
        if not 1 <= bits <= BITS_MAX:
            raise InvalidInput("gate.work_bits", f"{bits} bits", f"pass 1 to {BITS_MAX}")
        keys = [secret.encode() for secret in secrets]
        if not keys:
            raise InvalidInput(
                "gate.secrets",
                "a proof of work is asked for, and there is no secret to sign challenges with",
                f"set one of {SECRET_BYTES_MIN} random bytes or more, the same in every worker",
            )
        for place, key in enumerate(keys):
            if len(key) < SECRET_BYTES_MIN:
                raise InvalidInput(
                    f"gate.secrets[{place}]",
                    f"it has {len(key)} bytes",
                    f"take {SECRET_BYTES_MIN} or more: openssl rand -hex {SECRET_BYTES_MIN}",
                )
        self.bits = bits
        self._life_s = life_s
        self._keys = {_name_of(key): key for key in keys}
        self._signing = _name_of(keys[0])

    def challenge(self, sale: str, buyer: str, now_s: float) -> Challenge:
        """A challenge for this buyer in this sale. ``now_s`` is Unix time."""
        expires_s = int(now_s) + self._life_s
        mac = _mac(self._keys[self._signing], sale, buyer, str(expires_s), str(self.bits))
        parts = (self._signing, expires_s, self.bits, _digest(sale), _digest(buyer), mac)
        return Challenge(".".join(map(str, parts)), self.bits, expires_s * 1000)

    async def admit(self, entry: Entry) -> Problem | None:
        """Part of Gate."""
        return self.check(entry, time())

    def check(self, entry: Entry, now_s: float) -> Problem | None:
        """None if the proof is one, or what is wrong with it. ``now_s`` is Unix time."""
        wrong = self._wrong(entry, now_s)
        if wrong is None:
            return None
        return Problem(PROOF_REQUIRED, f"{wrong}; {_WHERE} in this header", PROOF_HEADER)

    def _wrong(self, entry: Entry, now_s: float) -> str | None:
        proof = entry.proof
        if not proof:
            return "there is no proof"
        parts = proof.partition(":")[0].split(".") if len(proof) <= PROOF_CHARS_MAX else ()
        if len(parts) != _PARTS or not proof.isascii():
            return "this is not a challenge, a colon and its solution"
        name, expires, bits, sale, buyer, mac = parts
        key = self._keys.get(name)
        if key is None:
            return "the challenge was signed with a secret that is not in use here any more"
        # These two only choose the words: what counts is that the MAC is over both.
        if sale != _digest(entry.sale):
            return "the challenge is for another sale"
        if buyer != _digest(entry.buyer):
            return "the challenge is for another buyer"
        if not hmac.compare_digest(mac, _mac(key, entry.sale, entry.buyer, expires, bits)):
            return "the challenge was not made here"
        if now_s >= int(expires):
            return "the challenge has expired"
        if int(bits) < self.bits:
            return f"the challenge was for {bits} bits, now it takes {self.bits}"
        if int.from_bytes(sha256(proof.encode()).digest(), "big") >> (256 - int(bits)):
            return f"its SHA-256 does not begin with {bits} zero bits"
        return None


def built_in(section: settings.Gate) -> ProofOfWork | None:
    """The gate of the settings, None if they ask for no work. Raises InvalidInput when they do and
    have no secret to sign with."""
    if section.work_bits == 0:
        return None
    keys = [secret.get_secret_value() for secret in section.secrets]
    return ProofOfWork(section.work_bits, keys, life_s=section.life_s)


def with_secret(section: settings.Gate) -> settings.Gate:
    """The same section, with a random secret if it has none: for development. Whoever starts the
    workers calls it once, before they are there, so that all of them have the same."""
    if section.secrets:
        return section
    fresh = SecretStr(secrets.token_hex(SECRET_BYTES_MIN))
    return section.model_copy(update={"secrets": (fresh,)})


def _name_of(key: bytes) -> str:
    return hmac.digest(key, b"seckill challenge: name of the key", "sha256").hex()[:8]


def _mac(key: bytes, sale: str, buyer: str, expires_s: str, bits: str) -> str:
    # The length keeps a sale and a buyer apart whatever characters are in them.
    text = f"seckill challenge|{expires_s}|{bits}|{len(sale)}|{sale}{buyer}"
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:_MAC_CHARS]


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
