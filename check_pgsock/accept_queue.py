"""Accept queues: the connections that the kernel has completed and no process has taken; pure.

A TCP connection waits in the queue of its listener as a socket without an inode, in ESTABLISHED,
or in CLOSE_WAIT once its client has given up. One that its client has reset is in no table of the
kernel any more and keeps its place in the queue all the same: of it, as of one on a Unix socket
whose client is gone, the listener's own count alone tells. The others that wait on a Unix socket
are told by their clients' ends. Authority: inet_csk_reqsk_queue_add() and inet_csk_accept() in
net/ipv4/inet_connection_sock.c, unix_accept() in net/unix/af_unix.c, sk_diag_dump_icons() in
net/unix/diag.c.
"""

from check_pgsock.legs import format_endpoint, listeners_at
from check_pgsock.sockets.model import Listener
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Optional, Union

    from check_pgsock.sockets.model import Socket
    from check_pgsock.sockets.reader import SocketReader
    from check_pgsock.sockets.unix_sockets import UnixListener

    AnyListener = Union[Listener, UnixListener]


class Queue:
    """The queue of one listener at one moment, or what stayed in it between two.

    `waiting` are those of its connections that are sockets of their own, `clients` the inodes of
    the clients' ends of those that wait on a Unix socket, `others` is how many more there are.
    `namespace` is the network namespace of a TCP listener, where one was asked for.
    """

    __slots__ = ("clients", "listener", "namespace", "others", "waiting")

    def __init__(
        self,
        listener: "AnyListener",
        waiting: "list[Socket]",
        told: int,
        namespace: "Optional[str]" = None,
        clients: "Iterable[int]" = (),
    ) -> None:
        self.listener = listener
        self.namespace = namespace
        self.waiting = waiting
        self.clients = frozenset(clients)
        self.others = max(told - len(waiting) - len(self.clients), 0)

    @property
    def length(self) -> int:
        """The number of connections in it."""
        return len(self.waiting) + len(self.clients) + self.others

    @property
    def name(self) -> str:
        """`127.0.0.1:5432`, with the name of its network namespace, or a path; fit to print."""
        one = self.listener
        if not isinstance(one, Listener):
            return clean(one.path.replace(b"\0", b"@").decode("utf-8", "surrogateescape"), 108)
        at = format_endpoint(one.address, one.port)
        return at if self.namespace is None else f"{at} in {clean(self.namespace)}"

    @property
    def backlog(self) -> "Optional[int]":
        """The limit of its length, of which the kernel lets it have one more; None: not told."""
        return self.listener.backlog

    def staying(self, earlier: "Optional[Queue]") -> "Queue":
        """What of this queue was in it at the `earlier` look, too; nothing, if that had none.

        Of those that cannot be told one from another the smaller number may have stayed.
        """
        if earlier is None:
            return Queue(self.listener, [], 0, self.namespace)
        waiting = _staying(earlier.waiting, self.waiting)
        clients = earlier.clients & self.clients
        told = len(waiting) + len(clients) + min(earlier.others, self.others)
        return Queue(self.listener, waiting, told, self.namespace, clients)


