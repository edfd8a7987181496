"""Stand-ins: for every name and address, the same for the same; what decides stays as it is."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import pytest

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.legs import format_address
from check_pgsock.processes import parse_title_area
from check_pgsock.recording.anonymize import Anonymizer
from check_pgsock.recording.anonymize.processes import anonymize_processes
from check_pgsock.recording.anonymize.sockets import (
    rewrite_tcp_dump,
    rewrite_tcp_file,
    rewrite_unix_dump,
    rewrite_unix_file,
)
from check_pgsock.recording.anonymize.stand_ins import StandIns
from check_pgsock.recording.anonymize.titles import Titles, anonymize_titles
from check_pgsock.recording.manifest import Finding
from check_pgsock.recording.processes import Recorded, pack_processes
from check_pgsock.sessions import titles
from check_pgsock.sessions.children import parse_children
from check_pgsock.sessions.states import IDLE_IN_TRANSACTION
from check_pgsock.sessions.titles import Title
from tests.moment import OTHER_ORDER, other_byte_order
from tests.recordings import (
    BY_NETLINK,
    BY_PROCFS,
    FINDING,
    HEADER,
    PROCESSES,
    captured,
    place,
    process,
)


def pack(text: str) -> bytes:
    """An address, packed; an IPv4-mapped one stays so."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def test_stand_ins_for_addresses() -> None:
    stand_ins = StandIns()
    given = [
        "192.0.2.1", "2001:db8::1", "192.0.2.7", "::ffff:192.0.2.1", "192.0.2.1", "10.0.0.9",
        "::ffff:198.51.100.1", "2001:db8::2",
    ]  # fmt: skip
    assert [format_address(stand_ins.address(pack(one))) for one in given] == [
        "10.0.0.1", "fd00::1", "10.0.0.2", "::ffff:10.0.0.1", "10.0.0.1", "10.0.0.3",
        "::ffff:10.0.0.4", "fd00::2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "kept",
    ["0.0.0.0", "127.0.0.1", "127.9.9.9", "169.254.1.2", "::", "::1", "fe80::1", "febf::9",
     "::ffff:0.0.0.0", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_addresses_that_tell_nothing_stay(kept: str) -> None:
    assert StandIns().address(pack(kept)) == pack(kept)


def test_no_stand_in_is_anothers_address() -> None:
    stand_ins = StandIns()
    real = [pack(one) for one in ("10.0.0.2", "10.0.0.1", "fd00::1", "192.0.2.1", "192.0.2.2")]
    for one in real:
        assert stand_ins.learn(one) == one
    found = [stand_ins.address(one) for one in real]
    assert not set(found) & set(real)
    assert len(set(found)) == len(real)
    assert [stand_ins.address(one) for one in real] == found


@pytest.mark.parametrize(
    ("name", "stand_in"),
    [
        (b"/run/postgresql/.s.PGSQL.5432", b"/directory1/.s.PGSQL.5432"),
        (b"/run/postgresql/.s.PGSQL.5432.x", b"/directory1/socket1"),
        (b"/run/systemd/notify", b"/directory1/socket1"),
        (b"/notify", b"/socket1"),
        (b"notify", b"socket1"),
        (b".s.PGSQL.5432", b".s.PGSQL.5432"),
        (b"\0/run/app/.s.PGSQL.6432", b"\0/directory1/.s.PGSQL.6432"),
        (b"\0acme", b"\0socket1"),
        (b"\0\0\0a/b", b"\0/directory1/socket1"),
        (b"/srv/\xff/x", b"/directory1/socket1"),
        (b"", b""),
    ],
)
def test_stand_ins_for_sockets(name: bytes, stand_in: bytes) -> None:
    stand_ins = StandIns()
    assert stand_ins.socket(name) == stand_in
    assert stand_ins.socket(name) == stand_in


def same(value: bytes) -> bytes:
    return value


def test_with_the_same_names_a_table_stays_as_it_is() -> None:
    assert rewrite_tcp_dump(BY_NETLINK["tcp.netlink"], same) == BY_NETLINK["tcp.netlink"]
    assert rewrite_unix_dump(BY_NETLINK["unix.netlink"], same) == BY_NETLINK["unix.netlink"]
    assert rewrite_unix_file(BY_PROCFS["unix"], same) == BY_PROCFS["unix"]
    for name in ("tcp", "tcp6"):
        raw = BY_PROCFS[name]
        assert rewrite_tcp_file(raw, same, "little") == raw
        other = other_byte_order(raw)
        assert rewrite_tcp_file(other, same, OTHER_ORDER) == other


def test_both_byte_orders_hand_out_the_same_addresses() -> None:
    seen: dict[str, list[bytes]] = {"little": [], "big": []}

    def note(order: str) -> Callable[[bytes], bytes]:
        def map_one(packed: bytes) -> bytes:
            seen[order].append(packed)
            return bytes(len(packed))

        return map_one

    for name in ("tcp", "tcp6"):
        changed = rewrite_tcp_file(BY_PROCFS[name], note("little"), "little")
        assert rewrite_tcp_file(other_byte_order(BY_PROCFS[name]), note("big"), "big") == changed
    assert seen["little"] == seen["big"]
    assert pack("127.0.0.1") in seen["little"]
    assert pack("::1") in seen["little"]


# Titles.

POSTMASTER = b"/usr/lib/postgresql/15/bin/postgres\0-D\0/srv/acme/main\0"
NEW_POSTMASTER = b"postgres\0-D\0/directory1\0"


def rewritten(
    *texts: str, postmaster: bytes = POSTMASTER, area: int | None = None
) -> tuple[list[str], Titles]:
    """What becomes of the titles of children, which have as much room as `postmaster` had, or
    `area`.
    """
    raws = dict(enumerate(_raw(text, len(postmaster)) for text in texts))
    found = anonymize_titles(raws, postmaster, NEW_POSTMASTER, area, StandIns())
    return [found.children[pid].partition(b"\0")[0].decode() for pid in raws], found


def _raw(text: str, room: int) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return raw.ljust(room, b"\0") if len(raw) < room else raw + b"\0"


CHECKPOINTER = "postgres: checkpointer "


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("acme shop 192.0.2.1(4711) idle", "user1 database1 10.0.0.1(4711) idle"),
        ("acme shop 192.0.2.1(4711) idle in transaction (aborted)",
         "user1 database1 10.0.0.1(4711) idle in transaction (aborted)"),
        ("acme shop 2001:db8::1(4711) SELECT waiting",
         "user1 database1 fd00::1(4711) SELECT waiting"),
        ("acme shop fe80::1%eth0(4711) idle", "user1 database1 fe80::1(4711) idle"),
        ("acme shop 127.0.0.1(4711) idle", "user1 database1 127.0.0.1(4711) idle"),
        ("acme shop [local] idle", "user1 database1 [local] idle"),
        ("acme shop app.acme.example(4711) idle", "user1 database1 host1(4711) idle"),
        ("acme shop ???(???) idle", "user1 database1 host1(???) idle"),
        ("walsender repl 192.0.2.1(4711) streaming 0/3000148",
         "walsender user1 10.0.0.1(4711) streaming 0/3000148"),
        ('walsender repl 192.0.2.1(4711) sending backup "acme nightly"',
         'walsender user1 10.0.0.1(4711) sending backup "label"'),
        ("autovacuum worker shop", "autovacuum worker database1"),
        ("autovacuum worker ", "autovacuum worker "),
        ("parallel worker for PID 4711 ", "parallel worker for PID 4711 "),
        ("walwriter ", "walwriter "),
        ("archiver last was 00000001000000000000000A",
         "archiver last was 00000001000000000000000A"),
        ("startup recovering 000000010000000000000003",
         "startup recovering 000000010000000000000003"),
        ("logical replication worker for subscription 16394 ",
         "logical replication worker for subscription 16394 "),
        ("acme_cron launcher shop", "-" * 23),
    ],
)  # fmt: skip
def test_titles(title: str, expected: str) -> None:
    found, _ = rewritten(CHECKPOINTER, f"postgres: {title}", area=200)
    assert found[1] == f"postgres: {expected}"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("my app shop 192.0.2.1(4711) idle", "names1 with spaces 10.0.0.1(4711) idle"),
        ("my app a (b) c(1) idle [local] SELECT waiting",
         "names1 with spaces [local] SELECT waiting"),
        ("a b 192.0.2.1(1) idle 198.51.100.2(2) idle", "names1 with spaces 10.0.0.1(2) idle"),
        ("my own app app.acme.example(4711) PARSE", "names1 with spaces host1(4711) PARSE"),
        ("my app shop [local] ", "names1 with spaces [local] "),
        ("walsender repl 192.0.2.1(4711) idle",
         "walsender names1 with spaces 10.0.0.1(4711) idle"),
        ("walsender walsender [local] idle", "walsender walsender [local] idle"),
        ("walsender repl shop 192.0.2.1(4711) START_REPLICATION",
         "walsender names1 with spaces 10.0.0.1(4711) START_REPLICATION"),
        ("acme shop 192.0.2.1(4711) is up to something", "user1 database1 10.0.0.1(4711) text1"),
        ("acme shop [local] is up to something", "user1 database1 [local] text1"),
        ('walsender u [local] sending backup "x [local] idle',
         "walsender names1 with spaces [local] text1"),
    ],
)  # fmt: skip
def test_a_certain_client_stays_where_names_are_not_certain(title: str, expected: str) -> None:
    before = f"postgres: {title}"
    found, written = rewritten(CHECKPOINTER, before, area=200)
    assert found[1] == f"postgres: {expected}"
    area = 200 + written.longer
    told = parse_children(written.children, written.postmaster, area)[1]
    was = titles.parse_title(before, True, "")
    assert (told.host is not None, told.host == "[local]") == (True, was.host == "[local]")
    assert sense(told) == sense(was)


