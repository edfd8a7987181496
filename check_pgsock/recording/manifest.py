"""manifest.json: values to JSON and back, checked; pure.

Times are in seconds. Authority for the fields is this module; keys that it does not know are left
alone, anything else that changes a meaning raises VERSION.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Union

from check_pgsock.errors import MalformedError
from check_pgsock.servers.limits import Limit
from check_pgsock.sockets.sources import RAW_TABLES
from check_pgsock.text import clean

FORMAT = "check_pgsock recording"
VERSION = 1
OWN = "self"  # the name of the place that no --netns named
_LONGEST_NUMBER = 25  # characters; what is longer is none of ours, and slow to read
_Json = Union[str, int, float, bool, None, list[Any], dict[str, Any]]


class Header(NamedTuple):
    """What holds for all moments."""

    check_pgsock: str  # version of the recorder
    kernel: str  # release
    machine: str  # such as x86_64
    byte_order: str  # "little" or "big": of numbers in netlink messages and addresses in /proc/net
    word_bits: int
    ticks_per_second: int  # what times in /proc/PID/stat count in
    uid: int  # effective, of the recorder: it decides what could be read
    anonymized: bool


class Place(NamedTuple):
    """A network namespace in one moment."""

    name: str  # what --netns named; `self` without
    asked: bool  # whether --netns named it
    default: bool  # whether it is replayed where --netns names none
    tables: tuple[str, ...]  # those that are there
    tcp_sockets: int
    unix_sockets: int | None  # None: not recorded
    refusal: str | None  # why netlink was not the source, though it might have been
    settings: dict[str, str]  # files below /proc/sys by name, as they were
    network: int | None  # inode of /proc/PID/net/dev of the processes in it


class Finding(NamedTuple):
    """Whose server some listeners are, and its limit; or why that could not be told."""

    endpoint: str  # `port 5432`, or `socket` and its path
    listeners: tuple[int, ...]  # their inodes
    owner: int | None  # process id of the postmaster
    proof: str  # in words; empty without an owner
    limit: Limit | None
    pending: str | None  # what will change the limit
    version: int | None  # major, of the server
    why: str  # why owner or limit is None; empty where both are known


class Moment(NamedTuple):
    """One moment, but for its members."""

    taken: float  # wall clock, since 1970
    since_boot: float  # the same by CLOCK_BOOTTIME
    seconds: float  # how long reading it took
    processes: int
    hidden: bool  # whether processes of others may be missing (hidepid, a container)
    unreadable: int  # processes whose descriptors could not be read
    places: tuple[Place, ...]
    findings: tuple[Finding, ...]


class Manifest(NamedTuple):
    """The whole of it."""

    header: Header
    moments: tuple[Moment, ...]


def pack_manifest(header: Header, moments: list[Moment]) -> bytes:
    """The JSON text."""
    whole = {
        "format": FORMAT,
        "version": VERSION,
        **header._asdict(),
        "moments": [
            {
                **one._asdict(),
                "places": [place._asdict() for place in one.places],
                "findings": [
                    {**finding._asdict(), "limit": _pack_limit(finding.limit)}
                    for finding in one.findings
                ],
            }
            for one in moments
        ],
    }
    return json.dumps(whole, indent=1).encode("ascii") + b"\n"


def _pack_limit(limit: Limit | None) -> dict[str, Any] | None:
    if limit is None:
        return None
    return {name: getattr(limit, name) for name in Limit.__slots__}


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest; raises MalformedError."""
    try:
        whole = parse_json(raw)
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ValueError(f"its format is not '{FORMAT}'")
        if whole.get("version") != VERSION:
            version = clean(str(whole.get("version")), 20)
            raise ValueError(f"its version is {version}, and this program knows {VERSION}")
        header = Header(**_take(whole, "it", _HEADER))
        if header.byte_order not in ("little", "big"):
            raise ValueError("its byte_order is neither little nor big")
        if header.ticks_per_second < 1:
            raise ValueError("its ticks_per_second is below 1")
        moments = _take(whole, "it", {"moments": (list,)})["moments"]
        if not moments:
            raise ValueError("it has no moments")
        return Manifest(header, tuple(_parse_moment(one) for one in moments))
    except ValueError as error:
        raise MalformedError(f"manifest.json: {error}") from None


