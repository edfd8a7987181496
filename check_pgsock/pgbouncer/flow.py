"""The largest flow through a network, by Ford and Fulkerson; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

Node = tuple[str, ...]
Edge = tuple[Node, Node]
SOURCE: Node = ("source",)
SINK: Node = ("sink",)


def largest_flow(room: Mapping[Edge, float]) -> tuple[float, set[Node]]:
    """(the largest flow from SOURCE to SINK, the nodes that more of it would still reach).

    `room` is what fits through each edge, math.inf where that has no limit; none has an opposite.
    The edges that limit the flow lead from the nodes reached to the others.
    """
    spare = dict(room)
    nexts: dict[Node, list[Node]] = {}
    for start, end in room:
        nexts.setdefault(start, []).append(end)
        nexts.setdefault(end, []).append(start)
        spare[end, start] = 0
    total = 0.0
    while True:
        came_from = {SOURCE: SOURCE}
        waiting = [SOURCE]
        while waiting and SINK not in came_from:
            here = waiting.pop()
            for node in nexts.get(here, ()):
                if node not in came_from and spare[here, node] > 0:
                    came_from[node] = here
                    waiting.append(node)
        if SINK not in came_from:
            return total, set(came_from)
        path = []
        node = SINK
        while node != SOURCE:
            path.append((came_from[node], node))
            node = came_from[node]
        more = min(spare[edge] for edge in path)
        if more == math.inf:
            return math.inf, set()
        for start, end in path:
            spare[start, end] -= more
            spare[end, start] += more
        total += more