def test_the_same_names_have_the_same_stand_in() -> None:
    found, _ = rewritten(
        CHECKPOINTER, "postgres: jane doe shop [local] idle", "postgres: jane doe x [local] idle",
        "postgres: jane doe shop 127.0.0.1(7) BIND", area=200,
    )  # fmt: skip
    assert found[1:] == [
        "postgres: names1 with spaces [local] idle",
        "postgres: names2 with spaces [local] idle",
        "postgres: names1 with spaces 127.0.0.1(7) BIND",
    ]


def test_states_that_are_not_kept_up_to_date_stay_untold() -> None:
    """update_process_title is off: one title without a state is enough to tell."""
    _, written = rewritten(
        CHECKPOINTER, "postgres: jane doe shop [local] ", "postgres: acme shop [local] idle",
        "postgres: walsender repl 192.0.2.1(7) streaming 0/3000148", area=200,
    )  # fmt: skip
    told = parse_children(written.children, written.postmaster, 200 + written.longer)
    assert [(one.kind, one.host, one.state) for one in told.values()][1:] == [
        (titles.CLIENT_BACKEND, "[local]", None),
        (titles.CLIENT_BACKEND, "[local]", None),
        (titles.WALSENDER, "10.0.0.1", None),
    ]


@pytest.mark.parametrize(
    "title",
    ["acme shop app.acme.example(4711) is up to something", "acme",
     'walsender u 192.0.2.1(1) sending backup "x 192.0.2.2(2) idle'],
)  # fmt: skip
def test_what_cannot_be_read_for_certain_says_nothing(title: str) -> None:
    found = rewritten(CHECKPOINTER, f"postgres: {title}", area=200)[0][1]
    told = titles.parse_title(found, True, "")
    assert told.kind in (titles.UNKNOWN, titles.AUXILIARY)
    assert (told.host, told.port, told.state) == (None, None, None)
    assert len(found) >= len(f"postgres: {title}")
    assert "acme" not in found
    assert "192.0.2" not in found


