"""rotate.lua: the key that signs is replaced in two calls, and no two rotations lose a key."""

from __future__ import annotations

import pytest
import redis

from seckill.status import Status
from seckill.tokens import KEYS_MAX
from tests.lua.queue_core import QueueCore
from tests.lua.test_fence import fenced


@pytest.fixture
def sale(client: redis.Redis) -> QueueCore:
    return QueueCore(client)


def accept(sale: QueueCore, known: str, new: str) -> tuple[Status, str]:
    """The first call."""
    status, coming = sale.run_with_queue("rotate", sale.definition_id, known, new)
    return Status(status), coming.decode()


def sign(sale: QueueCore, new: str) -> Status:
    """The second call."""
    status, nothing = sale.run_with_queue("rotate", sale.definition_id, "", new)
    assert nothing == b""
    return Status(status)


def keys(sale: QueueCore) -> str:
    return sale.queue_field("keys")


def test_a_key_is_accepted_before_it_signs(sale: QueueCore) -> None:
    sale.begin_queue()
    assert accept(sale, "k1,k2", "k3") == (Status.DONE, "k3")
    assert keys(sale) == "k1,k2,k3"
    assert sign(sale, "k3") is Status.DONE
    assert keys(sale) == "k3,k1,k2"
    assert sale.client.hget(sale.queue_keys[0], "coming") is None


def test_the_oldest_key_makes_room(sale: QueueCore) -> None:
    sale.begin_queue()
    for new in ("k3", "k4", "k5"):
        before = keys(sale)
        assert accept(sale, before, new) == (Status.DONE, new)
        # What signs now and what did before go on being accepted.
        assert keys(sale) == ",".join([*before.split(",")[: KEYS_MAX - 1], new])
        assert sign(sale, new) is Status.DONE
    assert keys(sale) == "k5,k4,k3"


def test_two_rotations_at_once_are_one(sale: QueueCore) -> None:
    sale.begin_queue()
    assert accept(sale, "k1,k2", "mine") == (Status.DONE, "mine")
    for known in ("k1,k2", "k1,k2,mine"):
        assert accept(sale, known, "yours") == (Status.ALREADY, "mine")
    assert sign(sale, "mine") is Status.DONE
    before = sale.dump()
    assert sign(sale, "mine") is Status.ALREADY
    assert sale.dump() == before
    assert keys(sale) == "mine,k1,k2"


def test_both_calls_can_be_repeated(sale: QueueCore) -> None:
    """Their answers may have been lost, and asking again must not let a key sign too early."""
    sale.begin_queue()
    accept(sale, "k1,k2", "k3")
    before = sale.dump()
    assert accept(sale, "k1,k2", "k3") == (Status.ALREADY, "k3")
    assert sale.dump() == before
    sign(sale, "k3")
    accept(sale, "k3,k1,k2", "k4")
    sign(sale, "k4")
    before = sale.dump()
    assert sign(sale, "k3") is sign(sale, "k4") is Status.ALREADY
    assert sale.dump() == before


def test_a_rotation_that_was_cut_off_is_ended_by_the_next(sale: QueueCore) -> None:
    sale.begin_queue()
    accept(sale, "k1,k2", "k3")
    assert accept(sale, "k1,k2,k3", "k4") == (Status.ALREADY, "k3")
    assert sign(sale, "k3") is Status.DONE
    assert accept(sale, "k3,k1,k2", "k4") == (Status.DONE, "k4")


def test_who_knows_other_keys_looks_again(sale: QueueCore) -> None:
    """The id of a new key is made to differ from those of all that are there."""
    sale.begin_queue()
    before = sale.dump()
    assert accept(sale, "k1", "k3") == (Status.CONFLICT, "")
    assert sale.dump() == before


def upgrade_needed(sale: QueueCore) -> None:
    sale.begin_queue().format = 2


def stale(sale: QueueCore) -> None:
    sale.begin_queue().definition_id = "another"


@pytest.mark.parametrize(
    ("prepare", "status"),
    [
        (lambda _: None, Status.UNKNOWN_SALE),
        (upgrade_needed, Status.UPGRADE_NEEDED),
        (lambda sale: fenced(sale.begin_queue()), Status.FENCED),
        (stale, Status.STALE_DEFINITION),
        (lambda sale: sale.begin(), Status.NO_QUEUE),
    ],
)
@pytest.mark.parametrize("known", ["k1,k2", ""])
def test_refusals_write_nothing(sale: QueueCore, known: str, prepare, status: Status) -> None:  # type: ignore[no-untyped-def]
    prepare(sale)
    before = sale.dump()
    reply = sale.run_with_queue("rotate", sale.definition_id, known, "k3")
    assert reply == [status, b""]
    assert sale.dump() == before


def test_on_a_full_server(sale: QueueCore) -> None:
    """A key that has leaked is replaced there as well."""
    sale.begin_queue()
    sale.client.config_set("maxmemory", "1")
    try:
        assert accept(sale, "k1,k2", "k3") == (Status.DONE, "k3")
        assert sign(sale, "k3") is Status.DONE
    finally:
        sale.client.config_set("maxmemory", "0")
    assert keys(sale) == "k3,k1,k2"
