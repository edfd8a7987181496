"""/proc/net/unix: recorded text to values, and every way it can be wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from check_pgsock.errors import MalformedError
from check_pgsock.sockets.model import CLOSE
from check_pgsock.sockets.proc_net_unix import parse_sockets
from check_pgsock.sockets.unix_sockets import UnixListener, UnixSocket
from tests.details import DETAILS, UNIX_LISTENERS, UNIX_SOCKETS, WAITING

TEXT = (DETAILS / "net" / "unix").read_bytes()
HEADER = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
LINE = b"000000008990c757: 00000003 00000000 00000000 0001 03 12345 /run/s\n"
NAME = "proc/net/unix"


def parsed(text: bytes) -> list[UnixListener | UnixSocket]:
    """The sockets of a file."""
    return list(parse_sockets(NAME, text.splitlines(keepends=True)))


def as_procfs(one: UnixListener | UnixSocket) -> UnixListener | UnixSocket:
    """What procfs says of a socket of the recorded netlink dump."""
    if isinstance(one, UnixListener):
        return UnixListener(one.path, None, one.type, one.inode, *[None] * 4)
    return UnixSocket(one.state, one.path, None, one.type, one.inode, *[None] * 6)


def test_every_field_of_every_socket() -> None:
    expected = [*map(as_procfs, UNIX_LISTENERS), *map(as_procfs, UNIX_SOCKETS), WAITING]
    assert Counter(parsed(TEXT)) == Counter(expected)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", None),
        (b" ", b""),
        (b" /run/s", b"/run/s"),
        (b" /run/a b ", b"/run/a b "),
        (b" /run/a\nb", b"/run/a\nb"),
        (b" \n/run\n\n", b"\n/run\n\n"),
        (b" @", b"\0"),
        (b" @a@", b"\0a@"),
        (b" /" + b"x" * 107, b"/" + b"x" * 107),
        (b" /" + b"\n" * 107, b"/" + b"\n" * 107),
        (b" /\xff\xfe", b"/\xff\xfe"),
    ],
)
def test_names(path: bytes, expected: bytes | None) -> None:
    line = LINE.replace(b" /run/s", path)
    for text in (HEADER + line, HEADER + line + LINE.replace(b"12345", b"9"), HEADER + line * 2):
        assert parsed(text)[0].path == expected


@pytest.mark.parametrize("column", [b"01", b"04"])
def test_sockets_without_a_peer(column: bytes) -> None:
    (one,) = parsed(HEADER + LINE.replace(b" 03 ", b" %b " % column))
    assert isinstance(one, UnixSocket)
    assert one.state == CLOSE


def test_a_socket_listed_again_is_one() -> None:
    waiting = LINE.replace(b"12345", b"    0")
    again = LINE.replace(b"8990c757", b"8990c758")
    assert len(parsed(HEADER + LINE + waiting + LINE + again + waiting)) == 2
    # kernel.kptr_restrict: those that wait cannot be told apart.
    hidden = waiting.replace(b"8990c757", b"00000000")
    assert len(parsed(HEADER + hidden + hidden)) == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "proc/net/unix is empty, not even a header line"),
        (b"nonsense\n", "proc/net/unix line 1: no header, but 'nonsense'"),
        (LINE, "proc/net/unix line 1: no header, but '000000008990c757: 00000003 00000000 0"),
        (HEADER + b"nonsense\n", "proc/net/unix line 2: bad Num 'nonsense'"),
        (HEADER + b"\n", "proc/net/unix line 2: 0 fields, 7 are needed, ''"),
        (HEADER + LINE.replace(b" 03 ", b" ZZ "), "proc/net/unix line 2: bad St 'ZZ'"),
        (HEADER + LINE.replace(b" 03 ", b" 05 "), "proc/net/unix line 2: bad St '05'"),
        (HEADER + LINE.replace(b"12345", b"1234x"), "proc/net/unix line 2: bad Inode '1234x'"),
        (HEADER + LINE.replace(b" 0001 ", b" 1 "), "proc/net/unix line 2: bad Type '1'"),
        (HEADER + LINE[:-1], "proc/net/unix line 2: the file ends within a line, '000000008990c"),
        (HEADER + LINE + LINE[:40], "proc/net/unix line 3: the file ends within a line, '0000"),
        # A line that cannot continue the name of the one before: that has none, or is too long.
        (HEADER + LINE.replace(b" /run/s", b"") + b"b\n", "proc/net/unix line 3: bad Num 'b'"),
        (HEADER + LINE + b"x" * 102 + b"\n", "proc/net/unix line 3: bad Num 'xxxxxxxxxxxxxxxxx"),
    ],
)
def test_malformed_lines_are_named_by_file_line_and_text(text: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parsed(text)
    assert str(caught.value).startswith(sentence)


def test_the_names_of_two_lines_may_be_as_long_as_one() -> None:
    (one,) = parsed(HEADER + LINE + b"x" * 101 + b"\n")
    assert one.path == b"/run/s\n" + b"x" * 101