def test_a_cluster_name() -> None:
    found, _ = rewritten(
        "postgres: 15/acme: checkpointer ", "postgres: 15/acme: acme shop 192.0.2.1(4711) idle"
    )
    assert found == [
        "postgres: cluster1: checkpointer ",
        "postgres: cluster1: user1 database1 10.0.0.1(4711) idle",
    ]


def test_without_knowing_the_cluster_name_a_certain_client_stays() -> None:
    found, _ = rewritten(
        "postgres: acme shop 192.0.2.1(4711) idle", "postgres: acme: u d 192.0.2.1(4712) idle"
    )
    assert found[0] == "postgres: user1 database1 10.0.0.1(4711) idle"
    assert found[1] == "postgres: names1 with spaces 10.0.0.1(4712) idle"


def test_a_child_that_has_not_written_its_title_yet_is_as_the_postmaster() -> None:
    raws = {1: POSTMASTER, 2: CHECKPOINTER.encode()}
    found = anonymize_titles(raws, POSTMASTER, NEW_POSTMASTER, None, StandIns())
    assert found.children[1].rstrip(b"\0") == found.postmaster.rstrip(b"\0")
    told = parse_children(found.children, found.postmaster)
    assert told[1].kind == titles.UNTITLED


LONG_HOST = "postgres: acme shop 1.1.1.1(4711) idle in transaction"


