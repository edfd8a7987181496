"""PgBouncer's configuration file: parsed, and read with what it includes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.pgbouncer.ini import (
    INCLUDE,
    SECTION,
    SETTING,
    find_path,
    names_listener,
    parse_connection_string,
    parse_lines,
    read_ini,
    read_ini_at,
)
from tests.moment import LOCAL4, LOCAL6


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pgbouncer /etc/pgbouncer.ini", "/etc/pgbouncer.ini"),
        ("pgbouncer -d -u postgres x.ini", "x.ini"),
        ("pgbouncer x.ini -R --user postgres", "x.ini"),
        ("pgbouncer -V", None),
    ],
)
def test_the_file_on_the_command_line(line: str, expected: str | None) -> None:
    assert find_path(line.split()) == expected


def test_lines() -> None:
    text = (
        "; comment\n# comment\n\n[databases]\n* = host=h port=1 ; no comment\n"
        "%include more.ini \n  [pgbouncer]\nlisten_port=1\n'a=b' = c\nempty =\n%includes = 1\n"
    )
    assert list(parse_lines(text, "x.ini")) == [
        (SECTION, "databases", ""),
        (SETTING, "*", "host=h port=1 ; no comment"),
        (INCLUDE, "more.ini", ""),
        (SECTION, "pgbouncer", ""),
        (SETTING, "listen_port", "1"),
        (SETTING, "a=b", "c"),
        (SETTING, "empty", ""),
        (SETTING, "%includes", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n[pgbouncer", r"x\.ini line 2: a section without '\]'"),
        ("[a]\n\nword\n", r"x\.ini line 3: neither a setting nor a section"),
        ("'a = b\n", r"x\.ini line 1: neither a setting nor a section"),
    ],
)
def test_what_pgbouncer_refuses_is_quoted(text: str, sentence: str) -> None:
    with pytest.raises(MalformedError, match=sentence):
        list(parse_lines(text, "x.ini"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" host = h  port=1 port=2", {"host": "h", "port": "2"}),
        ("connect_query='select ''a b''' user=u", {"connect_query": "select 'a b'", "user": "u"}),
        ("password=it's", {"password": "it's"}),
        ("dbname='a=b'", {"dbname": "a=b"}),
    ],
)
def test_connection_strings(text: str, expected: dict[str, str]) -> None:
    assert parse_connection_string(text, "x") == expected


@pytest.mark.parametrize(
    "text", ["host", "host=", "=h", "host=h ; no", "user='a", "user='' port=1"]
)
def test_connection_strings_that_pgbouncer_refuses(text: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_connection_string(text, "x.ini: shop in [databases]")
    sentence = "x.ini: shop in [databases] is not of the form key=value key='value'"
    assert str(caught.value) == sentence


def test_a_file_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "pgbouncer.ini"
    path.write_text("[databases]\n* = port=1\n")
    assert read_ini_at(str(path)).databases == {"*": "port=1"}
    path.write_text("%include more.ini\n")
    with pytest.raises(SourceError) as caught:
        read_ini_at(str(path))
    assert str(caught.value) == (
        f"{path} includes more.ini: relative to where PgBouncer was started, which is not known; "
        "include it by its whole path"
    )
    path.unlink()
    with pytest.raises(SourceError) as caught:
        read_ini_at(str(path))
    assert str(caught.value) == f"{path}: No such file or directory"


def test_included_files_go_on_in_the_section_and_leave_theirs_behind(tmp_path: Path) -> None:
    one, two = tmp_path / "one.ini", tmp_path / "two.ini"
    one.write_text(
        "[databases]\nshop = port=1\n[pgbouncer]\nmax_client_conn = 7\n%include two.ini\n"
        "listen_port = 1\n"
    )
    two.write_text("max_client_conn = 9\n[peers]\n1 = host=h\n[users]\nlisten_port = 2\n")
    os.utime(one, (1000, 1000))
    os.utime(two, (2000, 2000))
    found = read_ini("one.ini", lambda path: str(tmp_path / path))
    assert found.path == "one.ini"
    assert found.changed == 2000
    assert found.settings == {"listen_addr": "", "listen_port": "6432", "max_client_conn": "9"}
    assert found.databases == {"shop": "port=1"}
    assert found.users == {"listen_port": "1"}


def test_what_is_no_configuration_file_is_not_read(tmp_path: Path) -> None:
    fifo, loop, large = tmp_path / "fifo", tmp_path / "loop", tmp_path / "large"
    os.mkfifo(fifo)
    loop.write_text(f"%include {loop}\n")
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    for path, sentence in (
        (fifo, "is no regular file"),
        (loop, "files include each other more than 10 deep"),
        (large, "has more than 1048576 bytes"),
        (Path("/dev/null"), "is no regular file"),
    ):
        with pytest.raises(MalformedError, match=sentence):
            read_ini(str(path), str)
    with pytest.raises(FileNotFoundError):
        read_ini(str(tmp_path / "none"), str)


def test_the_listeners_that_it_names() -> None:
    settings = {"listen_port": "6432", "listen_addr": "127.0.0.1, 10.0.0.1"}
    assert names_listener(settings, LOCAL4, 6432, None)
    assert not names_listener(settings, LOCAL4, 6433, None)
    assert not names_listener(settings, LOCAL6, 6432, None)
    assert names_listener({**settings, "listen_addr": "*"}, LOCAL6, 6432, None)
    assert names_listener({**settings, "listen_addr": "localhost"}, LOCAL6, 6432, None)
    assert not names_listener({**settings, "listen_addr": ""}, LOCAL4, 6432, None)
    assert names_listener(settings, None, 6432, "/run")
    assert names_listener({**settings, "unix_socket_dir": "/run"}, None, 6432, "/run")
    assert not names_listener({**settings, "unix_socket_dir": "/tmp"}, None, 6432, "/run")
