"""Socket files: what a path names, and which other names mean it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from check_pgsock.errors import SourceError
from check_pgsock.sockets.socket_file import SocketFile
from tests import support

NAME = ".s.PGSQL.5432"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory with a socket file in it, and `link`, a symlink to it, beside."""
    real = tmp_path / "run"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(real / NAME))
        yield real


def test_the_file_is_what_lies_there(directory: Path) -> None:
    found = os.stat(directory / NAME)
    for path in (directory / NAME, directory.parent / "link" / NAME):
        place = SocketFile(str(path))
        assert place.file == (found.st_dev, found.st_ino)
        assert (place.refusal, place.is_abstract) == (None, False)


def test_names_of_the_same_place(directory: Path) -> None:
    place = SocketFile(str(directory / NAME))
    parent = bytes(directory.parent)
    for name, expected in (
        (b"run/.s.PGSQL.5432", True),
        (b"link/.s.PGSQL.5432", True),
        (b"run/../link/./.s.PGSQL.5432", True),
        (b"run/.s.PGSQL.5433", False),
        (b".s.PGSQL.5432", False),
        (b"nowhere/.s.PGSQL.5432", False),
    ):
        assert place.is_name(parent + b"/" + name) is expected
        assert place.is_name(parent + b"/" + name) is expected
    assert not place.is_name(b".s.PGSQL.5432")
    assert not place.is_name(b"\0" + place.name)


def test_a_path_without_a_file(directory: Path) -> None:
    gone = directory / ".s.PGSQL.5433"
    place = SocketFile(str(gone))
    assert place.file is None
    assert isinstance(place.refusal, FileNotFoundError)
    assert place.is_name(bytes(directory.parent / "link" / gone.name))
    nowhere = SocketFile(str(directory / "nowhere" / NAME))
    assert isinstance(nowhere.refusal, FileNotFoundError)
    assert nowhere.is_name(bytes(directory / "nowhere" / NAME))


def test_a_path_that_may_not_be_looked_at(directory: Path) -> None:
    support.require("root")
    directory.chmod(0o700)
    os.seteuid(65534)
    try:
        place = SocketFile(str(directory / NAME))
    finally:
        os.seteuid(0)
    assert place.file is None
    assert isinstance(place.refusal, PermissionError)


def test_another_hosts_path_is_not_looked_for_here(directory: Path) -> None:
    place = SocketFile(str(directory / NAME), here=False)
    assert (place.file, place.refusal) == (None, None)
    assert place.is_name(bytes(directory / NAME))
    assert not place.is_name(bytes(directory.parent / "link" / NAME))


def test_abstract_names(directory: Path) -> None:
    place = SocketFile("@/run/.s.PGSQL.5432")
    assert place.name == b"\0/run/.s.PGSQL.5432"
    assert place.is_abstract
    assert (place.file, place.refusal) == (None, None)
    assert place.is_name(place.name)
    assert not place.is_name(b"@/run/.s.PGSQL.5432")
    assert not place.is_name(b"/run/.s.PGSQL.5432")


def test_relative_paths_are_those_of_this_process(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    assert SocketFile(NAME).name == bytes(directory / NAME)


def test_undecodable_paths(directory: Path) -> None:
    place = SocketFile(os.fsdecode(b"/run/\xff"))
    assert place.name == b"/run/\xff"


def test_what_is_no_socket(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(SourceError) as caught:
        SocketFile(str(directory / "file"))
    assert str(caught.value) == f"{directory}/file is not a socket"
    with pytest.raises(SourceError) as caught:
        SocketFile(str(directory))
    assert str(caught.value) == (
        f"{directory} is a directory; name the socket in it, such as {directory}/.s.PGSQL.5432"
    )
