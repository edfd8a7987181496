"""What the tests of the pool size need: databases with a load of known shape, servers that are
none, and output whose measured numbers are masked.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

from check_pgsock.pgsock.lab.postgres import PostgresServer
from tests import support
from tests.support import Completed

_numbers = itertools.count(1)


@contextlib.contextmanager
def database(pg: PostgresServer, name: str = "") -> Iterator[str]:
    """A new database, its statistics just reset."""
    name = name or f"app{next(_numbers)}"
    pg.execute(f'CREATE DATABASE "{name}"')
    try:
        reset(pg, name)
        yield name
    finally:
        pg.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def reset(pg: PostgresServer, name: str) -> None:
    """Reset the statistics of a database, and wait until that holds."""
    seen = counters(pg, name)[2]
    pg.execute("SELECT pg_stat_reset()", name)
    support.wait_until(lambda: counters(pg, name)[2] != seen, "the statistics are reset")


def counters(pg: PostgresServer, name: str) -> tuple[float, float, str | None]:
    """Active and idle-in-transaction seconds, and the time of reset."""
    ((active, idle, at),) = pg.execute(
        "SELECT active_time, idle_in_transaction_time, stats_reset FROM pg_stat_database "
        f"WHERE datname = '{name}'"
    )
    assert active is not None
    assert idle is not None
    return float(active) / 1000, float(idle) / 1000, at


def load(pg: PostgresServer, name: str, active: float, idle: float) -> None:
    """Execute and be idle in a transaction, for so many seconds, and wait for the statistics."""
    before = counters(pg, name)
    with pg.connect(name) as session:
        if idle:
            session.query("BEGIN")
            time.sleep(idle)
            session.query("COMMIT")
        if active:
            session.query(f"SELECT pg_sleep({active})")
    support.wait_until(
        lambda: (
            counters(pg, name)[0] >= before[0] + active
            and counters(pg, name)[1] >= before[1] + idle
        ),
        "the statistics of the load",
    )


def masked(text: str) -> str:
    """`text` with what is measured as `#`: durations, decimal fractions, pids of backends."""
    text = re.sub(r"\d+ % of the \d+(\.\d+)? that", "# % of the # that", text)
    text = re.sub(r"\b\d+(\.\d+)? (s|min|h \d\d min|d \d\d h)\b", "# s", text)
    text = re.sub(
        r"may be (up|\d+) to (\d+)(, of \d+ that its load asks for)?, it", r"may be # \2, it", text
    )
    text = re.sub(r"it is (\d+): raise it;", r"it is \1;", text)
    for more in (": the server is too small for the work, or statements take too long",
                 ": lower it, and clients wait briefly at times"):  # fmt: skip
        text = text.replace(more, ": lower it")
    text = re.sub(r"pool_size_needed=\d+", "pool_size_needed=#", text)
    text = re.sub(r"full_load=[\d.]+%;(~:)?;", "full_load=#%;;", text)
    text = re.sub(r"all pools in full use .*\n", "", text)
    return re.sub(r"\d+\.\d+", "#", re.sub(r"backend \d+", "backend #", text))


def measured(text: str) -> dict[str, float]:
    """The values of the perfdata by label."""
    first = text.partition("\n")[0]
    items = first.partition(" | ")[2].split()
    return {item.partition("=")[0]: float(item.split("=")[1].split(";")[0].rstrip("s%"))
            for item in items}  # fmt: skip


@contextlib.contextmanager
def fake_server(version: str | None) -> Iterator[int]:
    """A listener on the yielded port that lets everybody in as a server of `version` and never
    answers again; without `version` it never answers at all.
    """
    ending = threading.Event()
    accepted: list[socket.socket] = []

    def serve() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                accepted.append(client)
                if version is not None:
                    _let_in(client, version)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ending.set()
            thread.join()
            for client in accepted:
                client.close()


def _let_in(client: socket.socket, version: str) -> None:
    """The start-up of protocol 3.0 (PostgreSQL manual, "Message Flow"), without TLS or GSSAPI."""
    client.settimeout(5)
    while True:
        size, code = struct.unpack("!II", client.recv(8, socket.MSG_WAITALL))
        if size > 8:
            client.recv(size - 8, socket.MSG_WAITALL)
        if code >> 16 == 3:
            break
        client.sendall(b"N")
    answer = _message(b"R", struct.pack("!I", 0))
    for name, value in (("server_version", version), ("client_encoding", "UTF8")):
        answer += _message(b"S", f"{name}\0{value}\0".encode())
    answer += _message(b"K", struct.pack("!II", 1, 1))
    client.sendall(answer + _message(b"Z", b"I"))


def _message(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!I", len(payload) + 4) + payload


PREFIX = "PGSOCK_POOL_SIZE"
NO_STATE = (
    "no state directory (--state-dir) keeps what earlier runs saw: judged over the # s since the "
    "statistics were reset\n"
)
FIRST_RUN = "first run: judged over the # s since the statistics were reset\n"
TAIL = "busy_sessions=#;;;0 idle_in_transaction=#;;;0 window=#s;;;0\n"


def run(*arguments: str, user: str | None = "nobody", **more: str) -> Completed:
    """Run the check, as nobody with the distribution's psycopg; measured numbers are masked.

    What all pools of the server come to is not judged: a shared one has those of other tests, too.
    And half a second is enough.
    """
    alone = ("--full-load-warning", "~:", "--since", "0.5")
    done = support.run("pool_size", *alone, *arguments, user=user, env=more)
    return Completed(done.code, masked(done.out), done.err)


def judged(
    state: str, name: str, size: int, allowed: int, notes: str = "",
    extra: str = "", who: str = ""
) -> str:  # fmt: skip
    """The whole output for a pool that is judged; `#` is what was measured.

    How many connections it needs is that, too: on these databases one session is at work.
    """
    over = "" if state == "OK" else f" (pool_size outside range 0:{allowed})"
    lower = ": lower it" if size > allowed else ""
    return (
        f"{PREFIX} {state} - pool of database {name} may be # {allowed}, it is {size}{lower}; "
        f"busy ratio # over # s{extra}{over} | pool_size={size};{allowed};;0 "
        f"pool_size_limit={allowed};;;0 pool_size_needed=#;;;0 busy_ratio=#;;;0;1 "
        f"parallelism=1.0;;;1 full_load=#%;;;0 {TAIL}{notes}{who}"
    ).replace("1.0", "#")


def unknown(sentence: str) -> tuple[int, str, str]:
    return (3, f"{PREFIX} UNKNOWN - {sentence}\n", "")
