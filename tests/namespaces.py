"""Two hosts on this machine: network namespaces joined by a veth pair, made and removed here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests import support
from tests.support import Completed


class Host(NamedTuple):
    """A namespace and its address."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, check: str, *arguments: str) -> Completed:
        """Run a check on this host."""
        done = subprocess.run(
            self.command(*support.command(check, *arguments)),
            env=support.environment(support.ROOT),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def python(self, code: str) -> Iterator[None]:
        """Run Python code on this host that prints a line when it is ready, until the end."""
        process = subprocess.Popen(self.command(sys.executable, "-c", code), stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other."""
    support.require("root")
    support.require("iproute2")
    hosts = [Host(f"pgsock-{os.getpid()}-{number}", f"192.0.2.{number}") for number in (1, 2)]
    links = [f"pgs{os.getpid() % 100000}{side}" for side in "ab"]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
        _ip("link", "add", links[0], "netns", hosts[0].name, "type", "veth", "peer", "name",
            links[1], "netns", hosts[1].name)  # fmt: skip
        for host, link in zip(hosts, links):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", link)
            _ip("-n", host.name, "link", "set", link, "up")
        yield hosts[0], hosts[1]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdout=subprocess.DEVNULL)
