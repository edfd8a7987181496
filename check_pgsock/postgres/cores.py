"""The cores that a PostgreSQL server on this host may use: what its postmaster is allowed.

Backends inherit it when they are forked: of the online CPUs those in its affinity, which a cpuset
narrows down by itself, and as many as the smallest CPU quota of its cgroup, or of one above that,
leaves. A quota that cannot be read is said to be unknown; it is never taken for none.

Authority: proc_pid_status(5), proc_pid_mountinfo(5), cgroups(7), cgroup_namespaces(7); of the
kernel's documentation admin-guide/cgroup-v2.rst (cpu.max), scheduler/sched-bwc.rst
(cpu.cfs_quota_us) and admin-guide/cgroup-v1/cpusets.rst.
"""

import os
import re
from collections import namedtuple

from check_pgsock.errors import SourceError
from check_pgsock.postgres.locality import find_postmaster
from check_pgsock.proc_files import LiveProc
from check_pgsock.processes import ProcessTable
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple, Optional

    from check_pgsock.deadline import Deadline

# What bounds the cores.
ONLINE = "online CPUs"
AFFINITY = "CPU affinity"
CPUSET = "cpuset"
QUOTA = "CPU quota"

SYSTEM_CPUS = "/sys/devices/system/cpu"
# The hierarchy of cgroup v2 among those of v1, which are known by their controllers.
_UNIFIED = ""
# By whether the hierarchy is v2: what holds quota and period, the CPUs of a cpuset, and a file that
# every cgroup but the root has (v2), or the root alone (v1).
_QUOTA_FILES = {True: ("cpu.max",), False: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
_CPUSET_FILE = {True: "cpuset.cpus.effective", False: "cpuset.effective_cpus"}
_ROOT_FILE = {True: "cgroup.events", False: "release_agent"}
_EVERY_CGROUP = "cgroup.procs"
_NO_QUOTA = (b"max", b"-1")
_QUOTA = re.compile(rb"\s*(max|-1|[1-9][0-9]*)\s+([1-9][0-9]*)\s*")
_OCTAL = re.compile(r"\\([0-7]{3})")

if TYPE_CHECKING:

    class Mount(NamedTuple):
        """Where (a part of) a hierarchy of cgroups is mounted.

        `root` is the path of the cgroup at `point`, in the reader's cgroup namespace, as those in
        /proc/PID/cgroup are. `controllers` are those of a v1 hierarchy; None: it is v2.
        """

        root: str
        point: str
        controllers: "Optional[frozenset[str]]"

else:
    Mount = namedtuple("Mount", "root point controllers")


class Cores:
    """How many cores the server may use at most: `count`, 1.5 with 150 ms in each 100 ms.

    `bound` is what leaves no more (ONLINE, AFFINITY, CPUSET or QUOTA), `how` the same in words.
    `unread` says why there may be a lower quota that was not read; None: there is none.
    """

    __slots__ = ("bound", "count", "how", "unread")

    def __init__(self, count: float, bound: str, how: str, unread: "Optional[str]") -> None:
        self.count = count
        self.bound = bound
        self.how = how
        self.unread = unread


def find_cores(
    backend_pid: int, deadline: "Deadline", root: str = "/proc", cpus: str = SYSTEM_CPUS
) -> Cores:
    """The cores of the server that has this backend, which is proven to be on this host.

    Everybody may read them. Raises SourceError where the server's processes cannot be read.
    """
    deadline.doing = f"reading the cores of the server of process {backend_pid}"
    table = ProcessTable(deadline, LiveProc(root))
    pid = find_postmaster(backend_pid, table).pid
    try:
        allowed = parse_allowed(table.read(pid, "status") or b"")
    except ValueError:
        raise SourceError(
            f"the CPU affinity of process {pid} cannot be read from {table.path(pid, 'status')}; "
            "name the server's cores with --cores"
        ) from None
    online = _online(cpus) or allowed
    # Two views of the machine (lxcfs numbers the CPUs anew) may have none in common.
    usable = (allowed & online) or allowed
    number = min(len(usable), len(online))
    postmaster = f"the postmaster (process {pid})"
    cgroups = _Cgroups(table, pid, deadline)
    quota, of_cgroup = cgroups.smallest_quota()
    unread = None
    if cgroups.unread is not None:
        unread = f"whether a lower CPU quota limits {postmaster} is not known: {cgroups.unread}"
    if quota is not None and quota < number:
        how = (
            f"{quota:.3g} by the {QUOTA} of cgroup {clean(of_cgroup)}, which limits {postmaster}; "
            f"it may run on {number} of {len(online)} {ONLINE}"
        )
        return Cores(quota, QUOTA, how, unread)
    if number < len(online):
        bound = CPUSET if cgroups.cpuset() == allowed else AFFINITY
        how = f"{number} of {len(online)} {ONLINE} by the {bound} of {postmaster}"
        return Cores(float(number), bound, how, unread)
    said = "no CPU quota" if unread is None else "no CPU quota that can be read"
    return Cores(float(number), ONLINE, f"{number} {ONLINE}; {said} limits {postmaster}", unread)


def parse_cpus(text: bytes) -> "frozenset[int]":
    """The CPUs of a list such as `0-3,8`; raises ValueError."""
    found: set[int] = set()
    for part in text.strip().split(b","):
        first, dash, last = part.partition(b"-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def parse_allowed(raw: bytes) -> "frozenset[int]":
    """The affinity in /proc/PID/status; raises ValueError."""
    for line in raw.splitlines():
        name, _, value = line.partition(b":")
        if name == b"Cpus_allowed_list":
            return parse_cpus(value)
    raise ValueError("no Cpus_allowed_list line")


def parse_quota(raw: bytes) -> "Optional[float]":
    """CPUs from `QUOTA PERIOD` in microseconds, as cpu.max has them and the files of v1 one each;
    None: no limit. Raises ValueError.
    """
    match = _QUOTA.fullmatch(raw)
    if match is None:
        raise ValueError(f"no CPU quota: {raw!r}")
    return None if match[1] in _NO_QUOTA else int(match[1]) / int(match[2])


def parse_memberships(raw: bytes) -> "dict[str, str]":
    """The paths in /proc/PID/cgroup by controller of v1, and by "" that of v2.

    Raises ValueError.
    """
    found = {}
    for line in raw.splitlines():
        fields = os.fsdecode(line).split(":", 2)
        if len(fields) < 3:
            raise ValueError(f"no line of cgroups: {line!r}")
        for name in fields[1].split(","):
            found[name] = fields[2]
    return found


def parse_mounts(raw: bytes) -> "list[Mount]":
    """The mounts of cgroups in /proc/self/mountinfo; raises ValueError."""
    found = []
    for line in os.fsdecode(raw).splitlines():
        place, _, kind = line.partition(" - ")
        fields = place.split(" ")[3:5] + kind.split(" ")
        if len(fields) < 5:
            raise ValueError(f"no line of mounts: {line!r}")
        root, point, system, _, options = fields[:5]
        if system in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) if system == "cgroup" else None
            found.append(Mount(_unescape(root), _unescape(point), controllers))
    return found


def find_directories(path: str, controller: str, mounts: "list[Mount]") -> "list[tuple[str, str]]":
    """The directories that the cgroup `path` of a hierarchy may have, each with the mount point
    above it; first where most of the cgroups above it can be seen.

    There is none where it is outside of what is mounted: in another cgroup namespace (`/../x`).
    """
    found = []
    for one in mounts:
        has_it = not controller if one.controllers is None else controller in one.controllers
        top = one.root.rstrip("/")
        below = path[len(top) :]
        is_inside = path.startswith(top) and below[:1] in ("", "/") and ".." not in below.split("/")
        if has_it and is_inside:
            found.append((one.point.rstrip("/") + below.rstrip("/"), one.point))
    return sorted(found, key=lambda pair: len(pair[1]) - len(pair[0]))


def _unescape(field: str) -> str:
    """Blanks and backslashes are octal in mountinfo."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def _online(cpus: str) -> "Optional[frozenset[int]]":
    try:
        return parse_cpus(LiveProc(cpus).read("online"))
    except (OSError, ValueError, SourceError):
        return None


class _Cgroups:
    """The cgroups of one process; `unread` says what of them cannot be read, for smallest_quota."""

    def __init__(self, table: ProcessTable, pid: int, deadline: "Deadline") -> None:
        self.unread: Optional[str] = None
        self._deadline = deadline
        self._source = table.path(pid, "cgroup")
        self._paths: dict[str, str] = {}
        self._mounts: list[Mount] = []
        try:
            self._paths = parse_memberships(table.files.read(str(pid), "cgroup"))
            self._mounts = parse_mounts(table.files.read("self", "mountinfo"))
        except (OSError, ValueError, SourceError) as error:
            self.unread = _reason(error)

    def smallest_quota(self) -> "tuple[Optional[float], str]":
        """The CPUs that the process's cgroup and those above it leave, and which of them does."""
        found: tuple[Optional[float], str] = (None, "")
        if self.unread is not None:
            return found
        unified = "cpu" not in self._paths
        try:
            for directory, name in self._levels("cpu"):
                quota = self._quota(directory, unified)
                if quota is not None and (found[0] is None or quota < found[0]):
                    found = quota, name
            is_root = os.path.exists(os.path.join(directory, _ROOT_FILE[unified])) != unified
            if not is_root:
                self.unread = f"the cgroups above {clean(name)} cannot be seen from here"
        except (OSError, ValueError, SourceError) as error:
            self.unread = _reason(error)
        return found

    def cpuset(self) -> "Optional[frozenset[int]]":
        """The CPUs that the cgroup of the process may use; None where that cannot be told."""
        name = _CPUSET_FILE["cpuset" not in self._paths]
        try:
            for directory, _ in self._levels("cpuset"):
                # (In v2 it is there where the controller is enabled.)
                if os.path.exists(os.path.join(directory, name)):
                    return parse_cpus(LiveProc(directory).read(name))
        except (OSError, ValueError, SourceError):
            pass
        return None

    def _levels(self, controller: str) -> "Iterator[tuple[str, str]]":
        """Directory and path of the process's cgroup and of those above it that can be seen."""
        controller = controller if controller in self._paths else _UNIFIED
        path = self._paths.get(controller)
        if path is None:
            raise SourceError(f"{self._source} tells no cgroup that could have one")
        directories = find_directories(path, controller, self._mounts)
        seen = [one for one in directories if os.path.exists(os.path.join(one[0], _EVERY_CGROUP))]
        if not seen:
            raise SourceError(f"cgroup {clean(path)} is not among those that are mounted here")
        directory, top = seen[0]
        yield directory, path
        while directory != top:
            self._deadline.remaining()
            directory, path = os.path.dirname(directory), os.path.dirname(path)
            yield directory, path

    @staticmethod
    def _quota(directory: str, unified: bool) -> "Optional[float]":
        files = LiveProc(directory)
        try:
            return parse_quota(b" ".join(files.read(name) for name in _QUOTA_FILES[unified]))
        except FileNotFoundError:
            files.read(_EVERY_CGROUP)
            return None  # the controller is not enabled there, or the cgroup is the root


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{clean(str(error.filename), 200)}: {error.strerror}"
    return clean(str(error), 200)