def parse_cgroups(raw: bytes) -> dict[int, str]:
    """The paths in cgroups.json by number; raises MalformedError."""
    try:
        whole = parse_json(raw)
        if not isinstance(whole, dict) or any(type(one) is not str for one in whole.values()):
            raise ValueError("it does not hold paths by number")
        return {_parse_int(number): str(path) for number, path in whole.items()}
    except ValueError as error:
        raise MalformedError(f"cgroups.json: {error}") from None


def parse_json(raw: bytes) -> _Json:
    """What JSON text says; raises ValueError, whatever it holds."""
    try:
        found: _Json = json.loads(raw, parse_int=_parse_int, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _parse_int(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _refuse(text: str) -> float:
    raise ValueError(f"a number that is {text}")


_Kinds = dict[str, tuple[type, ...]]
_NOTHING = type(None)
_HEADER: _Kinds = {
    "check_pgsock": (str,),
    "kernel": (str,),
    "machine": (str,),
    "byte_order": (str,),
    "word_bits": (int,),
    "ticks_per_second": (int,),
    "uid": (int,),
    "anonymized": (bool,),
}
_PLACE: _Kinds = {
    "name": (str,),
    "asked": (bool,),
    "default": (bool,),
    "tables": (list,),
    "tcp_sockets": (int,),
    "unix_sockets": (int, _NOTHING),
    "refusal": (str, _NOTHING),
    "settings": (dict,),
    "network": (int, _NOTHING),
}
_FINDING: _Kinds = {
    "endpoint": (str,),
    "listeners": (list,),
    "owner": (int, _NOTHING),
    "proof": (str,),
    "limit": (dict, _NOTHING),
    "pending": (str, _NOTHING),
    "version": (int, _NOTHING),
    "why": (str,),
}
_LIMIT: _Kinds = {
    "max_connections": (int,),
    "reserved": (int,),
    "source": (str,),
    "assumed": (bool,),
}
_MOMENT: _Kinds = {
    "taken": (float, int),
    "since_boot": (float, int),
    "seconds": (float, int),
    "processes": (int,),
    "hidden": (bool,),
    "unreadable": (int,),
    "places": (list,),
    "findings": (list,),
}


def _take(values: _Json, where: str, kinds: _Kinds) -> dict[str, Any]:
    """The values of these names, if each is of one of its kinds; raises ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is no object")
    for name, allowed in kinds.items():
        # A bool is an int to isinstance().
        if name not in values or type(values[name]) not in allowed:
            expected = " or ".join("null" if one is _NOTHING else one.__name__ for one in allowed)
            raise ValueError(f"{where} has no {name} that is {expected}")
    return {name: values[name] for name in kinds}


def _all(values: list[Any], kind: type, what: str) -> tuple[Any, ...]:
    if any(type(one) is not kind for one in values):
        raise ValueError(f"{what} are not all {kind.__name__}")
    return tuple(values)


def _parse_moment(values: _Json) -> Moment:
    found = Moment(**_take(values, "a moment", _MOMENT))
    if not 0 <= found.taken < 1e11:
        raise ValueError("a moment was not taken in this age of the world")
    return found._replace(
        places=tuple(_parse_place(one) for one in found.places),
        findings=tuple(_parse_finding(one) for one in found.findings),
    )


def _parse_place(values: Any) -> Place:
    found = Place(**_take(values, "a place", _PLACE))
    _all(list(found.settings.values()), str, "settings")
    tables = _all(list(found.tables), str, "tables")
    if not set(tables) <= set(RAW_TABLES):
        raise ValueError("a place has a table that is not known")
    return found._replace(tables=tables)


def _parse_finding(values: Any) -> Finding:
    found = Finding(**_take(values, "a finding", _FINDING))
    limit: Any = found.limit
    if limit is not None:
        limit = Limit(**_take(limit, "a limit", _LIMIT))
        if limit.usable < 1:
            raise ValueError("a limit is below 1")
    elif not found.why:
        raise ValueError("a finding says neither a limit nor why there is none")
    listeners = _all(list(found.listeners), int, "listeners")
    return found._replace(listeners=listeners, limit=limit)
