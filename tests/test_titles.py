"""The title of a postmaster's child: what it says for certain, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from check_pgsock.sessions import titles
from check_pgsock.sessions.titles import Title
from tests.made_up_titles import PEERS, client, cut
from tests.moment import LOCAL6


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


def test_importing_it_stays_cheap() -> None:
    code = "import sys; from check_pgsock.sessions import ages, activity; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"typing", "dataclasses", "pathlib", "inspect", "subprocess"} & set(
        done.stdout.split()
    )
