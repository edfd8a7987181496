"""What a server says when it refuses, as one of our errors."""

from __future__ import annotations

import psycopg
import pytest

from check_pgsock.errors import DatabaseFull, SlotsExhausted, SourceError
from check_pgsock.postgres.refusals import sentence_of

DATABASE = 'FATAL:  too many connections for database "app"'
SERVER = "FATAL:  sorry, too many clients already"
ROLE = 'FATAL:  too many connections for role "watch"'


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (SERVER, SlotsExhausted, f"no connection slot is left: {SERVER}"),
        (DATABASE, DatabaseFull, f"no connection slot is left: {DATABASE}"),
        # Of several hosts the server that is full says more.
        (f"{DATABASE}\n{SERVER}", SlotsExhausted, f"no connection slot is left: {SERVER}"),
        (f"{ROLE}\n{DATABASE}", DatabaseFull, f"no connection slot is left: {DATABASE}"),
        (
            ROLE,
            SourceError,
            f"the limit of the check's own role is used up: {ROLE}; raise it (ALTER ROLE ... "
            "CONNECTION LIMIT) or name another role with --dsn",
        ),
    ],
)
def test_whose_limit_is_used_up(text: str, kind: type[SourceError], sentence: str) -> None:
    found = sentence_of("the database cannot be reached", psycopg.OperationalError(text))
    assert (type(found), str(found)) == (kind, sentence)
