"""What check_pgsock_pool_size reads of a server, by one connection."""

from check_pgsock.errors import SourceError
from check_pgsock.pooling.samples import Backends, Sample, sum_progress
from check_pgsock.postgres import parallelism
from check_pgsock.postgres.cores import find_cores
from check_pgsock.postgres.locality import find_locality
from check_pgsock.sql_check import choose_named, read_all_statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional

    from check_pgsock.contract import Run
    from check_pgsock.postgres.client import Client
    from check_pgsock.postgres.parallelism import Launched, Looks
    from check_pgsock.postgres.statistics import Statistics


class Reading:
    """One server: its row of server.sql, all its databases, and the oids of those asked for; the
    client backends, looks at statements and counters of parallel workers by oid; the cores it may
    use. `notes` qualify that, `told` and `details` say how it was read.
    """

    __slots__ = (
        "backends", "chosen", "cores", "databases", "details", "launched", "looks", "notes",
        "server", "told",
    )  # fmt: skip

    def __init__(
        self, server: "dict[str, Any]", databases: "list[Statistics]", chosen: "set[int]"
    ) -> None:
        self.server = server
        self.databases = databases
        self.chosen = chosen
        self.backends: dict[int, list[Backends]] = {}
        self.cores = 0.0
        self.launched: dict[int, Launched] = {}
        self.looks: Optional[dict[int, Looks]] = None
        self.notes: list[str] = []
        self.told: list[str] = []
        self.details: list[str] = []

    def samples(self) -> "dict[int, Sample]":
        """What is stored of each database, by oid."""
        return {one.oid: self._sample(one) for one in self.databases}

    def _sample(self, one: "Statistics") -> Sample:
        backends = self.backends.get(one.oid, [])
        looks = self.looks
        return Sample(
            one,
            sum_progress(backends),
            sum(each.count for each in backends),
            None if looks is None else looks.get(one.oid, parallelism.NONE_SEEN),
        )


def read_server(run: "Run", client: "Client") -> Reading:
    """Read it all; raises SourceError where a database that is asked for is missing, or where the
    cores are neither named nor known.
    """
    server = client.query("server.sql")[0]
    databases = read_all_statistics(client, server, run.options.database)
    chosen = {one.oid for one in choose_named(databases, server, run.options.database)}
    reading = Reading(server, databases, chosen)
    for row in client.query("pool_backends.sql"):
        reading.backends.setdefault(row["oid"], []).append(Backends(**row))
    _find_cores(run, reading)  # while our backend lives: it is the proof
    reading.launched = parallelism.launched(client) or {}
    if run.options.parallelism is None:
        reading.looks = _look(run, client, reading)
    reading.details.append(client.describe())
    return reading


def _find_cores(run: "Run", reading: Reading) -> None:
    """--cores, or those that the server may use where it is proven to be on this machine."""
    if run.options.cores is not None:
        reading.cores = float(run.options.cores)
        return
    server = reading.server
    locality = find_locality(server["backend_pid"], server["backend_start"], run.deadline)
    if not locality.proven:
        raise SourceError(
            f"whether the server is on this machine is not proven ({locality.reason}); name the "
            "server's cores with --cores"
        )
    cores = find_cores(server["backend_pid"], run.deadline)
    reading.cores = cores.count
    reading.told.append(f"cores: {cores.how}; {locality.reason}")
    if cores.unread is not None:
        reading.notes.append(f"{cores.unread}; --cores names what holds")


def _look(run: "Run", client: "Client", reading: Reading) -> "dict[int, Looks]":
    """The looks at all databases; by the titles of the server's processes where the role of the
    check may not see what others do, and the server is on this machine.
    """
    looks = parallelism.look(client, run.deadline)
    if not any(one.hidden for one in looks.values()):
        return looks
    pid = reading.server["backend_pid"]
    if not find_locality(pid, reading.server["backend_start"], run.deadline).proven:
        return looks
    oids = {one.name: one.oid for one in reading.databases}
    return parallelism.look_at_titles(pid, oids, run.deadline)
