"""The file of a recording: written whole or not at all, and read without trust."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from check_pgsock.deadline import Deadline
from check_pgsock.errors import MalformedError, SourceError
from check_pgsock.recording.archive import MOST_BYTES, Archive, Writer
from check_pgsock.recording.capture import load
from check_pgsock.sockets.model import Query
from tests import support
from tests.recordings import HEADER, captured, replay, write

END = struct.Struct("<IHHHHIIH")  # end of central directory
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good recording."""
    return write(tmp_path / "good.zip")


def refused(path: Path) -> str:
    """What is said of a recording that cannot be read."""
    with pytest.raises(SourceError) as caught:
        replay(path)
    return str(caught.value)


def damaged(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """The file, changed."""
    path.write_bytes(change(path.read_bytes()))
    return path


NO_RECORDING = "is no recording, or not the whole of one: "


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: b"", "it has 0 bytes"),
        (lambda raw: b"PK", "it has 2 bytes"),
        (lambda raw: b"  sl  local_address rem_address\n" * 3,
         "it does not end as a zip file of pgsock record does"),
        (lambda raw: raw[:-1], "it does not end as a zip file of pgsock record does"),
        (lambda raw: raw[: len(raw) // 2], "it does not end as a zip file of pgsock record does"),
        (lambda raw: raw[:-2] + b"\1\0x", "it does not end as a zip file of pgsock record does"),
        (lambda raw: raw[-22:], "Bad "),  # and what zipfile says
    ],
)  # fmt: skip
def test_what_is_no_recording(path: Path, change: Callable[[bytes], bytes], sentence: str) -> None:
    assert refused(damaged(path, change)).startswith(f"{path} {NO_RECORDING}{sentence}")


def test_a_zip_that_promises_more_than_it_may(path: Path) -> None:
    def promise(raw: bytes) -> bytes:
        fields = list(END.unpack(raw[-22:]))
        fields[5] = 1 << 30
        return raw[:-22] + END.pack(*fields)

    def point_elsewhere(raw: bytes) -> bytes:
        return raw[:-22] + struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1) + raw[-22:]

    good = path.read_bytes()
    for change in (promise, point_elsewhere):
        path.write_bytes(change(good))
        assert refused(path) == f"{path} {NO_RECORDING}it promises too many members"


def patched(raw: bytes, name: bytes, central: int, local: int, size: str, value: int) -> bytes:
    """A zip with another value in the headers of a member, at these offsets of both."""
    found = bytearray(raw)
    at = -1
    while True:
        at = raw.find(name, at + 1)
        if at < 0:
            return bytes(found)
        for signature, length, offset in ((CENTRAL, 46, central), (LOCAL, 30, local)):
            if raw[at - length : at - length + 4] == signature:
                struct.pack_into(size, found, at - length + offset, value)


@pytest.mark.parametrize(
    ("central", "local", "size", "value", "sentence"),
    [
        (24, 22, "<I", MOST_BYTES + 1, "it holds more than 256 MiB"),
        (10, 8, "<H", zipfile.ZIP_LZMA, "it is not deflated"),
        (8, 6, "<H", 1, "File <ZipInfo "),  # is encrypted
        (16, 14, "<I", 7, "Bad CRC-32 for file 'moments/1/1/tcp.netlink'"),
    ],
)  # fmt: skip
def test_a_member_that_cannot_be_read(
    path: Path, central: int, local: int, size: str, value: int, sentence: str
) -> None:
    member = "moments/1/1/tcp.netlink"
    damaged(path, lambda raw: patched(raw, member.encode(), central, local, size, value))
    with pytest.raises(MalformedError) as caught:
        replay(path).reader.sockets(Query((), True, 0xFFF))
    assert str(caught.value).startswith(f"{path}, {member}: {sentence}")


def test_a_missing_member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as empty:
        empty.writestr("readme", "")
    assert refused(path) == f"{path}, manifest.json: it is not there"


