"""avg_parallelism of the pool-size formula: the processes that work on a statement, on average.

(statements + their parallel workers) / statements, over the time in which they execute: looks at
the server at several moments count each statement as long as it lasts, which is what the formula
needs. PostgreSQL 18's counters say how many workers were launched, but not for how long, only when
the statement has ended, and not for the workers of CREATE INDEX and VACUUM.

Authority: PostgreSQL manual, "The Cumulative Statistics System": pg_stat_activity (leader_pid),
pg_stat_database.
"""

from collections import namedtuple

from check_pgsock.postgres.locality import find_postmaster
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import ProcessTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import NamedTuple, Optional

    from check_pgsock.deadline import Deadline
    from check_pgsock.postgres.client import Client
    from check_pgsock.processes import Process
    from check_pgsock.sessions.titles import Title

LOOKS = 10
PAUSE = 0.05  # seconds between two looks
# Seconds of the deadline that are left to what comes after the looks.
_RESERVE = 1.0
_FIRST_WITH_COUNTERS = 18
# As many as this of each statement that was seen may be hidden: a title may be changing just when
# it is read.
_MOST_HIDDEN = 0.01

if TYPE_CHECKING:

    class Looks(NamedTuple):
        """What looks at one database saw, added up; several of them may be added up further.

        `leaders` are the sessions that executed a statement, `processes` they and their parallel
        workers, `idle` those that were idle in a transaction. `hidden` are the sessions of which
        none of it could be told.
        """

        leaders: int
        processes: int
        hidden: int
        idle: int = 0

    class Launched(NamedTuple):
        """The parallel workers that the statements of one database wanted, and got, since its
        statistics were reset.
        """

        wanted: int
        launched: int

else:
    Looks = namedtuple("Looks", "leaders processes hidden idle", defaults=(0,))
    Launched = namedtuple("Launched", "wanted launched")

NONE_SEEN = Looks(0, 0, 0)


def parallelism(looks: Looks) -> "Optional[float]":
    """avg_parallelism by `looks`, which rests on as many sightings as they have leaders.

    None where no statement was seen, or where more than a few sessions hide what they do.
    """
    if not looks.leaders or looks.hidden > _MOST_HIDDEN * looks.leaders:
        return None
    return looks.processes / looks.leaders


def add(several: "Iterable[Looks]") -> Looks:
    """The sum of looks, as of those in the runs of a window."""
    total = NONE_SEEN
    for one in several:
        total = Looks(*(a + b for a, b in zip(total, one)))
    return total


def look(
    client: "Client", deadline: "Deadline", number: int = LOOKS, pause: float = PAUSE
) -> "dict[int, Looks]":
    """Look at what the sessions of all databases do but this one, `number` times, by database oid;
    fewer times where the deadline is near.

    Of a database that is missing no session was seen. Each look is a transaction of its own: the
    statistics would hold the pauses as time idle in a common one. Raises as Client.query_alone().
    """

    def once() -> "dict[int, Looks]":
        rows = client.query_alone("parallel.sql")
        return {
            row["oid"]: Looks(
                row["leaders"], row["leaders"] + row["workers"], row["hidden"], row["idle"]
            )
            for row in rows
        }

    return _repeat(once, deadline, number, pause)


def launched(client: "Client") -> "Optional[dict[int, Launched]]":
    """The counters of parallel workers by database oid; None before PostgreSQL 18.

    Raises as Client.query() does.
    """
    if client.major < _FIRST_WITH_COUNTERS:
        return None
    rows = client.query("parallel_workers.sql")
    return {row["oid"]: Launched(row["to_launch"], row["launched"]) for row in rows}


def look_at_titles(
    backend_pid: int,
    databases: "Mapping[str, int]",
    deadline: "Deadline",
    number: int = LOOKS,
    pause: float = PAUSE,
    root: str = "/proc",
) -> "dict[int, Looks]":
    """The same by the titles of the server's processes, which everybody may read; `backend_pid` is
    this session's backend, proven to be on this host, and `databases` all databases' oids by name.

    A session whose title does not tell its database is hidden in each of them. Raises SourceError
    where the server's processes cannot be read.
    """
    table = ProcessTable(deadline, LiveProc(root))
    postmaster = find_postmaster(backend_pid, table)

    def once() -> "dict[int, Looks]":
        return count_titles(_read_titles(table, postmaster, backend_pid), databases)

    return _repeat(once, deadline, number, pause)


def count_titles(
    titles: "Mapping[int, Title]", databases: "Mapping[str, int]"
) -> "dict[int, Looks]":
    """One look at these titles, by process id; `databases` are the oids by name."""
    from check_pgsock.sessions import titles as kinds
    from check_pgsock.sessions.states import ABORTED, ACTIVE, FASTPATH, IDLE_IN_TRANSACTION

    workers: dict[Optional[int], int] = {}
    for title in titles.values():
        if title.kind == kinds.PARALLEL_WORKER:
            workers[title.leader] = workers.get(title.leader, 0) + 1
    found: dict[int, Looks] = {}
    for pid, title in titles.items():
        if title.kind not in (kinds.CLIENT_BACKEND, kinds.UNKNOWN):
            continue
        if title.state in (ACTIVE, FASTPATH):
            one = Looks(1, 1 + workers.get(pid, 0), 0)
        elif title.state in (IDLE_IN_TRANSACTION, ABORTED):
            one = Looks(0, 0, 0, 1)
        elif title.state is None and title.waiting is None:
            one = Looks(0, 0, 1)
        else:
            one = NONE_SEEN
        oid = databases.get(title.database or "")
        if oid is None and one != NONE_SEEN:
            one = Looks(0, 0, 1)
        for each in databases.values() if oid is None else (oid,):
            found[each] = add((found.get(each, NONE_SEEN), one))
    return found


def _read_titles(
    table: ProcessTable, postmaster: "Process", own_backend: int
) -> "dict[int, Title]":
    from check_pgsock.servers.candidates import children_of
    from check_pgsock.servers.clusters import Cluster
    from check_pgsock.sessions.backends import read_titles

    children = [(pid, postmaster.command) for pid in children_of(table, postmaster.pid)]
    titles = read_titles(table, Cluster(postmaster, children, table))
    titles.pop(own_backend, None)
    return titles


def _repeat(
    once: "Callable[[], dict[int, Looks]]", deadline: "Deadline", number: int, pause: float
) -> "dict[int, Looks]":
    """The sum of several looks; at least one."""
    total: dict[int, Looks] = {}
    for left in reversed(range(number)):
        for oid, one in once().items():
            total[oid] = add((total.get(oid, NONE_SEEN), one))
        if not left or deadline.remaining() < pause + _RESERVE:
            break
        deadline.doing = "waiting for the next look at the sessions"
        deadline.sleep(pause)
    return total
