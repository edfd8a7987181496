"""The proof of whose postmaster a listener is, on made-up processes: pure."""

from __future__ import annotations

import pytest

from check_pgsock.processes import Process
from check_pgsock.servers.clusters import Cluster
from check_pgsock.servers.limits import LimitUnknown
from check_pgsock.servers.postmaster import Port, made_with, prove
from check_pgsock.sockets.model import Listener
from check_pgsock.sockets.unix_sockets import STREAM, UnixListener
from tests.moment import LOCAL4, LOCAL6

PORT = 5432
LISTENER = Listener(LOCAL4, PORT, 107, 900, 1, 0, 200)
ONE, TWO, THREE = ((LOCAL4, port) for port in (4001, 4002, 4003))


class Fixed(Cluster):
    """A cluster whose titles name these peers, but for one that `left` before the second look."""

    def __init__(
        self,
        pid: int,
        peers: set[tuple[bytes, int]],
        *arguments: str,
        left: tuple[bytes, int] | None = None,
    ) -> None:
        self.postmaster = Process(pid, 1, "postgres", 107, ["postgres", *arguments])
        self._peers = dict.fromkeys(peers, 0)
        self._left = left

    def still_names(self, peer: tuple[bytes, int]) -> bool:
        """Whether it is not the one that left."""
        return peer != self._left


def proven(
    clusters: list[Cluster],
    held: dict[int, set[int]] | None = None,
    peers: set[tuple[bytes, int]] | None = None,
    listeners: tuple[Listener, ...] = (LISTENER,),
    bound: tuple[Listener, ...] = (),
    elsewhere: set[tuple[bytes, int]] | None = None,
    other_ports: tuple[int, ...] = (),
    complete: bool | None = True,
    visible: set[int] | None = None,
    alone: set[tuple[int, int]] | None = None,
) -> tuple[int, str]:
    """The process id and the proof; `peers` are connected to 127.0.0.1 on the port, those that
    are `elsewhere` to another port (too); `alone` are processes and the cgroups they have.
    """
    here = peers or set()
    port = Port(
        PORT,
        list(listeners),
        list(bound or listeners),
        dict.fromkeys(here, LOCAL4),
        lambda: other_ports,
    )

    def local_ports(asked: set[tuple[bytes, int]]) -> dict[tuple[bytes, int], set[int]]:
        return {
            peer: ({PORT} if peer in here else set())
            | ({9} if peer in (elsewhere or set()) else set())
            for peer in asked
        }

    cluster, proof = prove(
        port,
        clusters,
        (held or {}).get,
        lambda pid: {900, 901, 902, 950} if visible is None else visible,
        local_ports,
        lambda *pair: pair in (alone or set()),
        lambda: complete,
    )
    return cluster.postmaster.pid, proof


def is_settled(
    clusters: list[Cluster],
    peers: set[tuple[bytes, int]] | None = None,
    complete: bool | None = True,
    elsewhere: set[tuple[bytes, int]] | None = None,
) -> bool:
    """Whether looking again at what is not proven would tell no more."""
    with pytest.raises(LimitUnknown) as caught:
        proven(clusters, peers=peers, complete=complete, elsewhere=elsewhere)
    return caught.value.is_settled


BY_INODE = "it holds the listener"
BY_TITLES = "the titles of its backends name connections of the port"
BY_CGROUP = "it is alone in the listener's cgroup"
BY_UID = "it is the only one with the listener's uid"
SECOND = LISTENER._replace(address=LOCAL6, inode=901)  # made right after LISTENER
LATER = LISTENER._replace(address=LOCAL6, inode=950)
TWIN = LISTENER._replace(inode=960)  # at the same address, with SO_REUSEPORT
UNPROVEN = pytest.raises(LimitUnknown, match="cannot be proven")
UNSEEN = pytest.raises(LimitUnknown, match="no PostgreSQL server that may be seen")
SEVERAL = pytest.raises(LimitUnknown, match="several programs listen on it")


def test_proofs_in_their_order() -> None:
    a, b = Fixed(1, set()), Fixed(2, {ONE})
    assert proven([a, b], {1: {900}, 2: {77}}, {ONE}) == (1, BY_INODE)
    assert proven([a, b], peers={ONE, TWO}) == (2, BY_TITLES)
    assert proven([a]) == (1, BY_UID)


def test_descriptors_that_can_be_read_and_do_not_hold_it_disprove() -> None:
    with UNSEEN:
        proven([Fixed(1, {ONE})], {1: {77}}, {ONE})
    assert proven([Fixed(1, {ONE}), Fixed(2, set())], {1: {77}}, {ONE}) == (2, BY_UID)


def test_a_server_in_another_network_namespace_is_not_it() -> None:
    with UNSEEN:
        proven([Fixed(1, {ONE})], peers={ONE}, visible={77})


