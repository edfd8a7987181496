"""What a survey has found: connections, and whose the servers on this host are that have them."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Optional, Union

    from check_pgsock.sessions.connections import Connection
    from check_pgsock.sockets.model import Listener
    from check_pgsock.sockets.unix_sockets import UnixListener


class Survey:
    """The connections of a leg, and what is to be said about how they were found.

    `of_postgresql` are those of servers on this host that are proven to be PostgreSQL's,
    `of_unproven` those of listeners on it of which that is not; `proven` is how many such servers
    the leg has, with connections or without, `unproven` are the listeners.
    """

    __slots__ = (
        "connections", "notes", "of_postgresql", "of_unproven", "proven", "read_at", "unproven",
    )  # fmt: skip

    def __init__(self, read_at: float) -> None:
        self.connections: list[Connection] = []
        self.read_at = read_at  # the ages are those of this time, in seconds since 1970
        self.notes: list[str] = []
        self.of_postgresql: list[Connection] = []
        self.of_unproven: list[Connection] = []
        self.proven = 0
        self.unproven: list[Union[Listener, UnixListener]] = []

    @property
    def is_postgresql(self) -> bool:
        """Whether all servers of the leg on this host, one at least, are PostgreSQL's for sure."""
        return bool(self.proven) and not self.unproven

    def add_server(
        self, listeners: "Sequence[Union[Listener, UnixListener]]", is_proven: bool
    ) -> None:
        """Take in whether the owner of some listeners is proven to be PostgreSQL."""
        if is_proven:
            self.proven += 1
        else:
            self.unproven += listeners

    def add(self, one: "Connection", is_proven: "Optional[bool]") -> None:
        """Take in a connection of a server that is proven to be PostgreSQL's, or not; None: of none
        on this host.
        """
        self.connections.append(one)
        if is_proven is not None:
            (self.of_postgresql if is_proven else self.of_unproven).append(one)
