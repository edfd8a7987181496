"""The only import of psycopg: one connection a run, a few short queries in one transaction.

Fit to go through PgBouncer in transaction mode: no startup `options`, no prepared statements
(the client-side cursor sends simple queries), settings only inside the transaction. psycopg is
imported when a connection is wanted: it costs 0.2 s.
"""

import os

from check_pgsock.deadline import Deadline
from check_pgsock.errors import SlotsExhausted, SourceError, UsageError
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any, Optional

    import psycopg

OLDEST_MAJOR = 14
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
# What a server says that has no slot left: PostgreSQL's ProcArrayAdd, InitProcess and InitPostgres
# (SQLSTATE 53300, which libpq does not hand on while connecting), PgBouncer's client limits.
# Not among them: the limit of a role, which is that of the check and says nothing of the others.
_NO_SLOT = (
    "too many clients",
    "remaining connection slots are reserved",
    "too many connections for database",
    "no more connections allowed",
    "client connections exceeded",
)
_ROLE_LIMIT = "too many connections for role"
_PREFIXES = ("connection failed: ", "connection is bad: ")
_TOO_MANY_CONNECTIONS = "53300"
# What psycopg says of a wrapper that is not installed, or that finds no libpq.
_NO_LIBPQ = (
    "No module named 'psycopg_",
    "libpq library not found",
    "libpq.so.5: cannot open shared object file",
)


class Client:
    """One open connection in one read-only transaction."""

    def __init__(self, connection: "psycopg.Connection[Any]", deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    @property
    def version(self) -> str:
        """What the server calls its version, such as `15.8 (Debian 15.8-0+deb12u1)`."""
        return self._connection.info.parameter_status("server_version") or ""

    @property
    def major(self) -> int:
        """The server's major version."""
        return self._connection.info.server_version // 10000

    def begin(self) -> None:
        """Start the transaction: statements end a little before the deadline, numbers are exact.

        Raises SourceError where the server is a pooler's console or too old for session statistics.
        """
        if "bouncer" in self.version:
            raise SourceError(
                "this is PgBouncer's console, not a database; name a database with --dsn"
            )
        if self.major < OLDEST_MAJOR:
            raise SourceError(
                f"PostgreSQL {clean(self.version)} keeps no session statistics; they came with "
                f"version {OLDEST_MAJOR}"
            )
        milliseconds = max(int(self._deadline.remaining() * 900), 1)
        # A role, a database or the DSN may set extra_float_digits so that digits are left out.
        self._fetch(
            f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL extra_float_digits = 1", None
        )

    def query(self, name: str, parameters: "Optional[dict[str, object]]" = None) -> "list[Any]":
        """The rows, as dicts, of the statement in the file `name` beside this module."""
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        with open(path, encoding="utf-8") as file:
            statement = file.read()
        return self._fetch(statement, parameters)

    def close(self) -> None:
        """End the transaction and the session; an error here changes no result."""
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
        return (
            f"PostgreSQL {clean(self.version)} at {clean(at, 200)}, as role {clean(info.user)}, "
            f"by psycopg {psycopg.__version__} ({libpq.__impl__}, libpq {libpq.version()})"
        )

    def _fetch(self, statement: str, parameters: "Optional[dict[str, object]]") -> "list[Any]":
        import psycopg

        self._deadline.doing = "waiting for the database's answer"
        try:
            cursor = self._connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise _sentence("the database refused a query", error) from None
        except UnicodeError as error:
            raise SourceError(
                f"a database, role or application has a name that is no UTF-8: {error}; rename it, "
                "or name the databases that matter with --database"
            ) from None


def connect(conninfo: str, application_name: str, deadline: Deadline) -> Client:
    """Connect to what `conninfo` and libpq's environment name.

    Raises UsageError for a conninfo that cannot be read or holds a password, SlotsExhausted when
    no slot is left, SourceError when the server cannot be reached or refuses for another reason.
    """
    deadline.doing = "loading psycopg"
    psycopg = _load()
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row

    try:
        parameters = conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        raise UsageError(_unreadable(conninfo, error)) from None
    if "://" in str(parameters.get("dbname", "")):
        # libpq takes it for a name here, and the server would repeat it, with its password.
        raise UsageError("--dsn has a URI as its dbname; give the URI alone")
    for secret in _SECRETS:
        if parameters.get(secret):
            raise UsageError(
                f"--dsn holds a {secret}, which every user can see in the list of processes; put "
                "it into ~/.pgpass, a service file or the environment (PGPASSWORD)"
            )
    deadline.doing = "connecting to the database"
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
        )
        connection.read_only = True
    except psycopg.Error as error:
        raise _sentence("the database cannot be reached", error) from None
    except (UnicodeError, ValueError, OSError) as error:
        raise SourceError(f"the database cannot be reached: {clean(str(error), 300)}") from None
    return Client(connection, deadline)


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
        raise SourceError(_unloadable(str(error))) from None
    return psycopg


def _unloadable(said: str) -> str:
    """The sentence for psycopg's "no pq wrapper available", a line for each that was tried."""
    tried = [line[2:] for line in said.splitlines() if line.startswith("- ")] or [said]
    reasons = [line for line in tried if not any(one in line for one in _NO_LIBPQ)]
    if not reasons:
        return (
            "psycopg finds no libpq; install Debian's libpq5, or the extra: "
            "pip install 'check_pgsock[binary]'"
        )
    return (
        f"psycopg cannot be loaded: {clean('; '.join(reasons), 400)}; see to its installation, or "
        "to the memory that ulimit -v leaves"
    )


def _unreadable(conninfo: str, error: Exception) -> str:
    """The sentence for a conninfo that libpq cannot parse.

    libpq quotes what it does not understand, which may be part of a password: its own words are
    repeated only where there is none.
    """
    sentence = (
        "--dsn is no connection string: key=value pairs (dbname=app host=db1), service=NAME, or "
        "a URI (postgresql://host/app)"
    )
    if "://" in conninfo or any(one in conninfo.lower() for one in ("pass", "secret", "key")):
        return sentence
    return f"{sentence}: {_first_line(str(error))}"


def _sentence(what: str, error: "psycopg.Error") -> SourceError:
    """What the server or libpq says, as one of our errors."""
    text = str(error)
    line = _first_line(text)
    full = any(one in text for one in _NO_SLOT)
    if _ROLE_LIMIT in text and not full:  # of several hosts one may be full
        refused = next(_first_line(one) for one in text.splitlines() if _ROLE_LIMIT in one)
        return SourceError(
            f"the limit of the check's own role is used up: {refused}; raise it (ALTER ROLE ... "
            "CONNECTION LIMIT) or name another role with --dsn"
        )
    if error.sqlstate == _TOO_MANY_CONNECTIONS or full:
        for one in text.splitlines():
            if any(part in one for part in _NO_SLOT):
                line = _first_line(one)
                break
        return SlotsExhausted(f"no connection slot is left: {line}")
    return SourceError(f"{what}: {line}; see to the server, --dsn and the role's rights")


def _first_line(text: str) -> str:
    """The first line of a message, cleaned, without psycopg's own prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "without a reason"
    for prefix in _PREFIXES:
        line = line[len(prefix) :] if line.startswith(prefix) else line
    return clean(line, 300)