def test_a_port_on_the_command_line_disproves_but_proves_nothing() -> None:
    assert proven([Fixed(1, {ONE}, "--port=5433"), Fixed(2, set())], peers={ONE}) == (2, BY_UID)
    with UNPROVEN:
        proven([Fixed(1, {ONE}, "--port=5433")], peers={ONE})
    with UNPROVEN:
        proven([Fixed(1, set(), "-p", "5432")], complete=False)


@pytest.mark.parametrize("second", [ONE, TWO])
def test_a_peer_that_two_servers_share_proves_neither(second: tuple[bytes, int]) -> None:
    with UNPROVEN:
        proven([Fixed(1, {ONE}), Fixed(2, {second})], peers={ONE, TWO})


def test_of_two_servers_the_one_with_clients_of_its_own_is_proven() -> None:
    clusters: list[Cluster] = [Fixed(1, {ONE, TWO}), Fixed(2, {ONE, THREE})]
    assert proven(clusters, peers={ONE, TWO}) == (1, BY_TITLES)


def test_a_peer_that_is_connected_elsewhere_too_proves_nothing() -> None:
    with UNPROVEN:
        proven([Fixed(1, {ONE})], peers={ONE}, elsewhere={ONE}, complete=False)
    assert proven([Fixed(1, {ONE, TWO})], peers={ONE, TWO}, elsewhere={ONE}) == (1, BY_TITLES)


def test_a_server_with_clients_on_another_port_has_that_port() -> None:
    with UNPROVEN:
        proven([Fixed(1, {ONE, TWO})], peers={ONE}, elsewhere={TWO}, complete=False)
    # Of a client that has just left nothing is known.
    assert proven([Fixed(1, {ONE, TWO})], peers={ONE}) == (1, BY_TITLES)


@pytest.mark.parametrize(
    ("clusters", "other_ports", "complete"),
    [
        ([Fixed(1, set()), Fixed(2, set())], (), True),
        ([Fixed(1, set())], (6432,), True),  # the user listens on a second port
        ([Fixed(1, set())], (), False),
    ],
)
def test_the_uid_alone_is_no_proof_where_another_could_listen(
    clusters: list[Cluster], other_ports: tuple[int, ...], complete: bool
) -> None:
    with UNPROVEN:
        proven(clusters, other_ports=other_ports, complete=complete)


def test_a_cgroup_of_its_own_proves_which_of_two_it_is() -> None:
    made_there = (LISTENER._replace(cgroup=7), LATER._replace(cgroup=7))
    clusters: list[Cluster] = [Fixed(1, set()), Fixed(2, set())]
    alone = {(1, 6), (2, 7)}
    assert proven(clusters, listeners=made_there, alone=alone) == (2, BY_CGROUP)
    # What names a client that is connected elsewhere, too, says nothing against it.
    clusters = [Fixed(1, {ONE}), Fixed(2, set())]
    found = proven(clusters, peers={ONE}, elsewhere={ONE}, listeners=made_there, alone=alone)
    assert found == (2, BY_CGROUP)
    # Titles that name a client of this port do: then something is not as it seems.
    with UNPROVEN:
        proven(
            clusters, peers={ONE}, listeners=made_there[:1], bound=(*made_there, TWIN), alone=alone
        )
    for listeners in (
        (made_there[0], LATER._replace(cgroup=8)),
        (made_there[0], LATER),
        (LISTENER, LATER),
    ):
        with UNPROVEN:
            proven(clusters, listeners=listeners, alone=alone)
    with UNPROVEN:
        proven(clusters, listeners=made_there, alone={(1, 6)})
    with UNSEEN:  # descriptors, and the network namespace, disprove
        proven(clusters, {1: {77}, 2: {77}}, listeners=made_there, alone=alone)
    with UNPROVEN:  # as another port on the command line does
        proven([Fixed(2, set(), "-p", "5433")], listeners=made_there, alone=alone, complete=False)


def test_a_client_that_left_between_the_looks_proves_nothing() -> None:
    left: list[Cluster] = [Fixed(1, {ONE}, left=ONE)]
    assert not is_settled(left, {ONE}, complete=False)
    # Nor does it say that the server has another port.
    assert proven([Fixed(1, {ONE, TWO}, left=TWO)], peers={ONE}, elsewhere={TWO}) == (1, BY_TITLES)
    # Another client is enough.
    assert proven([Fixed(1, {ONE, TWO}, left=ONE)], peers={ONE, TWO}) == (1, BY_TITLES)
    assert is_settled([Fixed(1, {ONE})], {ONE}, complete=False, elsewhere={ONE})


def test_what_has_just_started_is_looked_at_again() -> None:
    assert not is_settled([Fixed(1, set())], complete=None)
    assert is_settled([Fixed(1, set())], complete=False)
    # Nothing that may end would make one of two the only one.
    assert is_settled([Fixed(1, set()), Fixed(2, set())], complete=None)


