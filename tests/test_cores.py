"""The cores of a server, from files as kernels write them, in a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError
from check_pgsock.postgres import cores
from check_pgsock.postgres.cores import Cores, Mount, find_cores

POSTMASTER, BACKEND = 77, 80
V2 = "30 23 0:26 / {top}/all rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / {top}/named rw - cgroup cgroup rw,xattr,name=systemd\n"
    "33 23 0:29 / {top}/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "34 23 0:31 / {top}/set rw - cgroup cgroup rw,cpuset\n"
)
HYBRID = V2.replace("{top}/all", "{top}/unified") + V1
UNKNOWN = "whether a lower CPU quota limits the postmaster (process 77) is not known: "


class Host:
    """A made-up host with 8 CPUs, and a server on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("cpus/online", "0-7\n")
        self.write(f"proc/{BACKEND}/stat", f"{BACKEND} (postgres) S {POSTMASTER} 0 0\n")
        self.write(f"proc/{POSTMASTER}/stat", f"{POSTMASTER} (postgres) S 1 0 0\n")
        self.write(f"proc/{POSTMASTER}/cmdline", "postgres\0-D\0/data\0")
        self.allow("0-127")
        self.mount(V2)
        self.join("0::/\n")
        self.write("all/cgroup.procs", "")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def allow(self, cpus: str) -> None:
        """Set the postmaster's affinity."""
        text = f"Name:\tpostgres\nUid:\t26\t26\t26\t26\nCpus_allowed_list:\t{cpus}\n"
        self.write(f"proc/{POSTMASTER}/status", text)

    def mount(self, table: str) -> None:
        """Set the reader's mountinfo."""
        self.write("proc/self/mountinfo", table.format(top=self.root))

    def join(self, memberships: str) -> None:
        """Set the postmaster's cgroups."""
        self.write(f"proc/{POSTMASTER}/cgroup", memberships)

    def make(self, *names: str, **files: str) -> None:
        """Make cgroups of v2 below one another, the last with these files."""
        path = "all"
        for name in names:
            path += f"/{name}"
            self.write(f"{path}/cgroup.procs", "")
            self.write(f"{path}/cgroup.events", "populated 1\n")
        for name, text in files.items():
            self.write(f"{path}/{name.replace('_', '.')}", text)

    def make_v1(self, path: str, quota: str, period: str = "100000\n") -> None:
        """Make a cgroup of the cpu controller of v1."""
        self.write(f"cpu{path}/cgroup.procs", "")
        self.write(f"cpu{path}/cpu.cfs_quota_us", quota)
        self.write(f"cpu{path}/cpu.cfs_period_us", period)

    def find(self) -> Cores:
        root, cpus = (str(self.root / name) for name in ("proc", "cpus"))
        return find_cores(BACKEND, Deadline(5), root, cpus)

    def found(self) -> tuple[float, str, str | None]:
        """Count and bound, and why it may be less, with paths from the host's top."""
        one = self.find()
        unread = one.unread and one.unread.replace(f"{self.root}/", "").replace(UNKNOWN, "")
        return one.count, one.bound, unread


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [(b"0\n", {0}), (b"0-3,8\n", {0, 1, 2, 3, 8}), (b"2-2", {2}), (b"1,3,5\n", {1, 3, 5})],
)
def test_lists_of_cpus(text: bytes, cpus: set[int]) -> None:
    assert cores.parse_cpus(text) == cpus


@pytest.mark.parametrize("text", [b"", b"\n", b"0-", b"a", b"0,,1"])
def test_no_lists_of_cpus(text: bytes) -> None:
    with pytest.raises(ValueError):
        cores.parse_cpus(text)


@pytest.mark.parametrize(
    ("raw", "quota"),
    [
        (b"max 100000\n", None),
        (b"150000 100000\n", 1.5),
        (b"5000 10000\n", 0.5),
        (b"-1\n 100000\n", None),
        (b"400000\n 50000\n", 8.0),
    ],
)
def test_quotas(raw: bytes, quota: float | None) -> None:
    assert cores.parse_quota(raw) == quota


@pytest.mark.parametrize("raw", [b"", b"max", b"0 100000", b"1000 0", b"-2 1000", b"x 1000"])
def test_no_quotas(raw: bytes) -> None:
    with pytest.raises(ValueError):
        cores.parse_quota(raw)


def test_memberships() -> None:
    raw = b"5:name=systemd:/a\n4:cpu,cpuacct:/b:c/d\n0::/system.slice/a b\xff\n"
    assert cores.parse_memberships(raw) == {
        "name=systemd": "/a",
        "cpu": "/b:c/d",
        "cpuacct": "/b:c/d",
        "": "/system.slice/a b\udcff",
    }


