"""Two hosts on this machine: network namespaces joined by a veth pair."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from check_pgsock.pgsock.lab import processes
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.hosts import LINK, NamespaceHost


@contextlib.contextmanager
def two_hosts(directory: Path) -> Iterator[tuple[NamespaceHost, NamespaceHost]]:
    """Two hosts that reach each other, until the end; their processes work in `directory`.

    Raises LabError where this user may not make network namespaces.
    """
    if os.geteuid() != 0:
        raise LabError("network namespaces are needed for two hosts, and root to make them")
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in (1, 2):
            command = ["unshare", "--net", "--", "sleep", "infinity"]
            process = processes.spawn(command, None, directory / "hosts.log")
            stack.callback(processes.end, process, signal.SIGKILL, 5)
            host = NamespaceHost(process, f"192.0.2.{number}")
            _wait_for_namespace(host, directory / "hosts.log")
            host.ip("link", "set", "lo", "up")
            hosts.append(host)
        peer = ("peer", "name", LINK, "netns", str(hosts[1].process.pid))
        hosts[0].ip("link", "add", LINK, "type", "veth", *peer)
        for host in hosts:
            host.ip("address", "add", f"{host.address}/24", "dev", LINK)
            host.ip("link", "set", LINK, "up")
        yield hosts[0], hosts[1]


def _wait_for_namespace(host: NamespaceHost, log: Path, seconds: float = 5.0) -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    give_up = time.monotonic() + seconds
    while host.process.poll() is None:
        with contextlib.suppress(OSError):
            if os.stat(host.namespace).st_ino != own:
                return
        if time.monotonic() > give_up:
            break
        time.sleep(0.005)
    raise LabError(f"no network namespace can be made; {processes.tail(log)}")
