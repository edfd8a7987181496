"""Private monitoring daemons on loopback, as their own user: Icinga 2 and NRPE, gone afterwards.

Nothing of the machine's own configuration is read, and only processes started here are ended.
"""

from __future__ import annotations

import base64
import contextlib
import grp
import http.client
import json
import os
import pwd
import ssl
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from types import TracebackType
from typing import Any
from urllib.parse import quote

from check_pgsock.pgsock.lab import accounts, processes
from check_pgsock.pgsock.lab.directories import fresh_directory
from tests import support

USER = "nagios"  # Debian's user of both daemons
ICINGA = "/usr/sbin/icinga2"
NRPE = "/usr/sbin/nrpe"
CHECK_NRPE = "/usr/lib/nagios/plugins/check_nrpe"

_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}


def user_and_group() -> tuple[str, str]:
    """The names that the daemons run as: their own user where we are root, else ours."""
    account = accounts.account_of(USER) or accounts.Account(os.geteuid(), os.getegid())
    return pwd.getpwuid(account.uid).pw_name, grp.getgrgid(account.gid).gr_name


def run(argv: Sequence[str], seconds: float = 30) -> support.Completed:
    """Run a command to its end as the daemons' user, where we are root."""
    account = accounts.account_of(USER)
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=_ENVIRONMENT,
        cwd="/",
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        check=False,
    )
    return support.Completed(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def plugin_directory(executables: Iterable[str]) -> Iterator[Path]:
    """A directory with these executables, as pip makes them, for the distribution's Python."""
    tree = support.readable_tree()
    with fresh_directory("pgsock-plugins-", executable=True) as path:
        for name in executables:
            module = f"check_pgsock.checks.{name.removeprefix('check_pgsock_')}"
            script = path / name
            script.write_text(
                f"#!{support.SYSTEM_PYTHON}\n"
                "import sys\n"
                f"sys.path.insert(0, {str(tree)!r})\n"
                f"from {module} import main\n"
                "sys.exit(main())\n",
                encoding="utf-8",
            )
            script.chmod(0o755)
        yield path


class Icinga:
    """A context manager: an Icinga 2 with directories of its own and these configuration files.

    They are included in their order, after `include <itl>` and `include <plugins>`; those named
    `zones.d/<zone>/...` are the daemon's to find. Nothing is checked but on demand.
    """

    node = "monitoring.test"

    _BASE = """
const NodeName = "{node}"
const ZoneName = NodeName
const PluginDir = "/usr/lib/nagios/plugins"
const PluginContribDir = "{plugins}"
include <itl>
include <plugins>
{includes}
"""
    _DAEMON = """
object Endpoint NodeName { }
object Zone ZoneName { endpoints = [ NodeName ] }
object IcingaApplication "app" {
  enable_host_checks = false
  enable_service_checks = false
}
object CheckerComponent "checker" { }
object ApiListener "api" {
  bind_host = "127.0.0.1"
  bind_port = %d
}
object ApiUser "test" {
  password = "test"
  permissions = [ "*" ]
}
"""

    def __init__(self, files: Mapping[str, str], plugins: Path | None = None) -> None:
        self._files = files
        self._plugins = plugins or Path("/usr/lib/nagios/plugins")
        self._port = 0
        self._path = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Icinga:
        with contextlib.ExitStack() as stack:
            self._path = stack.enter_context(fresh_directory("pgsock-icinga-"))
            account = accounts.account_of(USER)
            for name in ("etc", "data", "data/certs", "log", "cache", "spool", "run"):
                (self._path / name).mkdir()
                accounts.own(self._path / name, account)
            for name, text in self._files.items():
                path = self._path / "etc" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            self._configure("")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            # Its main process ends its worker, unless it had to be killed.
            if self._process is not None and not processes.end(self._process, SIGTERM, 10):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, SIGKILL)

    def validate(self) -> support.Completed:
        """Let the real `icinga2 daemon -C` judge the configuration."""
        return run(self._command("daemon", "-C", "-c", self._main))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of Icinga's language, from `icinga2 console`."""
        done = run(self._command("console", "--eval", expression))
        assert done.code == 0, done
        return json.loads(done.out)

    def start(self) -> None:
        """Start the daemon and wait until its API answers."""
        certificates = self._path / "data" / "certs"
        key, certificate = (certificates / f"{self.node}.{end}" for end in ("key", "crt"))
        made = run(
            self._command(
                "pki", "new-cert", "--cn", self.node, "--key", str(key), "--cert", str(certificate)
            )
        )
        assert made.code == 0, made
        (certificates / "ca.crt").write_bytes(certificate.read_bytes())
        self._port = processes.free_port()
        self._configure(self._DAEMON % self._port)
        log = self._path / "daemon.log"
        command = self._command("daemon", "-c", self._main)
        self._process = processes.spawn(command, accounts.account_of(USER), log)
        support.wait_until(self._answers, "Icinga's API answers", 20)

    def objects(self, kind: str, condition: str = "true") -> list[dict[str, Any]]:
        """The attributes of the daemon's objects of a kind (`services`) that `condition` keeps."""
        answer = self._request("GET", f"objects/{kind}?filter={quote(condition)}")
        found = [one["attrs"] for one in answer["results"]]
        return sorted(found, key=lambda one: str(one["__name"]))

    def check(self, service: str) -> dict[str, Any]:
        """Force a check of this service now and return the daemon's result of it."""
        condition = f'service.name=="{service}"'
        before = self._last_execution(condition)
        order = {"type": "Service", "filter": condition, "force": True}
        self._request("POST", "actions/reschedule-check", order)
        support.wait_until(
            lambda: self._last_execution(condition) > before, f"a check of {service}", 20
        )
        result: dict[str, Any] = self.objects("services", condition)[0]["last_check_result"]
        return result

    @property
    def _main(self) -> str:
        return str(self._path / "etc" / "icinga2.conf")

    def _configure(self, more: str) -> None:
        base = self._BASE.format(
            node=self.node,
            plugins=self._plugins,
            includes="\n".join(f'include "{name}"' for name in self._files if "/" not in name),
        )
        Path(self._main).write_text(base + more, encoding="utf-8")

    def _command(self, *arguments: str) -> list[str]:
        user, group = user_and_group()
        settings = {
            "ConfigDir": self._path / "etc",
            "ZonesDir": self._path / "etc/zones.d",
            "DataDir": self._path / "data",
            "LogDir": self._path / "log",
            "CacheDir": self._path / "cache",
            "SpoolDir": self._path / "spool",
            "InitRunDir": self._path / "run",
            "PidPath": self._path / "run" / "icinga2.pid",
            "RunAsUser": user,
            "RunAsGroup": group,
        }
        defines = [part for name, value in settings.items() for part in ("-D", f"{name}={value}")]
        return [ICINGA, *arguments, *defines]

    def _last_execution(self, condition: str) -> float:
        found = self.objects("services", condition)
        assert len(found) == 1, condition
        result = found[0]["last_check_result"]
        return 0.0 if result is None else float(result["execution_end"])

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, processes.tail(self._path / "daemon.log", 20)
        try:
            self._request("GET", "status")
        except OSError:
            return False
        return True

    def _request(self, method: str, path: str, body: object = None) -> Any:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # our own daemon's own certificate, on loopback
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=10, context=context
        )
        with contextlib.closing(connection):
            connection.request(
                method,
                f"/v1/{path}",
                None if body is None else json.dumps(body),
                {
                    "Accept": "application/json",
                    "Authorization": "Basic " + base64.b64encode(b"test:test").decode(),
                },
            )
            with connection.getresponse() as response:
                text = response.read().decode()
                assert response.status == 200, text
                return json.loads(text)