def test_mounts() -> None:
    raw = (
        b"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        b"41 31 0:38 /docker/a\\040b /mnt/c\\134d rw shared:1 master:2 - cgroup2 none rw\n"
        b"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    )
    assert cores.parse_mounts(raw) == [
        Mount("/docker/a b", "/mnt/c\\d", None),
        Mount("/", "/sys/fs/cgroup/cpu", frozenset(("rw", "cpu", "cpuacct"))),
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", [("/whole", "/whole")]),
        ("/docker", [("/whole/docker", "/whole")]),
        ("/docker/a", [("/whole/docker/a", "/whole"), ("/part", "/part")]),
        ("/docker/a/b", [("/whole/docker/a/b", "/whole"), ("/part/b", "/part")]),
        ("/docker/ab", [("/whole/docker/ab", "/whole")]),
        # A reader in a cgroup namespace, before which a mount begins.
        ("/../../x", [("/hosts/x", "/hosts")]),
        ("/../..", [("/hosts", "/hosts")]),
        ("/../../../x", []),
        ("/../x", []),
    ],
)
def test_directories(path: str, found: list[tuple[str, str]]) -> None:
    mounts = [
        Mount("/docker/a", "/part", None),
        Mount("/", "/whole", None),
        Mount("/../..", "/hosts", None),
        Mount("/", "/cpu", frozenset(("cpu",))),
    ]
    assert cores.find_directories(path, "", mounts) == found


def test_no_tables() -> None:
    with pytest.raises(ValueError, match="no line of mounts: 'nothing'"):
        cores.parse_mounts(b"nothing\n")
    with pytest.raises(ValueError, match="no line of cgroups: b'4:cpu'"):
        cores.parse_memberships(b"4:cpu\n")


def test_no_limits(host: Host) -> None:
    one = host.find()
    assert (one.count, one.bound, one.unread) == (8, cores.ONLINE, None)
    assert one.how == "8 online CPUs; no CPU quota limits the postmaster (process 77)"


def test_a_quota(host: Host) -> None:
    host.join("0::/system.slice/db.service\n")
    host.make("system.slice", "db.service", cpu_max="150000 100000\n")
    one = host.find()
    assert (one.count, one.bound, one.unread) == (1.5, cores.QUOTA, None)
    assert one.how == (
        "1.5 by the CPU quota of cgroup /system.slice/db.service, which limits the postmaster "
        "(process 77); it may run on 8 of 8 online CPUs"
    )


@pytest.mark.parametrize(
    ("slices", "services", "count"),
    [
        ("200000 100000", "max 100000", 2.0),
        ("200000 100000", "400000 100000", 2.0),
        ("600000 100000", "25000 50000", 0.5),
        ("max 100000", "max 100000", 8.0),
        ("800000 100000", "900000 100000", 8.0),
    ],
)
def test_the_smallest_quota_holds(host: Host, slices: str, services: str, count: float) -> None:
    host.join("0::/db.slice/db.service\n")
    host.make("db.slice", cpu_max=slices)
    host.make("db.slice", "db.service", cpu_max=services)
    bound = cores.QUOTA if count < 8 else cores.ONLINE
    assert host.found() == (count, bound, None)


def test_a_cgroup_without_the_controller_has_no_quota_of_its_own(host: Host) -> None:
    host.join("0::/db.slice/db.service\n")
    host.make("db.slice", cpu_max="300000 100000\n")
    host.make("db.slice", "db.service")
    assert host.found() == (3, cores.QUOTA, None)


def test_version_1(host: Host) -> None:
    host.mount(V1)
    host.join("9:cpuset:/\n4:cpu,cpuacct:/db\n1:name=systemd:/other\n")
    host.make_v1("", "-1\n")
    host.write("cpu/release_agent", "")
    host.make_v1("/db", "250000\n")
    assert host.found() == (2.5, cores.QUOTA, None)


def test_version_1_above(host: Host) -> None:
    host.mount(V1)
    host.join("4:cpu,cpuacct:/pod/db\n")
    host.make_v1("", "-1\n")
    host.write("cpu/release_agent", "")
    host.make_v1("/pod", "50000\n")
    host.make_v1("/pod/db", "-1\n")
    one = host.find()
    assert (one.count, one.unread) == (0.5, None)
    assert "0.5 by the CPU quota of cgroup /pod, which" in one.how


def test_in_a_hybrid_the_controller_of_version_1_counts(host: Host) -> None:
    host.mount(HYBRID)
    host.join("4:cpu,cpuacct:/\n0::/db.service\n")
    host.make_v1("", "-1\n")
    host.write("cpu/release_agent", "")
    host.write("unified/db.service/cgroup.procs", "")
    host.write("unified/db.service/cpu.max", "100000 100000\n")
    assert host.found() == (8, cores.ONLINE, None)


def test_affinity_and_cpuset(host: Host) -> None:
    host.allow("0-1,4")
    one = host.find()
    assert (one.count, one.bound, one.unread) == (3, cores.AFFINITY, None)
    assert one.how == "3 of 8 online CPUs by the CPU affinity of the postmaster (process 77)"
    host.join("0::/db.slice/db.service\n")
    host.make("db.slice", cpuset_cpus_effective="0-1,4\n")
    host.make("db.slice", "db.service")
    one = host.find()
    assert (one.count, one.bound, one.unread) == (3, cores.CPUSET, None)
    assert one.how == "3 of 8 online CPUs by the cpuset of the postmaster (process 77)"
    host.allow("0-1")
    assert host.found() == (2, cores.AFFINITY, None)