def test_a_port_that_another_cluster_names_is_accounted_for() -> None:
    clusters: list[Cluster] = [Fixed(1, set()), Fixed(2, set(), "-p", "5433")]
    assert proven(clusters, other_ports=(5433,)) == (1, BY_UID)


def test_descriptors_must_hold_all_listeners() -> None:
    both = (LISTENER, SECOND)
    assert proven([Fixed(1, set())], {1: {900, 901}}, listeners=both) == (1, BY_INODE)
    with SEVERAL:
        proven([Fixed(1, set())], {1: {900}}, listeners=both)
    with SEVERAL:
        proven([Fixed(1, set())], listeners=(LISTENER, SECOND._replace(uid=0)))


def test_titles_prove_the_listener_that_was_reached_and_those_made_with_it() -> None:
    one: list[Cluster] = [Fixed(1, {ONE})]
    assert proven(one, peers={ONE}, listeners=(LISTENER, SECOND)) == (1, BY_TITLES)
    for other in (LATER, SECOND._replace(backlog=128), SECOND._replace(backlog=None)):
        bound = (LISTENER, other)
        with UNPROVEN:
            proven(one, peers={ONE}, listeners=bound)
        with UNPROVEN:  # chosen by --address: no evidence was accepted there
            proven(one, peers={ONE}, listeners=(other,), bound=bound)
        assert proven(one, peers={ONE}, listeners=(LISTENER,), bound=bound) == (1, BY_TITLES)


def test_each_of_two_servers_on_one_port_has_the_listener_that_its_clients_reached() -> None:
    other = (LOCAL4[:3] + b"\x02", 4001)  # a client of the second, from an address of its own
    clusters: list[Cluster] = [Fixed(1, {ONE}), Fixed(2, {other})]
    later = LATER._replace(address=other[0])
    bound = [LISTENER, later]

    def owner(listeners: list[Listener]) -> int:
        port = Port(PORT, listeners, bound, {ONE: LOCAL4, other: other[0]}, lambda: ())
        found, proof = prove(
            port,
            clusters,
            lambda pid: None,
            lambda pid: {900, 950},
            lambda peers: {peer: {PORT} for peer in peers},
            lambda *pair: False,
            lambda: True,
        )
        assert proof == BY_TITLES
        return found.postmaster.pid

    assert owner([LISTENER]) == 1
    assert owner([later]) == 2
    with UNPROVEN:
        owner(bound)
    # Where either may have accepted the other's clients, too, neither is proven.
    bound.append(later._replace(inode=960))
    with UNPROVEN:
        owner([LISTENER])


def test_ipv4_reaches_the_wildcard_of_ipv6_only_where_there_is_none_of_its_own() -> None:
    one: list[Cluster] = [Fixed(1, {ONE})]
    four = LISTENER._replace(address=bytes(4))
    six = LISTENER._replace(address=bytes(16), inode=950)
    assert proven(one, peers={ONE}, listeners=(six,)) == (1, BY_TITLES)
    with UNPROVEN:
        proven(one, peers={ONE}, listeners=(four, six))
    with UNPROVEN:
        proven(one, peers={ONE}, listeners=(six,), bound=(four, six))
    assert proven(one, peers={ONE}, listeners=(four,), bound=(four, six)) == (1, BY_TITLES)


def test_two_listeners_at_one_address_tell_nothing() -> None:
    shared = (LISTENER, LISTENER._replace(inode=950))  # SO_REUSEPORT
    with UNPROVEN:
        proven([Fixed(1, {ONE})], peers={ONE}, listeners=shared)


def test_listeners_that_were_made_in_one_go() -> None:
    third = SECOND._replace(address=bytes(16), inode=902)
    unix = UnixListener(b"/run/.s.PGSQL.5432", None, STREAM, 903, 107, None, 0, 200)
    together: list[Listener | UnixListener] = [LISTENER, SECOND, third, unix]
    for one in together:
        assert made_with(one, together) == {900, 901, 902, 903}
    assert made_with(LISTENER, [LISTENER, third, unix]) == {900}
    for other in (SECOND._replace(uid=0), SECOND._replace(backlog=128)):
        assert made_with(LISTENER, [LISTENER, other, third, unix]) == {900}
    untold = LISTENER._replace(backlog=None)
    assert made_with(untold, [untold, SECOND._replace(backlog=None)]) == {900}


def test_listeners_of_two_runs_are_not_one_by_their_number() -> None:
    later = LISTENER._replace(inode=950)  # at the address of the first
    with UNPROVEN:
        proven([Fixed(1, set())], listeners=(LISTENER, later), bound=(LISTENER, SECOND, later))
