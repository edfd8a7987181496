"""Sockets of several places together, such as several network namespaces."""

from check_pgsock.deadline import Deadline
from check_pgsock.sockets.model import Query, Socket, Tally
from check_pgsock.sockets.namespaces import find_namespaces
from check_pgsock.sockets.reader import Reader, SocketReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Callable

    from check_pgsock.sockets.unix_sockets import AnyUnix


class PooledReader(Reader):
    """Several places, each once: their sockets together."""

    def __init__(self, each: "tuple[SocketReader, ...]") -> None:
        self._each = each

    @property
    def each(self) -> "tuple[SocketReader, ...]":
        """The readers of the single places."""
        return self._each

    @property
    def used(self) -> str:
        """The names of the sources."""
        return ", ".join(dict.fromkeys(one.used for one in self._each))

    @property
    def saved(self) -> bool:
        """Whether a saved moment is read: all of one recording are."""
        return any(one.saved for one in self._each)

    @property
    def of_this_host(self) -> bool:
        """Whether their files and processes are those that can be seen here, and now."""
        return all(one.of_this_host for one in self._each)

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`, and keep the listeners among them."""
        total = Tally()
        for one in self._each:
            found = one.count(query)
            total.states = [sum(both) for both in zip(total.states, found.states)]
            total.not_accepted += found.not_accepted
            total.listeners += found.listeners
        return total

    def sockets(self, query: Query) -> "list[Socket]":
        """Return the sockets that answer `query`."""
        return [found for one in self._each for found in one.sockets(query)]

    def unix(self, states: int, wanted: "Callable[[AnyUnix], bool]") -> "list[AnyUnix]":
        """Return the Unix sockets in these states that are `wanted`."""
        return [found for one in self._each for found in one.unix(states, wanted)]

    def notes(self) -> "list[str]":
        """What qualifies all that was read."""
        return list(dict.fromkeys(note for one in self._each for note in one.notes()))

    def describe(self) -> "list[str]":
        """How the sockets were read."""
        return [line for one in self._each for line in one.describe()]


def open_namespaces(names: "Iterable[str]", choice: str, deadline: Deadline) -> Reader:
    """The reader of the network namespaces of these names or processes (one at least), each read
    once. Raises SourceError.
    """
    readers = [SocketReader(choice, None, deadline, one) for one in find_namespaces(names)]
    return join_readers(readers)


def join_readers(readers: "list[SocketReader]") -> Reader:
    """One reader of all that these read."""
    return readers[0] if len(readers) == 1 else PooledReader(tuple(readers))
