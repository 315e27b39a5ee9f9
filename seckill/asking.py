"""Questions to several nodes at once, of which some may be dead or silent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from seckill.address import NODE_S, Address, Node, spoken
from seckill.errors import RedisUnavailable

__all__ = ["ask_all", "ask_node", "with_remedy"]

Commands = Sequence[tuple[Any, ...]]

GRACE_S: Final = 0.1
"""How long the others may still take once most have answered."""


async def ask_all(
    address: Address, nodes: Iterable[Node], commands: Commands, *, sentinels: bool = False
) -> dict[Node, list[Any]]:
    """Asks all of these nodes the same, at once, and returns the replies of those that answered
    every command. A node that is silent holds nobody up once most have answered.

    Raises RedisUnavailable when none has answered, with what became of each.
    """
    asked = {
        asyncio.create_task(ask_node(address, node, commands, to_sentinel=sentinels)): node
        for node in nodes
    }
    answers: dict[Node, list[Any]] = {}
    problems: list[str] = []
    waiting = set(asked)
    try:
        while waiting:
            most = len(answers) * 2 > len(asked)
            done, waiting = await asyncio.wait(
                waiting,
                timeout=GRACE_S if most else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                break
            for task in done:
                try:
                    answers[asked[task]] = task.result()
                except RedisUnavailable as error:
                    problems.append(str(error))
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    if not answers:
        raise RedisUnavailable("; ".join(problems))
    return answers


async def ask_node(
    address: Address, node: Node, commands: Commands, *, to_sentinel: bool = False
) -> list[Any]:
    """Asks one node, on a connection of its own. Raises RedisUnavailable, also for an error reply.
    It is tried again in any case: a node that starts or changes sides refuses all sorts of things.
    """
    from redis.exceptions import RedisError

    from seckill.pools import cut

    connection = address.connection(node, to_sentinel=to_sentinel)
    try:
        async with asyncio.timeout(NODE_S):
            await connection.connect()
            packed = connection.pack_commands(commands)
            await connection.send_packed_command(packed, check_health=False)
            return [await connection.read_response() for _ in commands]
    except TimeoutError:
        raise RedisUnavailable(f"{spoken(node)} does not answer") from None
    except (RedisError, OSError, EOFError) as error:
        raise RedisUnavailable(f"{spoken(node)}: {error}") from None
    finally:
        # A node that hangs would keep a connection that is closed in order.
        cut(connection)
        await connection.disconnect(nowait=True)


def with_remedy(problem: str, remedies: Iterable[tuple[str, str]], **names: str) -> str:
    """What went wrong, and the first of the remedies whose pattern is found in it. Whether the URL
    is wrong or its servers are away can't be told apart here, so both are tried again."""
    for pattern, remedy in remedies:
        if re.search(pattern, problem):
            return f"{problem}; {remedy.format(**names)}"
    return problem
