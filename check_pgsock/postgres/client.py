"""The only import of psycopg: one connection a run, a few short queries in read-only transactions;
or, to PgBouncer's console, which knows no transactions, a few SHOW commands.

Fit to go through PgBouncer in transaction mode: no startup `options`, no prepared statements
(the client-side cursor sends simple queries), settings only inside the transaction. psycopg is
imported when a connection is wanted: it costs 0.2 s.
"""

import os

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SourceError, UsageError
from check_pgsock.postgres.refusals import first_line, sentence_of, unloadable
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any, Optional

    import psycopg

OLDEST_MAJOR = 14
CONSOLE = "pgbouncer"  # the name of PgBouncer's console among its databases
# libpq's own minimum (PostgreSQL manual, "Parameter Key Words", connect_timeout).
_SHORTEST_CONNECT_TIMEOUT = 2
# Connection parameters that are secrets themselves; passfile and service only name a file.
_SECRETS = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)


class Client:
    """One open connection: in a read-only transaction, or to PgBouncer's console."""

    def __init__(self, connection: "psycopg.Connection[Any]", deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self.host = connection.info.host  # as the DSN names it
        self.user = connection.info.user  # as we called ourselves; a pooler may force another

    @property
    def version(self) -> str:
        """What the server calls its version, such as `15.8 (Debian 15.8-0+deb12u1)`."""
        return self._connection.info.parameter_status("server_version") or ""

    @property
    def major(self) -> int:
        """The server's major version."""
        return self._connection.info.server_version // 10000

    @property
    def is_console(self) -> bool:
        """Whether it is PgBouncer's console, which calls its version `1.18.0/bouncer`."""
        return "bouncer" in self.version

    @property
    def endpoint(self) -> "tuple[str, int]":
        """Host, or directory of the Unix socket, and port that were reached, of several."""
        info = self._connection.info
        return info.host, info.port

    @property
    def backend_pid(self) -> int:
        """The process that let us in, as it says: a pooler says one that no backend has."""
        return self._connection.info.backend_pid

    def begin(self) -> None:
        """Start the transaction: statements end a little before the deadline, numbers are exact.

        Raises SourceError where the server is a pooler's console or too old for session statistics.
        """
        if self.is_console:
            raise SourceError(
                "this is PgBouncer's console, not a database; name a database with --dsn"
            )
        if self.major < OLDEST_MAJOR:
            raise SourceError(
                f"PostgreSQL {clean(self.version)} keeps no session statistics; they came with "
                f"version {OLDEST_MAJOR}"
            )
        self._fetch(self._settings(), None)

    def query(self, name: str, parameters: "Optional[dict[str, object]]" = None) -> "list[Any]":
        """The rows, as dicts, of the statement in the file `name` beside this module."""
        return self._fetch(_read(name), parameters)

    def show(self, what: str) -> "list[Any]":
        """The rows, as dicts, of the console's command SHOW `what`."""
        self._connection.autocommit = True  # the console refuses BEGIN
        return self._fetch(f"SHOW {what}", None)

    def query_alone(self, name: str) -> "list[Any]":
        """The same, without parameters, in a transaction of its own that is sent whole, so that
        what is waited for between two of them is no time idle in one. It ends the one that
        begin() started; at PgBouncer it may be in another backend.
        """
        if not self._connection.autocommit:
            self._fetch("ROLLBACK", None)
            self._connection.autocommit = True
        return self._fetch(f"BEGIN READ ONLY; {self._settings()}; {_read(name)}; COMMIT", None)

    def close(self) -> None:
        """End the transaction, if any, and the session; an error here changes no result."""
        import psycopg

        try:
            self._connection.rollback()
            self._connection.close()
        except psycopg.Error:
            return

    def describe(self) -> str:
        """Which driver and libpq talk to which server, for -vv."""
        import psycopg

        info, libpq = self._connection.info, psycopg.pq
        at = f"{info.host or 'local'} port {info.port}"
        what = "the console of PgBouncer" if self.is_console else "PostgreSQL"
        return (
            f"{what} {clean(self.version)} at {clean(at, 200)}, as role {clean(self.user)}, "
            f"by psycopg {psycopg.__version__} ({libpq.__impl__}, libpq {libpq.version()})"
        )

    def _settings(self) -> str:
        """What holds within a transaction."""
        milliseconds = max(int(self._deadline.remaining() * 900), 1)
        # A role, a database or the DSN may set extra_float_digits so that digits are left out.
        return f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL extra_float_digits = 1"

    def _fetch(self, statement: str, parameters: "Optional[dict[str, object]]") -> "list[Any]":
        import psycopg

        self._deadline.doing = "waiting for the database's answer"
        try:
            cursor = self._connection.execute(statement, parameters)
            while not cursor.description and cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise sentence_of("the database refused a query", error) from None
        except UnicodeError as error:
            raise SourceError(
                f"a database, role or application has a name that is no UTF-8: {error}; rename it, "
                "or name the databases that matter with --database"
            ) from None


def _read(name: str) -> str:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    with open(path, encoding="utf-8") as file:
        return file.read()


def connect(conninfo: str, application_name: str, deadline: Deadline) -> Client:
    """Connect to what `conninfo` and libpq's environment name.

    Raises UsageError for a conninfo that cannot be read or holds a password, SlotsExhausted when
    no slot is left, SourceError when the server cannot be reached or refuses for another reason.
    """
    return _open(conninfo, application_name, deadline, "the database", "--dsn")


def connect_console(
    conninfo: str, application_name: str, deadline: Deadline, option: str = "--dsn"
) -> Client:
    """Connect to the console of the PgBouncer that `conninfo` and libpq's environment name, where
    `conninfo` names no database itself; raises as connect() does, and SourceError where something
    else answers. Nothing but SHOW is ever sent.
    """
    client = _open(conninfo, application_name, deadline, "PgBouncer's console", option)
    if not client.is_console:
        said = f"PostgreSQL {clean(client.version)}, not PgBouncer's console"
        client.close()
        raise SourceError(
            f"what answers is {said}; name PgBouncer's port with {option}, without a database or "
            f"with dbname={CONSOLE}"
        )
    return client


def _open(
    conninfo: str, application_name: str, deadline: Deadline, whom: str, option: str
) -> Client:
    """Connect to `whom`, which `option` names; raises as connect() does."""
    deadline.doing = "loading psycopg"
    psycopg = _load()
    from psycopg.rows import dict_row

    parameters = _parse(conninfo, option)
    console = whom != "the database"
    more: dict[str, Any] = {}
    if console:
        # It refuses startup `options`, those of the environment too, and BEGIN.
        more = {"dbname": parameters.get("dbname") or CONSOLE, "options": "", "autocommit": True}
    deadline.doing = f"connecting to {whom}"
    try:
        connection = psycopg.connect(
            conninfo,
            # libpq's environment and the conninfo itself win over a fallback.
            fallback_application_name=application_name,
            client_encoding="UTF8",
            connect_timeout=connect_timeout(parameters, deadline.remaining()),
            prepare_threshold=None,
            cursor_factory=psycopg.ClientCursor,
            row_factory=dict_row,
            **more,
        )
        if not console:
            connection.read_only = True
        return Client(connection, deadline)
    except psycopg.Error as error:
        raise sentence_of(f"{whom} cannot be reached", error, option) from None
    except (UnicodeError, ValueError, OSError) as error:
        raise SourceError(f"{whom} cannot be reached: {clean(str(error), 300)}") from None


def _parse(conninfo: str, option: str) -> "dict[str, Any]":
    """What `conninfo` says; raises UsageError where it cannot be read or holds a password."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parameters: dict[str, Any] = conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        raise UsageError(_unreadable(conninfo, error, option)) from None
    if "://" in str(parameters.get("dbname", "")):
        # libpq takes it for a name here, and the server would repeat it, with its password.
        raise UsageError(f"{option} has a URI as its dbname; give the URI alone")
    for secret in _SECRETS:
        if parameters.get(secret):
            raise UsageError(
                f"{option} holds a {secret}, which every user can see in the list of processes; "
                "put it into ~/.pgpass, a service file or the environment (PGPASSWORD)"
            )
    return parameters


def connect_timeout(parameters: "dict[str, Any]", remaining: float) -> int:
    """libpq's connect_timeout, in whole seconds, at least 2.

    It holds for each address of each host: what is left is divided by the hosts that are named,
    and for names with several addresses the watchdog ends the run.
    """
    hosts = str(parameters.get("hostaddr") or parameters.get("host") or "").count(",") + 1
    ours = max(int(remaining * 0.8 / hosts), _SHORTEST_CONNECT_TIMEOUT)
    try:
        theirs = int(parameters.get("connect_timeout") or 0)
    except ValueError:
        return ours
    return min(theirs, ours) if theirs > 0 else ours


def _load() -> "types.ModuleType":
    try:
        import psycopg
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise SourceError(f"psycopg cannot be loaded: {error}; install it anew") from None
        raise SourceError(
            "psycopg is not installed; install Debian's python3-psycopg, or the extra: "
            "pip install 'check_pgsock[binary]'"
        ) from None
    except ImportError as error:
        raise SourceError(unloadable(str(error))) from None
    return psycopg


def _unreadable(conninfo: str, error: Exception, option: str) -> str:
    """The sentence for a conninfo that libpq cannot parse.

    libpq quotes what it does not understand, which may be part of a password: its own words are
    repeated only where there is none.
    """
    sentence = (
        f"{option} is no connection string: key=value pairs (dbname=app host=db1), service=NAME, "
        "or a URI (postgresql://host/app)"
    )
    if "://" in conninfo or any(one in conninfo.lower() for one in ("pass", "secret", "key")):
        return sentence
    return f"{sentence}: {first_line(str(error))}"
