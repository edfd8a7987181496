"""The proof of whose postmaster a listener is, on made-up processes: pure."""

from __future__ import annotations

import pytest

from check_pgsock.limits import LimitUnknown
from check_pgsock.postmaster import Cluster, prove
from check_pgsock.processes import Process
from check_pgsock.sockets.model import Listener
from tests.moment import LOCAL4, LOCAL6

PORT = 5432
LISTENER = Listener(LOCAL4, PORT, 107, 900, 1, 0, 200)
ONE, TWO, THREE = ((LOCAL4, port) for port in (4001, 4002, 4003))


class Fixed(Cluster):
    """A cluster whose titles name these peers."""

    def __init__(self, pid: int, peers: set[tuple[bytes, int]], *arguments: str) -> None:
        self.postmaster = Process(pid, 1, "postgres", 107, ["postgres", *arguments])
        self._peers = peers


def proven(
    clusters: list[Cluster],
    held: dict[int, set[int]] | None = None,
    peers: set[tuple[bytes, int]] | None = None,
    listeners: tuple[Listener, ...] = (LISTENER,),
    elsewhere: set[tuple[bytes, int]] | None = None,
    other_ports: tuple[int, ...] = (),
    strangers: tuple[str, ...] = (),
) -> tuple[int, str]:
    """The process id and the proof; the peers are connected to 127.0.0.1."""
    process, proof = prove(
        PORT,
        clusters,
        (held or {}).get,
        list(listeners),
        dict.fromkeys(peers or (), LOCAL4),
        lambda asked: asked & (elsewhere or set()),
        other_ports,
        lambda: set(strangers),
    )
    return process.pid, proof


BY_INODE = "it holds the listener"
BY_TITLES = "the titles of its backends name connections of the port"
BY_UID = "it is the only one with the listener's uid"
SECOND = LISTENER._replace(address=LOCAL6, inode=902)
EVERYWHERE = LISTENER._replace(address=bytes(16))


def test_proofs_in_their_order() -> None:
    a, b = Fixed(1, set()), Fixed(2, {ONE})
    assert proven([a, b], {1: {900}, 2: {77}}, {ONE}) == (1, BY_INODE)
    assert proven([a, b], peers={ONE, TWO}) == (2, BY_TITLES)
    assert proven([a]) == (1, BY_UID)


def test_descriptors_that_can_be_read_and_do_not_hold_it_disprove() -> None:
    with pytest.raises(LimitUnknown, match="no PostgreSQL server that may be seen"):
        proven([Fixed(1, {ONE})], {1: {77}}, {ONE})
    assert proven([Fixed(1, {ONE}), Fixed(2, set())], {1: {77}}, {ONE}) == (2, BY_UID)


def test_a_port_on_the_command_line_disproves_but_proves_nothing() -> None:
    assert proven([Fixed(1, {ONE}, "--port=5433"), Fixed(2, set())], peers={ONE}) == (2, BY_UID)
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, {ONE}, "--port=5433")], peers={ONE})
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, set(), "-p", "5432")], strangers=("pgbouncer",))


def test_a_peer_that_two_servers_share_proves_neither() -> None:
    for second in (ONE, TWO):
        clusters: list[Cluster] = [Fixed(1, {ONE}), Fixed(2, {second})]
        with pytest.raises(LimitUnknown, match="cannot be proven"):
            proven(clusters, peers={ONE, TWO})
    assert proven([Fixed(1, {ONE, TWO}), Fixed(2, {ONE, THREE})], peers={ONE, TWO}) == (
        1, BY_TITLES,
    )  # fmt: skip
    # The client's port is also connected to another port of this host.
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, {ONE})], peers={ONE}, elsewhere={ONE}, strangers=("pgbouncer",))
    assert proven([Fixed(1, {ONE, TWO})], peers={ONE, TWO}, elsewhere={ONE}) == (1, BY_TITLES)


@pytest.mark.parametrize(
    ("clusters", "other_ports", "strangers"),
    [
        ([Fixed(1, set()), Fixed(2, set())], (), ()),
        ([Fixed(1, set())], (6432,), ()),  # the user listens on a second port
        ([Fixed(1, set())], (), ("pgbouncer",)),
    ],
)
def test_the_uid_alone_is_no_proof_where_another_could_listen(
    clusters: list[Cluster], other_ports: tuple[int, ...], strangers: tuple[str, ...]
) -> None:
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven(clusters, other_ports=other_ports, strangers=strangers)


def test_a_port_that_another_cluster_names_is_accounted_for() -> None:
    clusters: list[Cluster] = [Fixed(1, set()), Fixed(2, set(), "-p", "5433")]
    assert proven(clusters, other_ports=(5433,)) == (1, BY_UID)


def test_several_listeners_must_all_be_the_same_servers() -> None:
    both = (LISTENER, SECOND)
    assert proven([Fixed(1, set())], {1: {900, 902}}, listeners=both) == (1, BY_INODE)
    with pytest.raises(LimitUnknown, match="several programs listen on it"):
        proven([Fixed(1, set())], {1: {900}}, listeners=both)
    with pytest.raises(LimitUnknown, match="several programs listen on it"):
        proven([Fixed(1, set())], listeners=(LISTENER, SECOND._replace(uid=0)))
    # Without descriptors: one backlog, or nobody else who could listen.
    pooler = {"strangers": ("pgbouncer",)}
    a: list[Cluster] = [Fixed(1, {ONE})]
    assert proven(a, peers={ONE}, listeners=both, **pooler) == (1, BY_TITLES)  # type: ignore[arg-type]
    other = (LISTENER, SECOND._replace(backlog=128))
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven(a, peers={ONE}, listeners=other, **pooler)  # type: ignore[arg-type]
    assert proven(a, peers={ONE}, listeners=other) == (1, BY_TITLES)
    assert proven(a, peers={ONE}, listeners=(EVERYWHERE,), **pooler) == (1, BY_TITLES)  # type: ignore[arg-type]