@pytest.mark.parametrize("area", [None, 60])
def test_a_cut_title_stays_cut_and_a_whole_one_whole(area: int | None) -> None:
    """Its area was 58 bytes long; some stand-ins are longer than what they stand for."""
    cut = "postgres: some_longer_name in_a_database 1.1.1.1(4712) idle"[:58]
    _, found = rewritten(CHECKPOINTER, LONG_HOST, cut, postmaster=b"postgres\0-D\0/x\0", area=area)
    new_area = None if area is None else area + found.longer
    told = parse_children(found.children, found.postmaster, new_area)
    assert [one.whole for one in told.values()] == [True, True, False]
    assert told[1] == Title(
        titles.CLIENT_BACKEND, "user1", "database1", "10.0.0.1", pack("10.0.0.1"), 4711,
        IDLE_IN_TRANSACTION, False, "idle in transaction",
    )  # fmt: skip
    assert b"name" not in found.children[2]
    assert b"1.1.1" not in found.children[2]


NAMES = ("acme", "a", "x" * 63, "walsender", "autovacuum", "idle", "a(1)", "a b", "né", "15/m: x")
HOSTS = ("192.0.2.1(1)", "1.1.1.1(65535)", "2001:db8::9(7)", "[local]", "db.acme(9)", "???(???)")
DOING = ("idle", "", "SELECT", "idle in transaction", "INSERT waiting", "BIND", "odd words", "idl")


def sense(one: Title) -> tuple[object, ...]:
    """What decides: all but names."""
    is_local = one.host == titles.LOCAL
    names = bool(one.user), bool(one.database), bool(one.host), bool(one.address), is_local
    return one.kind, one.whole, one.port, one.state, one.waiting, one.leader, *names


def test_chance_titles_say_the_same_of_a_certain_client_and_else_nothing() -> None:
    chance = random.Random(2)
    same_sense = nothing = 0
    for _ in range(400):
        cluster = chance.choice(("", "", "", "acme: ", "a b: "))
        texts = [f"postgres: {cluster}checkpointer "] * chance.choice((0, 1, 1))
        for _ in range(chance.randint(1, 6)):
            user, database = chance.choice(NAMES), chance.choice(NAMES)
            text = f"{user} {database} {chance.choice(HOSTS)} {chance.choice(DOING)}"
            texts.append(f"postgres: {cluster}{text}")
        room = chance.choice((12, 40, 60, 90, 200))
        before = b"x".ljust(room, b"\0")
        cut = [_raw(text[: room + chance.choice((0, 1, 60))], room) for text in texts]
        raws = dict(enumerate(cut))
        old = parse_children(raws, before)
        found = anonymize_titles(raws, before, b"postgres\0", None, StandIns())
        new = parse_children(found.children, found.postmaster)
        for pid, one in old.items():
            if not titles.text_of(raws[pid]).startswith("postgres: "):
                continue
            assert new[pid].whole == one.whole
            if sense(new[pid]) == sense(one):
                same_sense += 1
            else:
                assert (one.host, new[pid].host) == (None, None)
                assert new[pid].kind in (titles.UNKNOWN, titles.AUXILIARY)
                assert (new[pid].port, new[pid].state) == (None, None)
                nothing += 1
            for name in ("acme", "192.0.2", "1.1.1.1", "2001:db8", "né", "xxx"):
                assert name.encode() not in found.children[pid]
    assert same_sense > 500
    assert nothing > 10


# Processes.


def anonymous(processes: dict[int, Recorded]) -> dict[int, Recorded]:
    return anonymize_processes(processes, StandIns())


def test_processes() -> None:
    postmaster = process(
        "postgres", 1, "/opt/acme/bin/postgres", "-D", "/srv/acme", "-c", "max_connections=30",
        "--port=5433", "-c", "cluster_name=acme", "-c", "config_file=/etc/acme.conf", "-N", "0x9",
        links={"cwd": "/srv/acme", "exe": "/opt/acme/bin/postgres (deleted)"},
    )  # fmt: skip
    postmaster.files["cgroup"] = b"1:cpu:/\n0::/system.slice/acme.service\n"
    acme = process("acme_worker (x)", 1, sockets=None)
    pooler = process("pgbouncer", 1, "/usr/sbin/pgbouncer", "-d", "/etc/acme/pgbouncer.ini")
    found = anonymous({10: postmaster, 20: acme, 21: acme, 22: pooler})
    arguments = found[10].files["cmdline"].rstrip(b"\0").split(b"\0")
    # The last of two counts, and that is one that PostgreSQL alone can read.
    assert arguments == [b"postgres", b"-D", b"/directory1", b"-c", b"port=5433"]
    assert found[10].links["cwd"] == "/directory1"
    assert found[10].links["exe"].endswith("/postgres (deleted)")
    assert found[10].files["cgroup"] == b"1:cpu:/\n0::/cgroup1\n"
    assert [found[pid].command for pid in found] == [
        "postgres",
        "command1",
        "command1",
        "pgbouncer",
    ]
    assert found[20].files["status"].startswith(b"Name:\tcommand1\nUid:\t26\t26\t")
    assert found[22].files["cmdline"] == b"pgbouncer\0"
    assert b"acme" not in pack_processes(found)
    assert (found[20].sockets, found[10].sockets) == (None, postmaster.sockets)


