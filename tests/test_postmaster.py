"""The proof of whose postmaster a listener is, on made-up processes: pure."""

from __future__ import annotations

import pytest

from check_pgsock.limits import LimitUnknown
from check_pgsock.postmaster import Cluster, prove
from check_pgsock.processes import Process
from check_pgsock.sockets.model import Listener
from tests.moment import LOCAL4

PORT = 5432
LISTENER = Listener(LOCAL4, PORT, 107, 900, 1, 0, 200)
OTHER = Listener(LOCAL4, 6432, 107, 901, 2, 0, 128)
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
    others: tuple[str, ...] = (),
) -> tuple[int, str]:
    """The process id and the proof."""
    process, proof = prove(
        PORT, clusters, (held or {}).get, [LISTENER], peers or set(), list(listeners), others
    )
    return process.pid, proof


BY_INODE = "it holds the listener"
BY_PORT = "its command line names the port"
BY_TITLES = "the titles of its backends name connections of the port"
BY_UID = "it is the only one with the listener's uid"


def test_proofs_in_their_order() -> None:
    a, b = Fixed(1, set()), Fixed(2, {ONE})
    assert proven([a, b], {1: {900}, 2: {77}}, {ONE}) == (1, BY_INODE)
    assert proven([Fixed(1, set(), "-p", "5432"), b], peers={ONE}) == (1, BY_PORT)
    assert proven([a, b], peers={ONE, TWO}) == (2, BY_TITLES)
    assert proven([a]) == (1, BY_UID)


def test_descriptors_that_can_be_read_and_do_not_hold_it_disprove() -> None:
    with pytest.raises(LimitUnknown, match="no PostgreSQL server that may be seen"):
        proven([Fixed(1, {ONE})], {1: {77}}, {ONE})
    assert proven([Fixed(1, {ONE}), Fixed(2, set())], {1: {77}}, {ONE}) == (2, BY_UID)


def test_a_command_line_with_another_port_disproves() -> None:
    assert proven([Fixed(1, {ONE}, "--port=5433"), Fixed(2, set())], peers={ONE}) == (2, BY_UID)
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, {ONE}, "--port=5433")], peers={ONE})


def test_a_peer_that_two_clusters_claim_proves_neither() -> None:
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, {ONE}), Fixed(2, {ONE})], peers={ONE})
    assert proven([Fixed(1, {ONE, TWO}), Fixed(2, {ONE, THREE})], peers={ONE, TWO}) == (
        1, BY_TITLES,
    )  # fmt: skip
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven([Fixed(1, {ONE}), Fixed(2, {TWO})], peers={ONE, TWO})


@pytest.mark.parametrize(
    ("clusters", "listeners", "others"),
    [
        ([Fixed(1, set()), Fixed(2, set())], (LISTENER,), ()),
        ([Fixed(1, set())], (LISTENER, OTHER), ()),  # the uid listens on a second port
        ([Fixed(1, set())], (LISTENER,), ("bash", "pgbouncer")),
    ],
)
def test_the_uid_alone_is_no_proof_where_another_could_listen(
    clusters: list[Cluster], listeners: tuple[Listener, ...], others: tuple[str, ...]
) -> None:
    with pytest.raises(LimitUnknown, match="cannot be proven"):
        proven(clusters, listeners=listeners, others=others)
