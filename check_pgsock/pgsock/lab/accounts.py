"""The unprivileged users that servers run as."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple

from check_pgsock.pgsock.lab.errors import LabError


class Account(NamedTuple):
    """The user and group id a server runs as."""

    uid: int
    gid: int


def account_of(user: str) -> Account | None:
    """The ids of `user` where this process is root, else None (servers then run as ourselves).

    Raises LabError for an unknown user, and for root: PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise LabError(f"there is no user '{user}' to run a server as; name another") from None
    if entry.pw_uid == 0:
        raise LabError("PostgreSQL refuses to run as root; name an unprivileged user")
    return Account(entry.pw_uid, entry.pw_gid)


def own(path: Path, account: Account | None) -> None:
    """Give a path that we made to `account`."""
    if account is not None:
        os.chown(path, account.uid, account.gid)
