"""manifest.json: values to JSON and back, and every way it can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.recording.manifest import (
    Finding,
    Manifest,
    Moment,
    Place,
    pack_manifest,
    parse_cgroups,
    parse_manifest,
)
from check_pgsock.servers.limits import Limit
from tests.recordings import FINDING, HEADER

PLACES = (
    Place("self", False, True, ("tcp.netlink", "unix.netlink"), 4, 2, None, {"a/b": "1\n"}, 17),
    Place("blue", True, False, ("tcp", "tcp6"), 0, None, "EPERM", {}, None),
)
UNKNOWN = Finding("socket /a\udcff", (7, 9), None, "", None, None, None, "nobody knows")
PENDING = FINDING._replace(limit=Limit(20, 3, "pg_control", True), pending="soon")
MOMENTS = (
    Moment(1.7e9, 12.5, 0.25, 3, False, 0, PLACES, (UNKNOWN, PENDING)),
    Moment(1.7e9 + 1, 13.5, 0.5, 2, True, 2, PLACES[:1], ()),
)
RAW = pack_manifest(HEADER, list(MOMENTS))


def comparable(manifest: Manifest) -> object:
    """It, with its limits as tuples: they are compared by identity."""
    return [
        (one, [_values(each.limit) for each in one.findings])
        for one in (m._replace(findings=()) for m in manifest.moments)
    ] + [[(f._replace(limit=None), _values(f.limit)) for f in m.findings] for m in manifest.moments]


def _values(limit: Limit | None) -> object:
    return limit and (limit.max_connections, limit.reserved, limit.source, limit.assumed)


def test_there_and_back() -> None:
    found = parse_manifest(RAW)
    assert found.header == HEADER
    assert comparable(found) == comparable(Manifest(HEADER, MOMENTS))
    assert RAW.isascii()


def test_what_a_later_version_adds_is_left_alone() -> None:
    whole = json.loads(RAW)
    whole["later"] = whole["moments"][0]["later"] = [1]
    found = parse_manifest(json.dumps(whole).encode())
    assert comparable(found) == comparable(Manifest(HEADER, MOMENTS))


def changed(*keys: Any, value: Any) -> bytes:
    """The manifest with another value at the place that `keys` lead to."""
    whole = json.loads(RAW)
    at = whole
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return json.dumps(whole).encode()


FIRST = ("moments", 0)
PLACE = (*FIRST, "places", 0)
KNOWN = (*FIRST, "findings", 1)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[]", "its format is not 'check_pgsock recording'"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": ' + b"9" * 26 + b"}", "a number of 26 digits"),
        (changed("format", value="a zip"), "its format is not 'check_pgsock recording'"),
        (changed("version", value=2), "its version is 2, and this program knows 1"),
        (changed("version", value="1|\n"), "its version is 1? , and this program knows 1"),
        (changed("byte_order", value="middle"), "its byte_order is neither little nor big"),
        (changed("ticks_per_second", value=0), "its ticks_per_second is below 1"),
        (changed("ticks_per_second", value=True), "it has no ticks_per_second that is int"),
        (changed("uid", value=None), "it has no uid that is int"),
        (changed("anonymized", value=0), "it has no anonymized that is bool"),
        (changed("moments", value={}), "it has no moments that is list"),
        (changed("moments", value=[]), "it has no moments"),
        (changed("moments", value=[3]), "a moment is no object"),
        (changed(*FIRST, "taken", value=-1), "a moment was not taken in this age of the world"),
        (changed(*FIRST, "taken", value=1e300), "a moment was not taken in this age of the world"),
        (changed(*FIRST, "taken", value=float("nan")), "a number that is NaN"),
        (changed(*FIRST, "seconds", value=""), "a moment has no seconds that is float or int"),
        (changed(*FIRST, "places", value=[None]), "a place is no object"),
        (changed(*PLACE, "name", value=1), "a place has no name that is str"),
        (changed(*PLACE, "refusal", value=1), "a place has no refusal that is str or null"),
        (changed(*PLACE, "tables", value=["../x"]), "a place has a table that is not known"),
        (changed(*PLACE, "tables", value=[1]), "tables are not all str"),
        (changed(*PLACE, "settings", value={"a": 1}), "settings are not all str"),
        (changed(*KNOWN, "owner", value="1"), "a finding has no owner that is int or null"),
        (changed(*KNOWN, "listeners", value=["1"]), "listeners are not all int"),
        (changed(*KNOWN, "limit", value={}), "a limit has no max_connections that is int"),
        (changed(*KNOWN, "limit", "reserved", value=20), "a limit is below 1"),
        (changed(*KNOWN, "limit", value=None),
         "a finding says neither a limit nor why there is none"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(raw: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_manifest(raw)
    assert str(caught.value) == f"manifest.json: {sentence}"


@pytest.mark.parametrize("raw", [b"[]", b'{"1": 2}', b'{"x": "/a"}', b"{"])
def test_cgroups_are_paths_by_number(raw: bytes) -> None:
    assert parse_cgroups(b'{"17": "/a"}') == {17: "/a"}
    with pytest.raises(MalformedError, match=r"^cgroups\.json: "):
        parse_cgroups(raw)
