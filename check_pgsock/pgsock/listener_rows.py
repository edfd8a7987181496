"""Endpoints as rows of plain values, with the keys that `pgsock listeners` documents."""

from __future__ import annotations

import errno
import pwd
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from check_pgsock.legs import format_address
from check_pgsock.servers.owner_details import Details, read_details
from check_pgsock.servers.programs import POSTGRESQL
from check_pgsock.sockets.socket_file import SocketFile
from check_pgsock.text import clean

if TYPE_CHECKING:
    from check_pgsock.servers.listeners import Endpoint, Found
    from check_pgsock.view import View

_NOT_SEEN = {
    "owner": "who holds {}",
    "data_directory": "the data directory of {}",
    "backlog": "backlog and drops of {}",
    "drops": "drops of {}",
    "limit": "the limit of {}",
    "limit_pending": "whether a change of the configuration of {} is pending",
}


def read_rows(view: View, found: Found) -> list[dict[str, Any]]:
    """A row for each endpoint."""
    known: dict[object, Details] = {}
    rows = []
    for one in found.endpoints:
        owner = (pids_of(one), one.is_proven) if one.owner else one
        if owner not in known:
            known[owner] = read_details(view, one, _backlog(one, found.endpoints))
        rows.append(_row(view, one, known[owner], found.refused))
    return rows


def pids_of(one: Endpoint) -> tuple[int, ...]:
    """The process ids of its owner; several where they share it, or one of them has it."""
    return () if one.owner is None else tuple(each.pid for each in one.owner.processes)


def _backlog(one: Endpoint, endpoints: Iterable[Endpoint]) -> int | None:
    """The backlog of all TCP listeners of the owner of `one` (or of `one`, if that has none)."""
    if not one.reader.of_this_host:
        return None
    mine = [each for each in endpoints if pids_of(each) == pids_of(one)]
    tcp = [each for each in mine if each.address is not None] or [one]
    backlogs = {each.listener.backlog for each in tcp}
    return backlogs.pop() if len(backlogs) == 1 else None


def _row(view: View, one: Endpoint, details: Details, refused: bool) -> dict[str, Any]:
    owner, listener, namespace = one.owner, one.listener, one.reader.namespace
    pids = pids_of(one)
    age = view.processes().age(pids[0], view.files.since_boot()) if len(pids) == 1 else None
    row = {
        "network_namespace": None if namespace is None else namespace.name,
        "family": one.family,
        "address": None if one.address is None else format_address(one.address),
        "port": one.port,
        "path": one.path,
        "kind": None if owner is None else owner.kind,
        "program": None if owner is None else owner.command,
        "pids": list(pids),
        "uid": listener.uid,
        "user": find_user(listener.uid) if view.files.is_live else None,
        "owner_is_proven": None if owner is None else owner.proven,
        "owner_known_by": None if owner is None else owner.proof,
        "started_seconds_ago": None if age is None else round(age, 3),
        "forwards_to": None if owner is None else owner.target,
        "data_directory": details.data_directory,
        "major_version": details.version,
        "configuration_file": details.configuration_file,
        "accept_queue": listener.accept_queue,
        "backlog": listener.backlog,
        "drops": getattr(listener, "drops", None) if _tells_drops(one) else None,
        "limit_usable_slots": details.limit,
        "limit_max_connections": details.max_connections,
        "limit_reserved_slots": details.reserved,
        "limit_reserved_is_assumed": details.assumed,
        "limit_source": details.limit_source,
        "limit_pending": details.limit_pending,
        "not_seen": _not_seen(one, details, refused),
    }
    return {
        key: clean(value, 300) if isinstance(value, str) else value for key, value in row.items()
    }


def _not_seen(one: Endpoint, details: Details, refused: bool) -> dict[str, str]:
    found = {key: clean(why, 300) for key, why in details.unseen.items()}
    if not one.is_proven:
        found["owner"] = (
            "that takes root, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH together"
            if refused
            else "no process that can be seen from here holds it"
        )
    if one.listener.backlog is None:
        found["backlog"] = "procfs does not tell them: --source netlink"
    elif one.address is not None and not _tells_drops(one):
        found["drops"] = (
            "a listener with TCP_DEFER_ACCEPT, as PgBouncer has it, counts connections that were "
            "made among them; only of PostgreSQL's it is known to have none"
        )
    return found


def _tells_drops(one: Endpoint) -> bool:
    """Whether what the kernel counts as dropped was refused: PostgreSQL never defers accepting
    (TCP_DEFER_ACCEPT in tcp(7)), which adds the handshakes that wait for data.
    """
    return one.owner is not None and one.owner.kind == POSTGRESQL


def find_user(uid: int | None) -> str | None:
    """The name of a user of this host; None where it has none."""
    try:
        return None if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def describe_not_seen(
    endpoints: Iterable[Endpoint], rows: Iterable[dict[str, Any]], left_out: Collection[str] = ()
) -> list[str]:
    """A sentence for each kind of what could not be seen, and each reason; `left_out` are the
    kinds that are not shown.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for one, row in zip(endpoints, rows):
        for key, why in row["not_seen"].items():
            reasons.setdefault((key, why), []).append(one.label)
    return [
        f"not seen: {what.format(join_names(names))} ({why})"
        for key, what in _NOT_SEEN.items()
        for (one, why), names in reasons.items()
        if one == key and key not in left_out
    ]


def describe_limits(endpoints: Iterable[Endpoint], rows: Iterable[dict[str, Any]]) -> list[str]:
    """What qualifies the limits: what is pending, and what was assumed."""
    notes: dict[str, list[str]] = {}
    for one, row in zip(endpoints, rows):
        if row["limit_pending"]:
            notes.setdefault(row["limit_pending"], []).append(one.label)
        if row["limit_reserved_is_assumed"]:
            text = f"{row['limit_reserved_slots']} reserved slots are assumed (the defaults)"
            notes.setdefault(text, []).append(one.label)
    return [f"{join_names(names)}: {text}" for text, names in notes.items()]


def describe_gone(view: View, endpoints: Iterable[Endpoint]) -> list[str]:
    """A sentence for each Unix socket of a server among our own files whose file is gone."""
    table = view.processes()
    return [
        f"{one.name}: its socket file is gone, nobody can connect to it any more"
        for one in endpoints
        if one.path is not None and not one.path.startswith("@") and one.reader.of_this_host
        if any(table.shares_namespaces(pid) for pid in pids_of(one))
        if _is_gone(one.path)
    ]


def _is_gone(path: str) -> bool:
    refusal = SocketFile(path).refusal
    return refusal is not None and refusal.errno == errno.ENOENT


def join_names(names: list[str], most: int = 4) -> str:
    """Names in a row; of many the first, and how many more there are."""
    more = [f"{len(names) - most + 1} more"] if len(names) > most else []
    return ", ".join([*names[: most - 1 if more else most], *more])
