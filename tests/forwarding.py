"""Forwarders of the tests: real processes that call themselves what they are told and forward."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from check_pgsock.pgsock.lab import accounts
from check_pgsock.pgsock.lab.directories import fresh_directory
from check_pgsock.pgsock.lab.hosts import LOCAL, Host
from tests import support

_CODE = """
import ctypes, os, socket, threading

def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)

ctypes.CDLL(None).prctl(15, os.environ["NAME"].encode(), 0, 0, 0)  # PR_SET_NAME
listen, target = (os.environ[key].rsplit(":", 1) for key in ("LISTEN", "TARGET"))
family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
listener = socket.create_server((listen[0], int(listen[1])), family=family)
user = int(os.environ["BECOME"])
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    server = socket.create_connection((target[0], int(target[1])))
    for ends in ((client, server), (server, client)):
        threading.Thread(target=pump, args=ends, daemon=True).start()
"""


@contextlib.contextmanager
def forwarder(
    name: str,
    arguments: list[str],
    listen: tuple[str, int],
    target: tuple[str, int] = ("127.0.0.1", 9),
    *,
    host: Host = LOCAL,
    user: str | None = None,
    become: str | None = None,
) -> Iterator[int]:
    """A process called `name`, with these arguments, that forwards from `listen` to `target` on
    `host`, until the end; its process id.

    Where we are root it runs as `user`, or opens its listener as root and goes over to the user
    `become` then.
    """
    account = None if user is None else accounts.account_of(user)
    later = None if become is None else accounts.account_of(become)
    with fresh_directory("pgsock-forwarder-", executable=True) as directory:
        directory.chmod(0o755)
        script = directory / "forward"
        script.write_text(_CODE, encoding="utf-8")
        script.chmod(0o644)
        process = subprocess.Popen(
            host.command([support.SYSTEM_PYTHON, str(script), *arguments]),
            stdout=subprocess.PIPE,
            env={
                "NAME": name,
                "LISTEN": f"{listen[0]}:{listen[1]}",
                "TARGET": f"{target[0]}:{target[1]}",
                "BECOME": str(0 if later is None else later.uid),
            },
            cwd=directory,
            start_new_session=True,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()
            process.communicate()


def docker_proxy(address: str, port: int, container: str = "172.17.0.2") -> list[str]:
    """The arguments of the docker-proxy of a published port."""
    return [
        "-proto", "tcp", "-host-ip", address, "-host-port", str(port),
        "-container-ip", container, "-container-port", "5432",
    ]  # fmt: skip