class Nrpe:
    """A context manager: an NRPE daemon with this configuration of commands beside its own."""

    _BASE = """
log_file={path}/nrpe.log
pid_file={path}/nrpe.pid
server_address=127.0.0.1
server_port={port}
nrpe_user={user}
nrpe_group={group}
allowed_hosts=127.0.0.1
dont_blame_nrpe=0
allow_bash_command_substitution=0
command_timeout=20
connection_timeout=30
include={path}/commands.cfg
"""

    def __init__(self, commands: str) -> None:
        self._commands = commands
        self._port = 0
        self._path = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Nrpe:
        with contextlib.ExitStack() as stack:
            self._path = stack.enter_context(fresh_directory("pgsock-nrpe-"))
            account = accounts.account_of(USER)
            user, group = user_and_group()
            self._port = processes.free_port()
            (self._path / "commands.cfg").write_text(self._commands, encoding="utf-8")
            (self._path / "nrpe.cfg").write_text(
                self._BASE.format(
                    path=self._path,
                    port=self._port,
                    user=user,
                    group=group,
                ),
                encoding="utf-8",
            )
            for name in (".", "nrpe.cfg", "commands.cfg"):
                accounts.own(self._path / name, account)
            command = [NRPE, "-c", str(self._path / "nrpe.cfg"), "-f"]
            self._process = processes.spawn(command, account, self._path / "output.log")
            stack.callback(processes.end, self._process, SIGTERM, 5)
            support.wait_until(self._listens, "NRPE listens", 10)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, processes.tail(self._path / "output.log")
        return "LISTEN" in support.tcp_states(self._port)

    def call(self, command: str) -> support.Completed:
        """Call a command of the daemon as the monitoring server does."""
        return run(
            [CHECK_NRPE, "-H", "127.0.0.1", "-p", str(self._port), "-t", "25", "-c", command]
        )
