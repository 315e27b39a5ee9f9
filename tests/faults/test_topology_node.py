"""One server of the fault suite does what the suite takes for granted, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.faults import topology_node
from tests.faults.disk import can_watch_syncs
from tests.faults.topologies import HOST, PATIENCE_S, Node, NodeFailed, living, wait_until

ROOT = Path(__file__).parents[2]
# Kills until one must have met something that was not synced.
KILLS = 20

needs_shim = pytest.mark.skipif(not can_watch_syncs(), reason="needs Linux and a C compiler")


def count_to(node: Node, number: int) -> int:
    """Counts that far in ``n`` and returns what the server said last."""
    last = 0
    with node.client() as client:
        for _ in range(number):
            last = int(client.incr("n"))
    return last


def test_a_node_stays_where_it_is_and_keeps_what_it_has(tmp_path: Path) -> None:
    with Node(tmp_path / "node", {"appendonly": "yes", "maxmemory": "50mb"}) as node:
        assert node.ask("CONFIG", "GET", "maxmemory") == ["maxmemory", "52428800"]
        port, pid = node.port, node.pid
        node.ask("SET", "k", "v")
        node.stop()
        assert not node.running
        assert "ready to exit" in node.log
        with pytest.raises(redis.ConnectionError):
            node.ask("PING")
        node.start()
        assert (node.port, node.ask("GET", "k")) == (port, "v")
        assert node.pid != pid


def test_a_node_has_its_password(tmp_path: Path) -> None:
    with Node(tmp_path / "node", {"requirepass": "secret"}) as node:
        assert node.ask("PING")
        with socket.create_connection((HOST, node.port), timeout=PATIENCE_S) as stranger:
            stranger.sendall(b"PING\r\n")
            assert stranger.recv(100).startswith(b"-NOAUTH ")


@needs_shim
def test_a_kill_takes_what_was_not_synced(tmp_path: Path) -> None:
    with Node(tmp_path / "node", {"appendonly": "yes", "appendfsync": "everysec"}) as node:
        for _ in range(KILLS):
            last = count_to(node, 200)
            cut = node.kill()
            assert not node.running
            node.start()
            if int(node.ask("GET", "n") or 0) < last:
                assert cut > 0
                return
    pytest.fail("no kill has taken anything away")


@needs_shim
def test_a_kill_takes_nothing_that_was_synced(tmp_path: Path) -> None:
    with Node(tmp_path / "node", {"appendonly": "yes", "appendfsync": "always"}) as node:
        for _ in range(3):
            last = count_to(node, 50)
            node.kill()
            node.start()
            assert int(node.ask("GET", "n")) == last


def test_a_paused_node_is_silent_until_it_goes_on(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node, node.client() as client:
        pipe = client.connection_pool.get_connection()
        pipe.send_command("PING")
        assert pipe.read_response() == "PONG"
        node.pause()
        assert node.running
        assert not node.answers
        pipe.send_command("PING")
        assert not pipe.can_read(timeout=0.2)
        node.unpause()
        assert node.answers
        assert pipe.read_response() == "PONG"
        client.connection_pool.release(pipe)
        node.pause()
        node.stop()
        assert not node.running


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(NodeFailed, match=r"(?s)ended while starting.*appendonly perhaps"),
        Node(tmp_path / "node", {"appendonly": "perhaps"}),
    ):
        pass


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The ports that nodes get before they get free ones."""
    taken: list[socket.socket] = []
    reserve = topology_node.reserve_port
    monkeypatch.setattr(topology_node, "reserve_port", lambda: taken.pop() if taken else reserve())
    return taken


@pytest.mark.once
def test_a_port_where_another_server_answers_is_not_ours(
    tmp_path: Path, taken: list[socket.socket]
) -> None:
    with Node(tmp_path / "other") as other:
        taken.append(other._kept["port"].dup())
        with Node(tmp_path / "node") as node:
            assert not taken
            assert node.port != other.port
            assert node.info("server")["process_id"] == node.pid


@pytest.mark.once
def test_a_port_where_somebody_listens_is_not_ours(
    tmp_path: Path, taken: list[socket.socket]
) -> None:
    kept = topology_node.reserve_port()
    port = kept.getsockname()[1]
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind((HOST, port))
        stranger.listen()
        taken.append(kept)
        with Node(tmp_path / "node") as node:
            assert not taken
            assert node.port != port


@pytest.mark.once
def test_a_port_stays_ours_while_its_server_is_down(tmp_path: Path) -> None:
    with Node(tmp_path / "node") as node:
        node.kill()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((HOST, node.port))
        node.start()


@pytest.mark.once
def test_a_test_that_raises_leaves_nothing(tmp_path: Path) -> None:
    groups = []

    def fail() -> None:
        with (
            Node(tmp_path / "a", {"appendonly": "yes"}) as running,
            Node(tmp_path / "b") as paused,
            Node(tmp_path / "c") as killed,
        ):
            paused.pause()
            groups.extend([running.pid, paused.pid, killed.pid])
            # Each server has a watcher beside it.
            assert len(living(groups)) == 6
            killed.kill()
            wait_until(lambda: len(living(groups)) == 4, "the end of one")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    wait_until(lambda: not living(groups), "the end of all")


ORPHANS = """
import sys
from pathlib import Path
from tests.faults.topologies import Node
with Node(Path(sys.argv[1], "a")) as running, Node(Path(sys.argv[1], "b")) as paused:
    paused.pause()
    print(running.pid, paused.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.once
def test_no_server_outlives_a_killed_test(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        groups = [int(pid) for pid in starter.stdout.readline().split()]
        assert len(living(groups)) == 4
        os.kill(starter.pid, signal.SIGKILL)
    wait_until(lambda: not living(groups), "the end of what it has started")
