"""An evening rehearsed before it happens: `seckill rehearse`.

    model     who comes, and when: the crowd; what a sale's rules are
    pace      the engine's own arithmetic of who is called next, lua/lib/pace.lua, run by a server
    simulate  the evening of a sale with a queue, look by look
    open_till the same for a sale without one
    result    what became of it, in figures; `what_if` has the same evening under other rules
    picture   the same as SVG

Nothing here is read from a sale that exists, and nothing is written to a server.
"""

from __future__ import annotations

from seckill.rehearse.model import Crowd, Habits, Rules, make_crowd, read_span, rules_of
from seckill.rehearse.pace import Pacer, own_pacer
from seckill.rehearse.picture import picture
from seckill.rehearse.result import Rehearsal, rehearse
from seckill.rehearse.what_if import Variant, what_if

__all__ = [
    "Crowd",
    "Habits",
    "Pacer",
    "Rehearsal",
    "Rules",
    "Variant",
    "make_crowd",
    "own_pacer",
    "picture",
    "read_span",
    "rehearse",
    "rules_of",
    "what_if",
]
