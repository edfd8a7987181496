"""Hosts that servers and clients run on: this one, or a network namespace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator

from check_pgsock.pgsock.lab.accounts import Account
from check_pgsock.pgsock.lab.errors import LabError

_CLONE_NEWNET = 0x40000000  # linux/sched.h
LINK = "eth0"


class Host:
    """This machine's own network namespace, on loopback; `address` is where a server listens."""

    address = "127.0.0.1"

    def command(self, command: list[str], account: Account | None = None) -> list[str]:
        """The command line that runs `command` on this host.

        What it runs as is the caller's to set, but where `switches_user` holds: then it is
        `account`.
        """
        return command

    switches_user = False

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within it, sockets that this thread makes belong to this host."""
        yield


LOCAL = Host()


class NamespaceHost(Host):
    """A network namespace that `process` holds."""

    switches_user = True

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self.process = process

    @property
    def namespace(self) -> str:
        """The path of the namespace, for nsenter and setns."""
        return f"/proc/{self.process.pid}/ns/net"

    def command(self, command: list[str], account: Account | None = None) -> list[str]:
        """The command line that runs `command` on this host as `account`."""
        enter = ["nsenter", f"--net={self.namespace}"]
        if account is not None:
            enter += [f"--setuid={account.uid}", f"--setgid={account.gid}"]
        return [*enter, "--", *command]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within it, sockets that this thread makes belong to this host."""
        own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        try:
            other = os.open(self.namespace, os.O_RDONLY)
            try:
                _setns(other)
            finally:
                os.close(other)
            try:
                yield
            finally:
                _setns(own)
        finally:
            os.close(own)

    def ip(self, *arguments: str) -> str:
        """What `ip` with these arguments prints on this host; raises LabError when it fails."""
        return _run(self.command(["ip", *arguments]))

    def disappear(self, other: NamespaceHost) -> None:
        """Drop off the network without a word: `other` still sends, and nobody answers."""
        # Not from /sys: that is still the view of the namespace that it was mounted in.
        mac = self.ip("-o", "link", "show", "dev", LINK).partition("link/ether ")[2].split()[0]
        # A neighbour that does not resolve would be an error to the sender: it is to hear nothing.
        other.ip("neighbour", "replace", self.address, "lladdr", mac, "nud", "permanent",
                 "dev", LINK)  # fmt: skip
        self.ip("address", "delete", f"{self.address}/24", "dev", LINK)

    def reappear(self, other: NamespaceHost) -> None:
        """Be on the network again."""
        self.ip("address", "replace", f"{self.address}/24", "dev", LINK)
        other.ip("neighbour", "delete", self.address, "dev", LINK)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        ).stdout
    except OSError as error:
        raise LabError(f"{command[0]} cannot be run: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"'{' '.join(command)}' failed: {error.stderr.strip()}") from None


def _setns(descriptor: int) -> None:
    # os.setns exists since Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LabError(f"the network namespace cannot be entered: {os.strerror(number)}")