class Look:
    """All queues of a leg at one moment, or what stayed in them.

    `shared` are waiting connections that one of several listeners with the same address has, as
    processes with SO_REUSEPORT make them: whose, the kernel does not tell, so that each of their
    queues is as long as its listener tells. `missing` says of Unix sockets why nobody listens.
    """

    __slots__ = ("missing", "notes", "queues", "shared")

    def __init__(self) -> None:
        self.queues: list[Queue] = []
        self.shared: list[Socket] = []
        self.missing: list[str] = []
        self.notes: list[str] = []

    @property
    def waiting(self) -> "list[Socket]":
        """The connections in all queues that are sockets of their own."""
        return [*(one for queue in self.queues for one in queue.waiting), *self.shared]

    @property
    def length(self) -> int:
        """The number of connections in all queues."""
        return sum(one.length for one in self.queues)

    @property
    def unix(self) -> "list[Queue]":
        """The queues of Unix sockets."""
        return [one for one in self.queues if not isinstance(one.listener, Listener)]

    @property
    def tcp(self) -> "list[Listener]":
        """The listeners that are no Unix sockets."""
        return [one.listener for one in self.queues if isinstance(one.listener, Listener)]

    @property
    def fullest(self) -> "Optional[Queue]":
        """The queue that is fullest, relative to its backlog if all of them tell theirs; None
        where there is none.
        """
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> "list[Queue]":
        """The queues, the fullest first; of equally full ones that with the smaller backlog."""
        absolute = any(one.backlog is None for one in self.queues)

        def rank(one: Queue) -> "tuple[float, int]":
            backlog = one.backlog or 0
            return -one.length / (1 if absolute else backlog + 1), backlog

        return sorted(self.queues, key=rank)

    def add_tcp(
        self,
        reader: "SocketReader",
        bound: "list[Listener]",
        chosen: "list[Listener]",
        waiting: "Iterable[Socket]",
    ) -> None:
        """Take in the queues of the `chosen` ones of all listeners `bound` to their ports, and of
        the connections that wait on these ports those that are theirs.
        """
        of: dict[int, list[Socket]] = {one.inode: [] for one in bound}
        inodes = {one.inode for one in chosen}
        takers: dict[tuple[int, bytes], list[Listener]] = {}
        for one in waiting:
            at = one.local_port, one.local_address
            if at not in takers:
                same = [each for each in bound if each.port == one.local_port]
                takers[at] = listeners_at(one.local_address, same)
            if len(takers[at]) == 1:
                of[takers[at][0].inode].append(one)
            elif any(each.inode in inodes for each in takers[at]):
                self.shared.append(one)
        place = None if reader.namespace is None else reader.namespace.name
        self.queues += [Queue(one, of[one.inode], one.accept_queue, place) for one in chosen]

    def add_unix(
        self,
        listeners: "list[UnixListener]",
        waiting: int,
        clients: "Mapping[int, Iterable[int]]" = {},  # noqa: B006 (it is only read)
    ) -> None:
        """Take in the queue of a Unix socket, as its listener tells it, or else `waiting`; none if
        another path has led to the same listener before. `clients` are the inodes of the clients'
        ends that wait, by the listener's; 0 for one that is gone.
        """
        known = {one.listener.inode for one in self.queues}
        for one in listeners:
            if one.inode not in known:
                told = waiting if one.accept_queue is None else one.accept_queue
                known_clients = (each for each in clients.get(one.inode, ()) if each)
                self.queues.append(Queue(one, [], told, None, known_clients))

    def staying(self, earlier: "Look") -> "Look":
        """What of this look was there at the `earlier` one, too."""
        before = {(one.listener.inode, one.listener.cookie): one for one in earlier.queues}
        found = Look()
        found.missing, found.notes = self.missing, self.notes
        found.queues = [
            one.staying(before.get((one.listener.inode, one.listener.cookie)))
            for one in self.queues
        ]
        found.shared = _staying(earlier.shared, self.shared)
        return found


def _staying(earlier: "list[Socket]", now: "list[Socket]") -> "list[Socket]":
    seen = {_identity(one) for one in earlier}
    return [one for one in now if _identity(one) in seen]


def _identity(one: "Socket") -> object:
    """What makes a waiting socket the same in two looks: its cookie, or under procfs its ends."""
    return one[1:5] if one.cookie is None else one.cookie


def oldest(waiting: "Iterable[Socket]") -> float:
    """For how many seconds the one that waits longest has been waiting; 0 for none.

    That is the time since its last data were sent: none are before it is accepted, so the clock
    runs from when it was completed (tcp_rcv_state_process() in net/ipv4/tcp_input.c sets lsndtime).
    What its client sends, closes or acknowledges does not set it back.
    """
    ages = (one.info.last_data_sent_ms for one in waiting if one.info is not None)
    return max(ages, default=0) / 1000
