"""Each switch of a link does what it says, seen from both of its ends."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.topologies import HOST, PATIENCE_S, Link, Node, Way, wait_until

# How long a test listens for what shall not come. On a slow machine it sees less, and never fails.
SILENCE_S = 0.2
HOURS_MS = 3 * 3_600_000
ELSEWHERE = "127.0.0.77"
BIG = "x" * 1_000_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("link") / "node") as node:
        yield node


@pytest.fixture
def link(node: Node) -> Iterator[Link]:
    node.ask("FLUSHALL")
    with Link(node.port) as link:
        yield link


def through(link: Link) -> redis.Redis:
    """A client whose connection is made, and which has patience."""
    client = redis.Redis(
        HOST,
        link.port,
        decode_responses=True,
        protocol=2,
        single_connection_client=True,
        socket_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),
    )
    assert client.ping()
    return client


class Raw:
    """A connection without a client library; ``speaks`` once it was answered."""

    def __init__(self, port: int, *, speaks: bool = True, source: str = HOST) -> None:
        self.socket = socket.create_connection((HOST, port), PATIENCE_S, (source, 0))
        if speaks:
            self.send("PING")
            assert self.read() == b"+PONG\r\n"

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, command: str) -> None:
        self.socket.sendall(command.encode() + b"\r\n")

    def read(self) -> bytes:
        return self.socket.recv(1 << 16)

    def is_silent(self) -> bool:
        """Whether nothing comes for a while: no byte, no end."""
        self.socket.settimeout(SILENCE_S)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        except OSError:
            pass
        finally:
            self.socket.settimeout(PATIENCE_S)
        return False

    def read_until_reset(self) -> int:
        """How many bytes came before the reset. Raises AssertionError for an orderly end."""
        count = 0
        while True:
            try:
                data = self.read()
            except ConnectionResetError:
                return count
            assert data, "an orderly end instead of a reset"
            count += len(data)


@pytest.mark.once
def test_everything_passes(link: Link) -> None:
    with through(link) as client, through(link) as other:
        assert link.connections == 2
        assert client.echo(BIG) == BIG
        assert other.incr("n") == 1
    wait_until(lambda: link.connections == 0, "closed connections")


@pytest.mark.once
def test_a_delay_counts_for_both_ways(link: Link) -> None:
    with through(link) as client:
        link.delay(60)
        began_s = time.monotonic()
        client.ping()
        assert time.monotonic() - began_s >= 0.12
        link.heal()
        link.delay(HOURS_MS)
        link.heal()
        client.ping()


@pytest.mark.once
def test_what_is_delayed_stays_in_order(link: Link) -> None:
    link.delay(0, jitter_ms=20)
    with Raw(link.port) as raw:
        answers = b""
        for number in range(30):
            raw.send(f"ECHO {number:02}")
            time.sleep(0.002)  # Or all would be one chunk.
        while len(answers) < 30 * 8:
            answers += raw.read()
    assert answers == b"".join(b"$2\r\n%02d\r\n" % number for number in range(30))


@pytest.mark.once
def test_dropped_questions_are_never_asked(link: Link) -> None:
    with Raw(link.port) as raw:
        link.drop(Way.THERE)
        raw.send("INCR n")
        wait_until(lambda: link.lossy, "a lost command")
        assert raw.is_silent()
        link.heal()
        # What came next would not fit what the server has of this connection.
        assert raw.read_until_reset() == 0
    with through(link) as client:
        assert client.get("n") is None


@pytest.mark.once
def test_dropped_answers_leave_what_was_done(link: Link) -> None:
    with Raw(link.port) as raw:
        link.drop(Way.BACK)
        raw.send("INCR n")
        wait_until(lambda: link.lossy, "a lost answer")
        assert raw.is_silent()
        link.heal()
        assert raw.read_until_reset() == 0
    with through(link) as client:
        assert client.get("n") == "1"


@pytest.mark.once
def test_a_death_behind_a_drop_is_not_heard_of(node: Node, link: Link) -> None:
    with Raw(link.port) as raw:
        link.drop()
        node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until(lambda: link.lossy, "lost news")
        assert raw.is_silent()
        link.heal()
        raw.read_until_reset()


@pytest.mark.once
@pytest.mark.parametrize("parted", [True, False])
def test_who_connects_meanwhile_gets_through_in_the_end(link: Link, parted: bool) -> None:
    if parted:
        link.partition()
    else:
        link.drop()
    with Raw(link.port, speaks=False) as raw:
        raw.send("PING")
        assert raw.is_silent()
        link.heal()
        assert raw.read() == b"+PONG\r\n"


@pytest.mark.once
def test_a_partition_holds_back_and_loses_nothing(node: Node, link: Link) -> None:
    with Raw(link.port) as raw:
        link.partition()
        raw.send("INCR n")
        assert raw.is_silent()
        assert node.ask("GET", "n") is None
        link.heal()
        assert raw.read() == b":1\r\n"


@pytest.mark.once
def test_a_cut_is_a_reset_at_both_ends(node: Node, link: Link) -> None:
    def others() -> int:
        return len(node.ask("CLIENT", "LIST").splitlines()) - 1

    wait_until(lambda: others() == 0, "an idle server")
    with Raw(link.port) as raw, Raw(link.port) as other:
        wait_until(lambda: others() == 2, "two clients at the server")
        assert link.cut() == 2
        assert raw.read_until_reset() == other.read_until_reset() == 0
        wait_until(lambda: others() == 0, "a server that has noticed")
        with through(link) as client:
            assert client.ping()


@pytest.mark.once
def test_a_halved_command_is_not_carried_out(node: Node, link: Link) -> None:
    with Raw(link.port) as raw, through(link) as other:
        link.halve()
        raw.send("SET n " + "x" * 1000)
        assert raw.read_until_reset() == 0
        assert link.halved == 1
        # Only one is.
        assert other.set("m", "x" * 1000)
    assert node.ask("GET", "n") is None
    assert link.halved == 1


@pytest.mark.once
def test_of_a_halved_answer_a_part_arrives(node: Node, link: Link) -> None:
    with Raw(link.port) as raw:
        link.halve(Way.BACK)
        raw.send("ECHO " + "x" * 1000)
        assert 0 < raw.read_until_reset() < 1009
    assert link.halved == 1


def _parts(node: Node, seed: int) -> list[int]:
    parts = []
    with Link(node.port, seed=seed) as link:
        for _ in range(5):
            with Raw(link.port) as raw:
                link.halve(Way.BACK)
                raw.send("ECHO " + "x" * 1000)
                parts.append(raw.read_until_reset())
    return parts


@pytest.mark.once
def test_a_seed_says_where_a_chunk_is_cut(node: Node) -> None:
    assert _parts(node, 1) == _parts(node, 1)
    assert _parts(node, 1) != _parts(node, 2)


@pytest.mark.once
def test_a_server_that_is_down_resets_and_comes_back(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node, Link(node.port) as link:
        with Raw(link.port) as raw:
            node.stop()
            assert raw.read() == b""
        # It may come before the connection is thought to be made.
        with pytest.raises(ConnectionResetError), Raw(link.port, speaks=False) as raw:
            raw.read()
        node.start()
        with through(link) as client:
            assert client.ping()


@pytest.mark.once
def test_nothing_of_a_link_is_left(node: Node) -> None:
    threads = set(threading.enumerate())
    with Link(node.port) as link:
        raw = Raw(link.port)
        with Raw(link.port) as lossy:
            link.drop()
            lossy.send("PING")
    with raw:
        assert raw.read_until_reset() == 0
    assert [one for one in threading.enumerate() if one not in threads] == []


def _close_while_clients_come(target_port: int) -> None:
    ended = threading.Event()

    def come(port: int) -> None:
        while not ended.wait(0.001):
            with contextlib.suppress(OSError), Raw(port, speaks=False) as raw:
                raw.send("PING")

    with Link(target_port) as link:
        clients = [threading.Thread(target=come, args=(link.port,)) for _ in range(3)]
        for client in clients:
            client.start()
        wait_until(lambda: link.connections, "the first of them")
    ended.set()
    for client in clients:
        client.join()


@pytest.mark.once
def test_a_link_may_be_closed_while_clients_come(node: Node) -> None:
    """What would be left behind, a socket or a task, is a warning, and so an error."""
    for _ in range(10):
        _close_while_clients_come(node.port)
    gc.collect()


def test_only_who_comes_from_an_address_is_shut_out(node: Node, link: Link) -> None:
    with Raw(link.port, source=ELSEWHERE) as there, Raw(link.port) as other:
        link.shut_out({ELSEWHERE})
        there.send("SET there 1")
        with Raw(link.port, speaks=False, source=ELSEWHERE) as late:
            late.send("PING")
            # Others are healed, who is shut out is not.
            link.heal()
            assert there.is_silent()
            assert late.is_silent()
            other.send("SET other 1")
            assert other.read() == b"+OK\r\n"
            assert node.ask("KEYS", "*") == ["other"]
            link.let_back()
            assert there.read() == b"+OK\r\n"
            assert late.read() == b"+PONG\r\n"
        # It is like everybody else again.
        link.partition()
        there.send("PING")
        assert there.is_silent()
        link.heal()
        assert there.read() == b"+PONG\r\n"


def test_a_parted_replica_stops_to_acknowledge(tmp_path: Path) -> None:
    with (
        Node(tmp_path / "master") as master,
        Node(tmp_path / "replica") as replica,
        Link(master.port) as link,
        master.client() as client,
    ):
        replica.ask("REPLICAOF", HOST, link.port)
        wait_until(lambda: replica.follows(link.port), "a replica")
        client.incr("n")
        assert client.wait(1, 60_000) == 1
        # The master knows it by its own port, where clients find it.
        assert client.info("replication")["slave0"]["port"] == replica.port

        link.partition()
        client.incr("n")
        assert client.wait(1, 300) == 0
        assert replica.ask("GET", "n") == "1"
        link.heal()
        assert client.wait(1, 60_000) == 1
        assert replica.ask("GET", "n") == "2"
