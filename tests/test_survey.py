"""What a survey asks the kernel for."""

from __future__ import annotations

from check_pgsock.deadline import Deadline
from check_pgsock.legs import Leg
from check_pgsock.pgsock.lab.postgres import PostgresServer
from check_pgsock.proc_files import LiveProc
from check_pgsock.sessions.survey import survey
from check_pgsock.sockets.model import ESTABLISHED, Query, Tally
from check_pgsock.sockets.reader import SocketReader
from check_pgsock.view import View
from tests.conftest import OpenSessions


class NotingReader(SocketReader):
    """One that notes what is counted: listeners are."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__("netlink", None, deadline)
        self.noted: list[Query] = []

    def count(self, query: Query) -> Tally:
        """Count the sockets that answer `query`."""
        self.noted.append(query)
        return super().count(query)


def test_listeners_that_are_known_are_not_read_again(
    pg: PostgresServer, sessions: OpenSessions
) -> None:
    sessions(pg, 2)
    deadline = Deadline(10)
    reader = NotingReader(deadline)
    view = View(reader, LiveProc(), deadline)
    bound = reader.listeners(pg.port)
    for known, times in ((bound, 0), (None, 1)):
        reader.noted.clear()
        found = survey(view, Leg((pg.port,)), 1 << ESTABLISHED, bound=known)
        assert (len(found.connections), found.proven) == (2, 1)
        assert len(reader.noted) == times
