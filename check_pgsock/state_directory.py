"""Which directory the store lies in, and whether it can be trusted.

A directory is trusted when it is one (no symbolic link), belongs to the effective user, and
nobody else may write to it; its parents are not judged. Without --state-dir the first of these
that fits is used:

- /var/lib/check_pgsock, where it exists and is ours (a package or the administrator makes it);
- $XDG_STATE_HOME/check_pgsock, and where that is not set, as its specification says,
  $HOME/.local/state/check_pgsock, where $HOME is a directory of the effective user (sudo may
  leave another user's $HOME);
- none: there is no default in /tmp.

What the XDG paths lack below a directory that is ours is made, with mode 0700. The one that
--state-dir names (an absolute path: the working directory of a check is its caller's) is never
made: where it is missing it is mistyped or not installed, and a check that started a history of its
own there would look healthy.
"""

import os
import stat

from check_pgsock.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Optional

SYSTEM_DIRECTORY = "/var/lib/check_pgsock"
_NAME = "check_pgsock"


def find_directory(
    given: "Optional[str]",
    environment: "Mapping[str, str]",
    system_directory: str = SYSTEM_DIRECTORY,
) -> "Optional[str]":
    """The directory to use, trusted; None where there is none.

    Raises StateError for one that is not there (of the defaults: that cannot be made), and for one
    that cannot be trusted.
    """
    if given is not None:
        if not given:
            raise StateError("--state-dir is empty; name a directory")
        if not os.path.isabs(given):
            raise StateError(
                f"--state-dir {given} is a relative path, and whoever runs the check decides from "
                "where; name it from / on"
            )
        _judge(given)
        return given
    if _is_ours(system_directory):
        _judge(system_directory)
        return system_directory
    path = _below_xdg(environment)
    if path is not None:
        _judge(path)
    return path


def _below_xdg(environment: "Mapping[str, str]") -> "Optional[str]":
    base, missing = environment.get("XDG_STATE_HOME", ""), [_NAME]
    if not os.path.isabs(base):  # the specification: a relative path is to be ignored
        base, missing = environment.get("HOME", ""), [".local", "state", _NAME]
    elif not os.path.lexists(base):
        base, last = os.path.split(base.rstrip("/"))
        missing = [last, _NAME]
    if not os.path.isabs(base) or not _is_ours(base):
        return None
    path = base
    for part in missing:
        path = os.path.join(path, part)
        _make(path)
    return path


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except OSError as error:
        raise StateError(
            f"the state directory {path} cannot be made: {error.strerror}; {_how_to_make()}"
        ) from None


def _how_to_make() -> str:
    owner = user_name(os.geteuid())
    return f"make it, owned by {owner}, mode 0700, or name another with --state-dir"


def _judge(path: str) -> None:
    """Raise StateError unless the directory can be trusted."""
    try:
        # The trailing slash of --state-dir DIR/ would follow a symbolic link.
        found = os.lstat(path.rstrip("/") or "/")
    except FileNotFoundError:
        raise StateError(f"the state directory {path} is not there; {_how_to_make()}") from None
    except OSError as error:
        raise StateError(
            f"the state directory {path} cannot be read: {error.strerror}; name another with "
            "--state-dir"
        ) from None
    user = os.geteuid()
    if stat.S_ISLNK(found.st_mode):
        wrong, remedy = "is a symbolic link", "name the directory itself with --state-dir"
    elif not stat.S_ISDIR(found.st_mode):
        wrong, remedy = "is no directory", "name another with --state-dir"
    elif found.st_uid != user:
        wrong = f"belongs to {user_name(found.st_uid)}"
        remedy = f"name one of {user_name(user)} with --state-dir, or change its owner"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        wrong = f"may be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
        remedy = "take that away with chmod go-w"
    else:
        return
    raise StateError(f"the state directory {path} {wrong}; {remedy}")


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def user_name(uid: int) -> str:
    """`user nobody`, or the number where it has no name."""
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
