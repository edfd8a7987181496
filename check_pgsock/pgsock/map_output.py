"""The pooler architecture as people and Graphviz read it; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from check_pgsock.pgsock.architecture import BY_USER, SERVER, Edge, Graph, Node
from check_pgsock.text import plural

_MOST_CLIENTS = 20  # lines on one endpoint


def text_lines(graph: Graph, limits: Mapping[str, int | None]) -> Iterator[str]:
    """A tree: each server with its endpoints, who is connected to them, and where it connects on.

    `limits` are the usable slots of the endpoints, by name.
    """
    nodes = {node.id: node for node in graph.nodes}
    for server in graph.nodes:
        if server.kind != SERVER:
            continue
        yield server.name
        for name in server.endpoints:
            edges = [one for one in graph.edges if (one.target, one.endpoint) == (server.id, name)]
            count = plural(sum(one.connections for one in edges), "connection")
            limit = limits.get(name)
            yield f"  {name}: {count}{'' if limit is None else f' of {limit}'}"
            for one in edges[:_MOST_CLIENTS]:
                client = nodes[one.source]
                likely = _likely(one) if client.kind == SERVER else ""
                yield f"    <- {one.connections} from {client.name}{likely}"
            if len(edges) > _MOST_CLIENTS:
                rest = edges[_MOST_CLIENTS:]
                yield f"    <- {sum(one.connections for one in rest)} from {len(rest)} more"
        if server.forwards_to is not None:
            yield f"  forwards to {server.forwards_to}"
        for one in graph.edges:
            if one.source == server.id:
                target = nodes[one.target]
                of = f" of {target.name}" if target.kind == SERVER else ""
                yield f"  -> {one.connections} to {one.endpoint}{of}{_likely(one)}"


def _likely(edge: Edge) -> str:
    return " (by its user alone)" if edge.known_by == BY_USER else ""


def dot_lines(graph: Graph) -> Iterator[str]:
    """The graph in the DOT language (graphviz.org, doc/info/lang)."""
    yield "digraph pgsock {"
    yield "  rankdir=LR;"
    yield "  node [shape=ellipse];"
    for node in graph.nodes:
        if node.kind == SERVER:
            yield f"  {node.id} [shape=box, label={_quote(node.name, *_endpoint_lines(node))}];"
        else:
            yield f"  {node.id} [label={_quote(node.name)}];"
    several = {node.id for node in graph.nodes if len(node.endpoints) > 1}
    for one in graph.edges:
        label = _quote(str(one.connections), *([one.endpoint] if one.target in several else []))
        style = ", style=dashed" if one.known_by == BY_USER else ""
        yield f"  {one.source} -> {one.target} [label={label}{style}];"
    yield "}"


def _endpoint_lines(node: Node) -> Iterator[str]:
    yield from node.endpoints
    if node.forwards_to is not None:
        yield f"forwards to {node.forwards_to}"


def _quote(*lines: str) -> str:
    """A double-quoted string of these lines, in which nothing means anything else."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
