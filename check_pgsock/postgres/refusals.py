"""What a server, a pooler, libpq or psycopg says when it refuses, as one sentence of ours; pure."""

from check_pgsock.errors import DatabaseFull, SlotsExhausted, SourceError
from check_pgsock.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    import psycopg

# What a server says that has no slot left: PostgreSQL's ProcArrayAdd, InitProcess and InitPostgres
# (SQLSTATE 53300, which libpq does not hand on while connecting), PgBouncer's client limits.
# Not among them: the limit of a role, which is that of the check and says nothing of the others.
_NO_SLOT = (
    "too many clients",
    "remaining connection slots are reserved",
    "no more connections allowed",
    "client connections exceeded",
)
_DATABASE_LIMIT = "too many connections for database"
_ROLE_LIMIT = "too many connections for role"
# What PgBouncer says to a user that is in neither of its lists (admin_post_login, src/admin.c).
_NOT_ALLOWED = "not allowed"
# What it says, or lets pass in silence, where a user of its console is not in auth_file: measured
# with 1.23 to 1.25, 1.12, and 1.16 to 1.19.
_NOT_IN_FILE = ("bouncer config error", "no such user", "timeout expired")
# What psycopg says of a wrapper that is not installed, or that finds no libpq.
_NO_LIBPQ = (
    "No module named 'psycopg_",
    "libpq library not found",
    "libpq.so.5: cannot open shared object file",
)
_PREFIXES = ("connection failed: ", "connection is bad: ")
_TOO_MANY_CONNECTIONS = "53300"  # SQLSTATE


def sentence_of(what: str, error: "psycopg.Error", option: str = "--dsn") -> SourceError:
    """What the server or libpq says, as one of our errors; `what` is what did not work, `option`
    the one that named the server.
    """
    text = str(error)
    line = first_line(text)
    full = [one for one in (*_NO_SLOT, _DATABASE_LIMIT) if one in text]
    if _ROLE_LIMIT in text and not full:  # of several hosts one may be full
        refused = next(first_line(one) for one in text.splitlines() if _ROLE_LIMIT in one)
        return SourceError(
            f"the limit of the check's own role is used up: {refused}; raise it (ALTER ROLE ... "
            f"CONNECTION LIMIT) or name another role with {option}"
        )
    if error.sqlstate == _TOO_MANY_CONNECTIONS or full:
        if full:
            line = next(first_line(one) for one in text.splitlines() if full[0] in one)
        kind = DatabaseFull if full == [_DATABASE_LIMIT] else SlotsExhausted
        return kind(f"no connection slot is left: {line}")
    if "console" in what and line.endswith(_NOT_ALLOWED):
        return SourceError(
            f"{what}: {line}: its user is in neither stats_users nor admin_users of PgBouncer; add "
            "it to stats_users, which suffices, and RELOAD"
        )
    if "console" in what and line.endswith(_NOT_IN_FILE):
        return SourceError(
            f"{what}: {line}; see to host and port in {option}, and to its user, who has to be in "
            "PgBouncer's auth_file: auth_query finds nobody for the console, unless auth_dbname "
            "names a database (PgBouncer 1.19 and later)"
        )
    return SourceError(f"{what}: {line}; see to the server, {option} and the role's rights")


def unloadable(said: str) -> str:
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


def first_line(text: str) -> str:
    """The first line of a message, cleaned, without psycopg's own prefix."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "without a reason"
    for prefix in _PREFIXES:
        line = line[len(prefix) :] if line.startswith(prefix) else line
    return clean(line, 300)