def test_an_unknown_version(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("manifest.json", '{"format": "check_pgsock recording", "version": 9}')
    assert refused(path) == (f"{path}, manifest.json: its version is 9, and this program knows 1")


def test_no_damage_is_anything_but_a_sentence(path: Path) -> None:
    """Bits that flip anywhere: all is read, or a SourceError says what is wrong."""
    good = path.read_bytes()
    chance = random.Random(1)
    refusals = 0
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        try:
            view = replay(path)
            view.reader.sockets(Query((), True, 0xFFF, info=True, cgroup=True))
            view.reader.unix_listeners()
            view.processes().commands()
            list(load(Archive(str(path), Deadline(5))))
        except SourceError:
            refusals += 1
    assert refusals > 300  # the checksums see it


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing.zip") == (
        f"there is no recording {tmp_path}/missing.zip; --source takes auto, netlink, procfs, or "
        "the file that pgsock record wrote"
    )
    os.mkfifo(tmp_path / "fifo")
    assert refused(tmp_path / "fifo") == f"{tmp_path}/fifo is not a regular file"
    assert refused(tmp_path) == f"{tmp_path} is not a regular file"


def test_the_same_content_makes_the_same_file(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_only_its_owner_may_read_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == [path.name]


def test_what_is_there_is_replaced_by_force_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(SourceError) as caught:
        write(path)
    assert str(caught.value) == f"{path} is there already; name another file, or --force"
    with Writer(str(path), HEADER._replace(uid=7), force=True) as writer:
        writer.add(captured().about, captured().members(1))
        assert path.read_bytes() == before
        writer.commit()
    assert Archive(str(path), Deadline(5)).manifest.header.uid == 7
    assert os.listdir(path.parent) == [path.name]


def test_one_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with Writer(str(path), HEADER) as writer:
        writer.add(captured().about, captured().members(1))
        path.write_text("another's")
        with pytest.raises(SourceError, match="is there already"):
            writer.commit()
    assert path.read_text() == "another's"
    assert os.listdir(tmp_path) == ["one"]


def test_one_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), Writer(str(tmp_path / "one"), HEADER) as writer:
        writer.add(captured().about, captured().members(1))
        assert len(os.listdir(tmp_path)) == 1
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    support.require("root")
    with pytest.raises(SourceError) as caught:
        Writer(str(tmp_path / "missing" / "one"), HEADER)
    assert str(caught.value) == (
        f"{tmp_path}/missing cannot be written to: No such file or directory"
    )
    with pytest.raises(SourceError) as caught:
        Writer(str(tmp_path), HEADER, force=True)
    assert str(caught.value) == f"{tmp_path} is not a regular file; name another file"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SourceError) as caught:
        Writer(str(tmp_path / "file" / "one"), HEADER, force=True)
    assert str(caught.value) == f"{tmp_path}/file cannot be written to: Not a directory"


def make_socket(path: Path) -> None:
    """Leave a Unix socket, which nobody listens on."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        make_socket,
        lambda path: path.symlink_to("good.zip"),
        lambda path: path.symlink_to("nothing"),
        lambda path: path.symlink_to("."),
    ],
    ids=["fifo", "directory", "socket", "link", "broken link", "link to a directory"],
)
@pytest.mark.parametrize("force", [False, True])
def test_no_more_than_a_regular_file_is_replaced(
    path: Path, make: Callable[[Path], None], force: bool
) -> None:
    before, other = path.read_bytes(), path.parent / "other"
    make(other)
    made = other.lstat()
    with pytest.raises(SourceError) as caught:
        Writer(str(other), HEADER, force)
    assert str(caught.value) == f"{other} is not a regular file; name another file"
    assert other.lstat() == made
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["good.zip", "other"]


def test_what_appears_meanwhile_is_not_replaced_by_force(path: Path) -> None:
    with Writer(str(path), HEADER, force=True) as writer:
        writer.add(captured().about, captured().members(1))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(SourceError, match="is not a regular file"):
            writer.commit()
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert os.listdir(path.parent) == [path.name]
