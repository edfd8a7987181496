"""Accept queues: whose a waiting connection is, what stays between two looks, which is fullest."""

from __future__ import annotations

from check_pgsock.accept_queue import Look, oldest
from check_pgsock.deadline import Deadline
from check_pgsock.listen_drops import Counter, parse_counters
from check_pgsock.sockets.model import CLOSE_WAIT, ESTABLISHED, Listener, Socket, TcpInfo
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.sockets.unix_sockets import STREAM, UnixListener
from tests.moment import LOCAL4, LOCAL6

HERE = SocketReader("netlink", None, Deadline(5))
ANY4, ANY6, OTHER4 = bytes(4), bytes(16), bytes([127, 0, 0, 2])


def listener(
    address: bytes, queue: int, inode: int = 1, backlog: int | None = 10, port: int = 5432
) -> Listener:
    """A listener with a queue of this length."""
    return Listener(address, port, 26, inode, inode + 1000, queue, backlog)


def waiting(
    number: int, at: bytes = LOCAL4, cookie: int | None = 0, age: int = 0, state: int = ESTABLISHED
) -> Socket:
    """A connection that waits, of remote port `number`, for `age` milliseconds."""
    identity = None if cookie is None else cookie or number
    info = TcpInfo(age, 0, 0, 0)
    return Socket(state, at, 5432, LOCAL4, number, 0, 0, identity, 0, 0, 0, 0, 0, info)


def unix(inode: int, queue: int | None, path: bytes = b"/run/.s.PGSQL.5432") -> UnixListener:
    """A listening Unix socket."""
    return UnixListener(path, None, STREAM, inode, 26, inode, queue, None if queue is None else 5)


def look(*listeners: Listener, sockets: list[Socket]) -> Look:
    """A look at these listeners, all of them the leg's."""
    made = Look()
    made.add_tcp(HERE, list(listeners), list(listeners), sockets)
    return made


def lengths(of: Look) -> dict[str, int]:
    """The lengths of the queues by their names."""
    return {one.name: one.length for one in of.queues}


def test_each_waits_for_the_listener_that_takes_its_address() -> None:
    bound = [listener(ANY6, 1, 1), listener(LOCAL4, 2, 2), listener(ANY4, 1, 3, port=5433)]
    found = Look()
    found.add_tcp(HERE, bound, bound[1:2], [waiting(1), waiting(2), waiting(3, OTHER4)])
    assert lengths(found) == {"127.0.0.1:5432": 2}
    assert [one.remote_port for one in found.waiting] == [1, 2]
    found = look(*bound, sockets=[waiting(1), waiting(3, OTHER4), waiting(4, LOCAL6)])
    assert lengths(found) == {"[::]:5432": 2, "127.0.0.1:5432": 2, "0.0.0.0:5433": 1}


def test_only_what_was_there_before_stays() -> None:
    first = look(listener(LOCAL4, 3), sockets=[waiting(1), waiting(2), waiting(3)])
    gave_up = waiting(2, state=CLOSE_WAIT)
    again = waiting(3, cookie=99)  # another connection from the same port
    second = look(listener(LOCAL4, 3), sockets=[gave_up, again, waiting(4)])
    stayed = second.staying(first)
    assert (stayed.length, stayed.waiting) == (1, [gave_up])


def test_under_procfs_the_same_ends_are_the_same_connection() -> None:
    first = look(listener(LOCAL4, 2), sockets=[waiting(1, cookie=None), waiting(2, cookie=None)])
    second = look(listener(LOCAL4, 2), sockets=[waiting(2, cookie=None), waiting(3, cookie=None)])
    assert second.staying(first).waiting == [waiting(2, cookie=None)]


def test_of_those_that_are_no_sockets_the_smaller_number_stays() -> None:
    first = look(listener(LOCAL4, 5), sockets=[waiting(1)])
    second = look(listener(LOCAL4, 3), sockets=[waiting(1)])
    assert lengths(second.staying(first)) == {"127.0.0.1:5432": 3}
    assert lengths(first.staying(second)) == {"127.0.0.1:5432": 3}


def test_sockets_that_came_after_the_listener_was_read_are_no_less() -> None:
    assert look(listener(LOCAL4, 1), sockets=[waiting(1), waiting(2)]).length == 2


def test_nothing_stays_in_the_queue_of_a_new_listener() -> None:
    first = look(listener(LOCAL4, 2, 1), sockets=[waiting(1)])
    second = look(listener(LOCAL4, 2, 2), sockets=[waiting(1)])
    stayed = second.staying(first)
    assert (lengths(stayed), stayed.waiting) == ({"127.0.0.1:5432": 0}, [])


def test_listeners_that_share_an_address() -> None:
    def both(one: int, other: int, *sockets: Socket) -> Look:
        return look(listener(LOCAL4, one, 1), listener(LOCAL4, other, 2), sockets=[*sockets])

    first, second = both(5, 1, waiting(1), waiting(2)), both(4, 0, waiting(2), waiting(3))
    stayed = second.staying(first)
    assert [one.length for one in stayed.queues] == [4, 0]
    assert (stayed.length, stayed.waiting) == (4, [waiting(2)])


def test_the_fullest_is_so_relative_to_its_backlog() -> None:
    found = look(listener(LOCAL4, 4, 1, 100), listener(OTHER4, 3, 2, 10), sockets=[])
    assert [one.name for one in found.ranked] == ["127.0.0.2:5432", "127.0.0.1:5432"]
    # Without a backlog nothing is relative.
    found.add_unix([unix(7, None)], 2)
    assert found.fullest is found.queues[0]
    assert look(sockets=[]).fullest is None


def test_of_empty_queues_the_one_with_the_smallest_backlog() -> None:
    found = look(listener(LOCAL4, 0, 1, 100), listener(OTHER4, 0, 2, 10), sockets=[])
    assert found.fullest is found.queues[1]


def test_a_backlog_of_zero_lets_one_wait() -> None:
    found = look(listener(LOCAL4, 1, 1, 0), listener(OTHER4, 9, 2, 10), sockets=[])
    assert found.fullest is found.queues[0]


def test_unix_sockets_by_several_paths() -> None:
    found = Look()
    found.add_unix([unix(7, 3)], 3)
    found.add_unix([unix(7, 3)], 3)
    found.add_unix([unix(8, None, b"\0na|me")], 2)
    assert lengths(found) == {"/run/.s.PGSQL.5432": 3, "@na?me": 2}


def test_of_a_unix_socket_the_same_clients_stay() -> None:
    def waiting_there(told: int, *clients: int) -> Look:
        made = Look()
        made.add_unix([unix(7, told)], told, {7: clients, 8: (5,)})
        return made

    first = waiting_there(4, 21, 22, 0, 23)
    assert (first.length, first.queues[0].clients) == (4, frozenset({21, 22, 23}))
    stayed = waiting_there(5, 22, 0, 23, 24, 25).staying(first)
    assert (stayed.length, stayed.queues[0].clients) == (3, frozenset({22, 23}))
    # A queue that is never empty, and moves on.
    assert waiting_there(2, 31, 32).staying(first).length == 0


def test_the_oldest() -> None:
    assert oldest([waiting(1, age=1500), waiting(2, age=20)]) == 1.5
    assert oldest([]) == 0


def test_counters_of_another_version_are_none() -> None:
    one = Counter("127.0.0.1:5432", 17, 1017, 3, 2, "postgresql", [4711, 99])
    assert parse_counters([list(one)]) == [one]
    assert parse_counters([list(one[:6]), list(one)]) == [one]
    assert parse_counters({"drops": 3}) == []
    assert parse_counters(None) == []