def test_cpuset_of_version_1(host: Host) -> None:
    host.mount(V1)
    host.join("9:cpuset:/db\n4:cpu,cpuacct:/\n")
    host.make_v1("", "-1\n")
    host.write("cpu/release_agent", "")
    host.write("set/db/cgroup.procs", "")
    host.write("set/db/cpuset.effective_cpus", "3\n")
    host.allow("3")
    assert host.found() == (1, cores.CPUSET, None)


def test_a_quota_over_an_affinity(host: Host) -> None:
    host.allow("0-3")
    host.join("0::/db\n")
    host.make("db", cpu_max="350000 100000\n")
    assert host.found() == (3.5, cores.QUOTA, None)
    host.allow("0-2")
    assert host.found() == (3, cores.AFFINITY, None)


def test_views_that_number_the_cpus_differently(host: Host) -> None:
    host.allow("16-19")
    assert host.found() == (4, cores.AFFINITY, None)
    (host.root / "cpus/online").unlink()
    assert host.found() == (4, cores.ONLINE, None)


def test_in_a_container_what_is_above_its_namespace_is_unknown(host: Host) -> None:
    host.write("all/cgroup.events", "populated 1\n")
    host.write("all/cpu.max", "150000 100000\n")
    unread = "the cgroups above / cannot be seen from here"
    assert host.found() == (1.5, cores.QUOTA, unread)
    host.write("all/cpu.max", "max 100000\n")
    one = host.find()
    assert host.found() == (8, cores.ONLINE, unread)
    assert one.how == (
        "8 online CPUs; no CPU quota that can be read limits the postmaster (process 77)"
    )
    assert one.unread == UNKNOWN + unread


def test_a_mount_that_begins_at_the_container(host: Host) -> None:
    host.mount(V1.replace("0:29 / ", "0:29 /docker/c1 "))
    host.join("4:cpu,cpuacct:/docker/c1/db\n")
    host.make_v1("", "200000\n")
    host.make_v1("/db", "-1\n")
    unread = "the cgroups above /docker/c1 cannot be seen from here"
    assert host.found() == (2, cores.QUOTA, unread)


@pytest.mark.parametrize(
    ("memberships", "unread"),
    [
        ("0::/../other\n", "cgroup /../other is not among those that are mounted here"),
        ("0::/gone (deleted)\n", "cgroup /gone (deleted) is not among those that are mounted here"),
        ("4:cpu,cpuacct:/db\n", "cgroup /db is not among those that are mounted here"),
        ("1:name=systemd:/db\n", "proc/77/cgroup tells no cgroup that could have one"),
        ("", "proc/77/cgroup tells no cgroup that could have one"),
        ("0\n", "no line of cgroups: b'0'"),
    ],
)
def test_cgroups_that_cannot_be_read(host: Host, memberships: str, unread: str) -> None:
    host.join(memberships)
    assert host.found() == (8, cores.ONLINE, unread)


def test_files_that_cannot_be_read(host: Host) -> None:
    host.join("0::/db\n")
    host.make("db", cpu_max="many\n")
    assert host.found()[::2] == (8, "no CPU quota: b'many\\n'")
    host.write("all/db/cpu.max", "0 100000\n")
    assert host.found()[::2] == (8, "no CPU quota: b'0 100000\\n'")
    (host.root / "all/db/cpu.max").unlink()
    (host.root / "all/db/cpu.max").mkdir()
    assert host.found()[::2] == (8, "all/db/cpu.max is not a regular file")
    (host.root / f"proc/{POSTMASTER}/cgroup").unlink()
    assert host.found()[::2] == (8, "proc/77/cgroup: No such file or directory")


def test_servers_whose_processes_cannot_be_read(host: Host) -> None:
    host.write(f"proc/{POSTMASTER}/status", "Uid:\t26\t26\t26\t26\n")
    with pytest.raises(SourceError) as caught:
        host.find()
    assert str(caught.value) == (
        f"the CPU affinity of process 77 cannot be read from {host.root}/proc/77/status; name the "
        "server's cores with --cores"
    )
    host.write(f"proc/{BACKEND}/stat", f"{BACKEND} (postgres) S 1 0 0\n")
    host.write("proc/1/stat", "1 (init) S 0 0 0\n")
    host.write("proc/1/status", "Uid:\t0\t0\t0\t0\n")
    host.write("proc/1/cmdline", "init\0")
    with pytest.raises(SourceError) as caught:
        host.find()
    assert str(caught.value) == (
        "the postmaster of backend 80 cannot be seen here; run the check again, or see to the "
        "mount options of /proc (hidepid)"
    )
