"""Checks, and other code, in processes from which something was taken away."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests import support

# A process that may not open netlink sockets: seccomp, as container runtimes use it.
_SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
DENY_NETLINK = """
import ctypes, struct, sys
def op(code, jt, jf, k):
    return struct.pack("=HBBI", code, jt, jf, k)
program = b"".join((
    op(0x20, 0, 0, 0), op(0x15, 0, 3, {call}),      # the call is socket()
    op(0x20, 0, 0, 16), op(0x15, 0, 1, 16),         # its family is AF_NETLINK
    op(0x06, 0, 0, 0x00050000 | 13),                # EACCES
    op(0x06, 0, 0, 0x7FFF0000),
))
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(filter), 0, 0) == 0, ctypes.get_errno()
"""
HIDE_PROC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
"""
# A process of nobody in front of a /proc mounted with hidepid: it sees its own processes alone.
HIDE_OTHERS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
assert libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2") == 0, ctypes.get_errno()
os.setgroups([]); os.setresgid(65533, 65533, 65533); os.setresuid(65533, 65533, 65533)
"""


def run(preparation: str, check: str, *arguments: str) -> tuple[int, str, str]:
    """Run a check in a process that first takes something away from itself."""
    return run_code(preparation + support.command(check)[2], *arguments)


def run_code(code: str, *arguments: str, gives_up_root: bool = False) -> tuple[int, str, str]:
    """Run `code` in a process of its own: exit code, standard output, standard error.

    Code that `gives_up_root` can go on to import the package.
    """
    call = _SOCKET_CALL.get(platform.machine())
    if call is None:
        pytest.skip(f"the number of socket(2) on {platform.machine()} is not known here")
    done = subprocess.run(
        [
            support.SYSTEM_PYTHON if gives_up_root else sys.executable,
            "-c",
            code.replace("{call}", str(call)),
            *arguments,
        ],
        env=support.environment(support.readable_tree() if gives_up_root else support.ROOT),
        cwd="/" if gives_up_root else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    return done.returncode, done.stdout, done.stderr