def test_settings_that_are_read_stay() -> None:
    given = process(
        "postgres", 1, "postgres", "-c", "max_connections=30", "-B", "128MB",
        "--superuser-reserved-connections=4", "-p", "5433", "-c", "reserved_connections=2",
    )  # fmt: skip
    found = anonymous({10: given})[10].files["cmdline"]
    assert found.rstrip(b"\0").split(b"\0") == [
        b"postgres", b"-c", b"port=5433", b"-c", b"max_connections=30",
        b"-c", b"superuser_reserved_connections=4", b"-c", b"reserved_connections=2",
    ]  # fmt: skip


def test_the_area_of_titles_grows_with_them() -> None:
    postmaster = process("postgres", 1, "p", "-D", "/x")
    stat = postmaster.files["stat"].rstrip().split(b" ")
    stat[-5], stat[-2] = b"1000", b"1300"
    postmaster.files["stat"] = b" ".join(stat) + b"\n"
    child = process("postgres", 10, "postgres: a b 1.1.1.1(7) idle")
    area = parse_title_area(postmaster.files["stat"])
    assert area == 300
    found = anonymous({10: postmaster, 11: child})
    longer = parse_title_area(found[10].files["stat"])
    assert longer is not None
    assert longer > area
    assert parse_title_area(found[11].files["stat"]) is None  # zeros, as strangers see them
    told = parse_children({11: found[11].files["cmdline"]}, found[10].files["cmdline"], longer)
    assert told[11].whole


# The whole.


def test_a_whole_moment() -> None:
    name = "/srv/acme/.s.PGSQL.5432"
    unknown = Finding(
        f"socket {name}", (7,), None, "", None, None, None, "it is hidden",
    )  # fmt: skip
    abstract = unknown._replace(endpoint="socket @acme")
    refused = "network namespace acme may not be entered"
    made = captured(
        [BY_PROCFS, BY_NETLINK],
        [place(BY_PROCFS, name="acme", asked=True, refusal=refused), place(BY_NETLINK, name="12")],
        cgroups={7: "/system.slice/acme.service", 8: "/"},
        findings=(FINDING, unknown, abstract),
    )
    anonymizer = Anonymizer(HEADER)
    found = anonymizer.apply(made)
    first, second = found.about.places
    assert (first.name, second.name) == ("netns1", "12")
    assert first.refusal == "network namespace netns1 may not be entered"
    known, missing, third = found.about.findings
    assert known == FINDING
    assert missing.endpoint == "socket /directory1/.s.PGSQL.5432"
    assert third.endpoint.startswith("socket @socket")
    assert found.cgroups == {7: "/cgroup1", 8: "/"}
    assert found.tables[0]["tcp"] == BY_PROCFS["tcp"]  # all of it is loopback
    assert b"/mnt" not in found.tables[0]["unix"] + found.tables[1]["unix.netlink"]
    again = anonymizer.apply(made)
    assert again.tables == found.tables
    assert again.processes == found.processes


def test_what_another_machine_alone_can_read() -> None:
    anonymizer = Anonymizer(HEADER._replace(byte_order=OTHER_ORDER))
    assert anonymizer.apply(captured([{"tcp": BY_PROCFS["tcp"]}])).processes.keys() == (
        PROCESSES.keys()
    )
    with pytest.raises(SourceError) as caught:
        anonymizer.apply(captured())
    assert str(caught.value) == (
        f"a moment of a {OTHER_ORDER}-endian machine, as netlink shows it, can be anonymized on "
        "such a one alone"
    )


def test_what_is_not_as_it_should_be() -> None:
    child = process("postgres", 10, "postgres: checkpointer ")
    child.files["stat"] = child.files["stat"].replace(b" 0 0\n", b" x 0\n")
    stat = child.files["stat"].split(b" ")
    assert stat[-2] == b"x"
    broken = {10: process("postgres", 1, "postgres"), 11: child}
    with pytest.raises(MalformedError, match=r"^a moment cannot be anonymized as it is: invalid "):
        Anonymizer(HEADER).apply(captured(processes=broken))
