"""Titles of a postmaster's children: what they say for certain, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from check_pgsock.sessions import titles
from check_pgsock.sessions.titles import Title
from tests.moment import LOCAL4, LOCAL6

# /proc/PID/cmdline as recorded of PostgreSQL 14, 15, 16 and 18; the postmaster's own first.
POSTMASTER = b"/usr/lib/postgresql/15/bin/postgres\0-D\0/var/lib/postgresql/15/main\0"
ROOM = len(POSTMASTER)


def padded(text: str) -> bytes:
    """A title as the kernel shows it: over an argument area of this size, or beyond it."""
    raw = text.encode("utf-8", "surrogateescape")
    return raw.ljust(ROOM, b"\0") if len(raw) < ROOM else raw + b"\0"


def client(
    user: str | None,
    database: str | None,
    state: str | None = "idle",
    *,
    kind: str = "client backend",
    host: str | None = "127.0.0.1",
    address: bytes | None = LOCAL4,
    port: int | None = 4711,
    waiting: bool | None = False,
    text: str | None = None,
) -> Title:
    """A title with a client; `text` is the state, if it is not given."""
    return Title(
        kind, user, database, host, address, port, state, waiting, state if text is None else text
    )


def untold(title: str) -> Title:
    return Title("unknown", text=title)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        # What pg_stat_activity has names for.
        ("u d 127.0.0.1(4711) idle", client("u", "d")),
        ("u d 127.0.0.1(4711) idle in transaction", client("u", "d", "idle in transaction")),
        (
            "u d 127.0.0.1(4711) idle in transaction (aborted)",
            client("u", "d", "idle in transaction (aborted)"),
        ),
        ("u d 127.0.0.1(4711) SELECT", client("u", "d", "active", text="SELECT")),
        ("u d 127.0.0.1(4711) PARSE", client("u", "d", "active", text="PARSE")),
        (
            "u d 127.0.0.1(4711) CREATE TABLE AS",
            client("u", "d", "active", text="CREATE TABLE AS"),
        ),
        ("u d 127.0.0.1(4711) ???", client("u", "d", "active", text="???")),
        (
            "u d 127.0.0.1(4711) <FASTPATH>",
            client("u", "d", "fastpath function call", text="<FASTPATH>"),
        ),
        (
            "u d 127.0.0.1(4711) SELECT waiting",
            client("u", "d", "active", waiting=True, text="SELECT waiting"),
        ),
        (
            "u d 127.0.0.1(4711) COMMIT waiting for 0/3000148",
            client("u", "d", "active", waiting=True, text="COMMIT waiting for 0/3000148"),
        ),
        # What it has none for.
        ("u d 127.0.0.1(4711) authentication", client("u", "d", "authentication")),
        ("u d 127.0.0.1(4711) startup", client("u", "d", "startup")),
        ("u d 127.0.0.1(4711) initializing", client("u", "d", "initializing")),
        ("u d 127.0.0.1(4711) notify interrupt", client("u", "d", None, text="notify interrupt")),
        ("u d 127.0.0.1(4711) ", client("u", "d", None, waiting=None, text="")),
        # Read while it was written, or by an extension.
        ("u d 127.0.0.1(4711) idleCT", client("u", "d", None, waiting=None, text="idleCT")),
        ("u d 127.0.0.1(4711) waiting", client("u", "d", None, waiting=None, text="waiting")),
        # Clients.
        ("u d ::1(4711) idle", client("u", "d", host="::1", address=LOCAL6)),
        ("u d ::ffff:127.0.0.1(4711) idle", client("u", "d", host="::ffff:127.0.0.1")),
        (
            "u d fe80::1%eth0(4711) idle",
            client("u", "d", host="fe80::1%eth0", address=b"\xfe\x80" + LOCAL6[2:]),
        ),
        ("u d [local] idle", client("u", "d", host="[local]", address=None, port=None)),
        ("u d app.example(4711) idle", client("u", "d", host="app.example", address=None)),
        ("u d 1.2.3(4711) idle", client("u", "d", host="1.2.3", address=None)),
        ("u d ???(???) idle", client("u", "d", host="???", address=None, port=None)),
        # Names that look like something else.
        (
            "127.0.0.1(4711) d [local] idle",
            client("127.0.0.1(4711)", "d", host="[local]", address=None, port=None),
        ),
        ("u [local] 127.0.0.1(4711) idle", client("u", "[local]")),
        ("[local] d 127.0.0.1(4711) idle", client("[local]", "d")),
        ("u 10.0.0.1(1) 127.0.0.1(4711) idle", client("u", "10.0.0.1(1)")),
        (f"{'n' * 63} {'m' * 63} 127.0.0.1(4711) idle", client("n" * 63, "m" * 63)),
        ("caf\u00e9 \udcff 127.0.0.1(4711) idle", client("caf\u00e9", "\udcff")),
        ("main: d 127.0.0.1(4711) idle", client("main:", "d")),
        ("idle idle 127.0.0.1(4711) idle", client("idle", "idle")),
        # Names with spaces: where one ends and the other begins is not said.
        ("u a (b) c(1) idle 127.0.0.1(4711) idle", client(None, None)),
        ("u a b 127.0.0.1(4711) idle", client(None, None)),
        ("u  d 127.0.0.1(4711) idle", client(None, None)),
        (
            "u a 10.0.0.1(1) idle 127.0.0.1(4711) SELECT",
            client(None, None, "active", text="SELECT"),
        ),
        ("u d(\u00b2) 127.0.0.1(4711) idle", client("u", "d(\u00b2)")),
        # Two clients, and what follows neither is PostgreSQL's.
        ("u a 10.0.0.1(1) idle 127.0.0.1(4711) odd", None),
        # Walsenders: with the database from 16 on, with states of their own.
        (
            "walsender u 127.0.0.1(4711) streaming 0/13E0000",
            client("u", None, "active", kind="walsender", text="streaming 0/13E0000"),
        ),
        (
            "walsender u 127.0.0.1(4711) START_REPLICATION",
            client("u", None, "active", kind="walsender", text="START_REPLICATION"),
        ),
        (
            "walsender u d 127.0.0.1(4711) START_REPLICATION",
            client(None, None, "active", kind="walsender", text="START_REPLICATION"),
        ),
        (
            'walsender u 127.0.0.1(4711) sending backup "x\nidl',
            client("u", None, "active", kind="walsender", text='sending backup "x\nidl'),
        ),
        ("walsender u [local] streaming 0/1", client(
            "u", None, "active", kind="walsender", host="[local]", address=None, port=None,
            text="streaming 0/1",
        )),
        # A user may be called walsender; a label may be anything.
        ("walsender u 127.0.0.1(4711) idle", client(None, None, kind="unknown")),
        ('walsender u 127.0.0.1(4711) sending backup "a 10.0.0.1(1) idle', None),
        # Others, with a database's name in one.
        (
            "autovacuum worker d",
            Title("autovacuum worker", database="d", text="autovacuum worker d"),
        ),
        ("autovacuum worker ", Title("autovacuum worker", text="autovacuum worker ")),
        ("autovacuum worker a 10.0.0.1(1) idle", None),
        ("autovacuum worker 10.0.0.1(1) idle", None),
        (
            "parallel worker for PID 42 ",
            Title("parallel worker", text="parallel worker for PID 42 ", leader=42),
        ),
        ("checkpointer ", Title("auxiliary", text="checkpointer ")),
        ("io worker 0", Title("auxiliary", text="io worker 0")),
        ("startup recovering 000000010000000000000003", Title(
            "auxiliary", text="startup recovering 000000010000000000000003",
        )),
        ("logical replication worker for subscription 16394 ", Title(
            "auxiliary", text="logical replication worker for subscription 16394 ",
        )),
        ("extension worker(1) ", Title("auxiliary", text="extension worker(1) ")),
        ("my extension worker(1) ", None),
    ],
)  # fmt: skip
def test_a_title_of_a_cluster_without_a_name(title: str, expected: Title | None) -> None:
    whole = f"postgres: {title}"
    assert titles.parse_title(whole, cluster_name="") == (expected or untold(whole))


@pytest.mark.parametrize("name", ["main", "15/main", "a: b", "u d 10.0.0.1(1) idle"])
def test_the_cluster_name_stands_before_the_title(name: str) -> None:
    title = f"postgres: {name}: u d 127.0.0.1(4711) idle"
    assert titles.parse_title(title, cluster_name=name) == client("u", "d")
    assert titles.parse_title(title, cluster_name="other") == untold(title)
    # Where it is not known it may be none, and part of the user.
    assert titles.parse_title(title) == client(None, None)
    title = f"postgres: {name}: walsender u 127.0.0.1(4711) streaming 0/1"
    assert titles.parse_title(title).user == "u"  # no user of any name streams
    assert titles.parse_title(f"postgres: {name}: parallel worker for PID 7 ").leader == 7


def test_names_without_a_colon_need_no_cluster_name() -> None:
    assert titles.parse_title("postgres: u d 127.0.0.1(4711) idle") == client("u", "d")


def test_a_name_of_many_readings_costs_no_time() -> None:
    """17.0 to 17.2 do not cut the names of a login; anybody may send 10,000 bytes."""
    started = time.process_time()
    for name in ("a(1) " * 12, ": " * 30, "a(1) " * 800, ": " * 2000, "a waiting" * 400):
        title = f"postgres: {name} d 127.0.0.1(4711) authentication"[:4000]
        for cluster_name in ("", None):
            assert titles.parse_title(title, cluster_name=cluster_name).user is None
    assert time.process_time() - started < 1


def test_known_users_tell_names_apart() -> None:
    title = "postgres: my app a (b) c(1) idle 127.0.0.1(4711) {}"
    known = titles.parse_title(title.format("idle"), cluster_name="", users=("app", "my app"))
    assert known == client("my app", "a (b) c(1) idle")
    both = titles.parse_title(title.format("idle"), cluster_name="", users=("my", "my app"))
    assert both == client(None, None)
    # A login names whom it likes.
    login = titles.parse_title(title.format("authentication"), cluster_name="", users=("my app",))
    assert (login.user, login.state) == (None, "authentication")
    sender = "postgres: walsender my app app 127.0.0.1(4711) START_REPLICATION"
    known = titles.parse_title(sender, cluster_name="", users=("my app",))
    assert (known.kind, known.user, known.database) == ("walsender", "my app", "app")


def test_the_children_of_one_postmaster() -> None:
    raws = {
        1: padded("postgres: 15/main: checkpointer "),
        2: padded("postgres: 15/main: u d 127.0.0.1(4711) idle"),
        3: padded("postgres: 15/main: u d [local] SELECT"),
        4: POSTMASTER,
        5: b"",
        6: padded("cat /etc/passwd"),
    }
    found = titles.parse_children(raws, POSTMASTER)
    assert list(found) == list(raws)
    assert found[2] == client("u", "d")
    assert (found[3].user, found[3].state) == ("u", "active")
    assert [found[pid].kind for pid in (1, 4, 5, 6)] == [
        "auxiliary", "untitled", "unknown", "unknown",
    ]  # fmt: skip


def test_what_stands_behind_the_first_nul_is_of_another_title() -> None:
    raw = b"postgres: u d 127.0.0.1(4711) idle\0n transaction".ljust(ROOM, b"\0")
    assert titles.parse_children({1: raw}, POSTMASTER)[1] == client("u", "d")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["checkpointer ", "u d [local] idle"], ""),
        (["15/main: checkpointer ", "15/main: background writer "], "15/main"),
        (["a: b: background writer "], "a: b"),
        ([f"{'n' * 64}: checkpointer "], None),
        (["u d [local] idle"], None),
        # A backup with this label.
        (['walsender u 1.2.3.4(5) sending backup "x: checkpointer ', "checkpointer "], None),
    ],
)
def test_cluster_name_of_the_siblings(texts: list[str], expected: str | None) -> None:
    assert titles.find_cluster_name(f"postgres: {text}" for text in texts) == expected


def test_room_for_titles() -> None:
    short, longer = padded("postgres: checkpointer "), b"p" * (ROOM + 5) + b"\0"
    # The argument area holds two NULs more than the longest title, if there is no environment.
    assert titles.title_room([short]) == titles.title_room([POSTMASTER]) == ROOM - 2
    # A title that runs over it shows that there is one.
    assert titles.title_room([short, longer]) == ROOM + 5
    assert titles.title_room([short, longer], area=200) == 198
    assert titles.title_room([]) == 0


# Recorded of a postmaster started as `env -i ./p -D ./data`, with an X of 30 bytes: 46 bytes.
SMALL = b"./p\0-D\0./data\0"
ONE = b"postgres: app app 127.0.0.1(40001) idle\0"
TWO = b"postgres: app app 127.0.0.1(40002) idle in t\0"
THREE = b"postgres: app app 127.0.0.1(40003) idle in t\0"
PEERS = {(LOCAL4, port) for port in (40001, 40002, 40003)}


def cut(
    text: str,
    user: str | None = "app",
    port: int = 40002,
    *,
    state: str | None = None,
    waiting: bool | None = None,
    kind: str = "client backend",
) -> Title:
    title = client(user, user, state, port=port, waiting=waiting, kind=kind, text=text)
    return title._replace(whole=False)


def test_a_title_at_the_end_of_its_area_may_be_cut() -> None:
    raws = {1: ONE, 2: TWO, 3: THREE}
    found = titles.parse_children(raws, SMALL, peers=PEERS)
    assert found == {
        1: client("app", "app", port=40001),
        2: cut("idle in t"),
        3: cut("idle in t", port=40003),
    }
    # Only what its area is known to be larger than is whole.
    known = titles.parse_children({1: ONE}, SMALL, area=46)
    assert known == {1: client("app", "app", port=40001)}
    for area in (None, len(ONE) + 1):
        alone = titles.parse_children({1: ONE}, SMALL, area, peers=PEERS)
        assert alone == {1: cut("idle", port=40001)}


def test_a_cut_title_that_names_no_peer_is_unknown() -> None:
    unknown = Title("unknown", text=TWO[:-1].decode(), whole=False)
    assert titles.parse_children({2: TWO}, SMALL)[2] == unknown
    assert titles.parse_children({2: TWO}, SMALL, peers={(LOCAL4, 40001)})[2] == unknown


@pytest.mark.parametrize(
    "other",
    [
        b"postgres: app app 127.0.0.1(40002) idle\0",  # it names the same peer
        b"postgres: app app localhost(40002) idle\0",
        b"postgres: nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\0",  # it may be that peer's
    ],
)
def test_a_cut_title_whose_peer_may_be_another_childs_is_unknown(other: bytes) -> None:
    found = titles.parse_children({2: TWO, 4: other}, SMALL, peers=PEERS)
    assert found[2] == Title("unknown", text=TWO[:-1].decode(), whole=False)


@pytest.mark.parametrize(
    ("text", "state", "waiting"),
    [
        ("", None, None),
        ("i", None, None),
        ("in", "initializing", None),
        ("idle", None, None),
        ("idle in transaction", None, None),
        ("idle in transaction (a", "idle in transaction (aborted)", None),
        ("SEL", "active", None),
        ("SELECT", "active", None),
        ("SELECT w", "active", None),
        ("SELECT waiting", "active", True),
        ("SELECT waiting for 0/1", "active", True),
        ("SELECT waiting fo", None, None),
        ("START_", "active", None),
        ("START_REPL", "active", False),
        ("s", None, None),
        ("st", None, None),
        ("streaming 0", "active", False),
        ("<FAST", "fastpath function call", None),
    ],
)
def test_the_beginning_of_a_state(text: str, state: str | None, waiting: bool | None) -> None:
    title = f"postgres: app app 127.0.0.1(40002) {text}"
    found = titles.parse_title(title, whole=False, cluster_name="", peers=PEERS)
    assert found == cut(text, state=state, waiting=waiting)


@pytest.mark.parametrize("text", ["odd", "idlx", "SELECT x", "SELECT wx"])
def test_what_begins_no_state_belongs_to_a_name(text: str) -> None:
    title = f"postgres: app app 127.0.0.1(40002) {text}"
    found = titles.parse_title(title, whole=False, cluster_name="", peers=PEERS)
    assert found == Title("unknown", text=title, whole=False)


def test_a_cut_walsender_is_not_told_from_a_user_of_that_name() -> None:
    title = "postgres: walsender u 127.0.0.1(40002) strea"
    found = titles.parse_title(title, whole=False, cluster_name="", peers=PEERS)
    assert found == cut("strea", None, kind="unknown", state="active")


def test_a_page_is_all_that_the_kernel_shows() -> None:
    raws = {1: b"postgres: u d 127.0.0.1(4711) idle".ljust(4096, b"x"), 2: b"y" * 5000}
    assert not titles.parse_children(raws)[1].whole


def test_states_stand_still_where_one_has_none() -> None:
    raws = {
        1: padded("postgres: u d 127.0.0.1(4711) idle"),
        2: padded("postgres: u d 127.0.0.1(4712) "),
        3: padded("postgres: checkpointer "),
    }
    found = titles.parse_children(raws, POSTMASTER)
    assert found[1] == client("u", "d", None, waiting=None)._replace(text=None)
    assert found[2].state is None
    assert found[3].text == "checkpointer "


def test_matching_titles_with_peers() -> None:
    def title(host: str, port: int) -> Title:
        return titles.parse_title(f"postgres: u d {host}({port}) idle", cluster_name="")

    other = b"\x0a\0\0\x01"
    found = titles.match_peers(
        {
            1: title("127.0.0.1", 1),
            2: title("::1", 1),
            3: title("127.0.0.1", 3), 4: title("127.0.0.1", 3),
            5: title("localhost", 5),
            6: title("localhost", 6),
            7: title("localhost", 7), 8: title("elsewhere", 7),
            9: title("localhost", 1),
            10: title("127.0.0.1", 10),
        },
        [
            (LOCAL4, 1), (LOCAL6, 1), (LOCAL4, 3), (LOCAL4, 5), (LOCAL4, 6), (other, 6),
            (LOCAL4, 7), (LOCAL4, 8),
        ],
    )  # fmt: skip
    assert found == {
        (LOCAL4, 1): 1, (LOCAL6, 1): 2, (LOCAL4, 3): None, (LOCAL4, 5): 5, (LOCAL4, 7): None,
    }  # fmt: skip


def test_importing_it_stays_cheap() -> None:
    code = "import sys; from check_pgsock.sessions import ages, activity; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"typing", "dataclasses", "pathlib", "inspect", "subprocess"} & set(
        done.stdout.split()
    )
