"""A lab: a throw-away PostgreSQL, a PgBouncer in front of it, and hosts to reach them from."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import threading
from pathlib import Path

from check_pgsock.pgsock.lab import accounts, binaries, pgbouncer
from check_pgsock.pgsock.lab.binaries import Binaries
from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.home import Home
from check_pgsock.pgsock.lab.hosts import LOCAL, Host
from check_pgsock.pgsock.lab.namespaces import two_hosts
from check_pgsock.pgsock.lab.pgbouncer import PgBouncerServer
from check_pgsock.pgsock.lab.postgres import PostgresServer, Setting
from check_pgsock.pgsock.lab.wire import Session
from check_pgsock.text import clean

PREFIX = "pgsock-lab-"
DATABASE = "app"
# The role of applications, and that of monitoring (pg_read_all_stats; of PgBouncer's stats_users);
# neither is a superuser.
APPLICATION = "app"
MONITOR = "monitor"
# PostgreSQL's default, stated so that it is the same on every version.
RESERVED = 3
MAX_CLIENT_CONN = 100
# Bytes: the path of a Unix socket takes at most 107 (unix(7)), of which a lab adds 68.
_LONGEST_BASE = 39
POOL_SIZE = 4


class Lab:
    """A context manager: the servers run from enter to exit, or until this process is killed.

    The binaries are those of `pg_bin`, or the embedded ones; of `max_connections` three are
    reserved. PgBouncer is there where it is installed (`pooled`). With `two_hosts` (root) the
    servers run in one network namespace, `server_host`, and clients in another, `client_host`;
    else both are this machine on loopback. Raises LabError where something cannot be had.
    """

    def __init__(
        self,
        *,
        pg_bin: str | Path | None = None,
        max_connections: int = 50,
        with_pgbouncer: bool | None = None,
        on_two_hosts: bool = False,
    ) -> None:
        if max_connections <= RESERVED:
            raise LabError(f"a lab needs more than {RESERVED} connections: {RESERVED} are reserved")
        if with_pgbouncer is None:
            with_pgbouncer = os.access(pgbouncer.EXECUTABLE, os.X_OK)
        self.pooled = with_pgbouncer
        self.max_connections = max_connections
        self.slots = max_connections - RESERVED
        self.home = Home(PREFIX, longest=_LONGEST_BASE)
        # Set when all is about to end: then nobody takes time to leave.
        self.ending = threading.Event()
        self.client_host: Host = LOCAL
        self.server_host: Host = LOCAL
        self.postgres: PostgresServer
        self._pgbouncer: PgBouncerServer | None = None
        self._pg_bin = pg_bin
        self._on_two_hosts = on_two_hosts
        self._stack = contextlib.ExitStack()

    @property
    def name(self) -> str:
        """What tells it from other labs."""
        return self.home.name

    @property
    def pgbouncer(self) -> PgBouncerServer:
        """The pooler; raises LabError where there is none."""
        if self._pgbouncer is None:
            raise LabError("this lab has no PgBouncer: install pgbouncer")
        return self._pgbouncer

    def server(self, via: str) -> PostgresServer | PgBouncerServer:
        """The server that `via` ("postgresql" or "pgbouncer") names."""
        return self.pgbouncer if via == "pgbouncer" else self.postgres

    def established(self, via: str = "postgresql") -> int:
        """The sessions that the server has of clients, pooled ones included."""
        if via == "pgbouncer":
            lists = {row["list"]: row["items"] for row in self.pgbouncer.console("SHOW LISTS")}
            return int(lists["used_clients"] or 0) - 1  # the console's own
        ((count,),) = self.postgres.execute(
            "select count(*) - 1 from pg_stat_activity where backend_type = 'client backend'"
        )
        return int(count or 0)

    def connect(self, via: str = "postgresql", *, database: str = DATABASE) -> Session:
        """A new session of the application, from the clients' host; raises as
        Session.connect() does.
        """
        return self.server(via).connect(database, APPLICATION, from_host=self.client_host)

    def new_postgres(self, **settings: Setting) -> PostgresServer:
        """A PostgreSQL (not started yet) set up as the lab's is."""
        client_host, server_host = self.client_host, self.server_host
        arguments = ["-c", f"max_connections={self.max_connections}"]
        return PostgresServer(
            self.binaries,
            settings={"superuser_reserved_connections": RESERVED, **settings},
            arguments=arguments,
            # Everybody on this machine reaches its ports and sockets. As superuser they could run
            # programs as us: only we and the server's own user may be that.
            hba=[
                "local all,replication postgres peer map=lab",
                "host all,replication postgres all reject",
                "host replication all all reject",
                *(f"host all all {h.address}/32 trust" for h in (client_host, server_host)),
            ],
            ident=[
                f"lab {name} postgres" for name in {pwd.getpwuid(os.geteuid()).pw_name, "nobody"}
            ],
            host=self.server_host,
            parent=self.home.path,
        )

    def program(self, name: str) -> str:
        """The path of a client program; raises LabError where there is none."""
        return binaries.find_program(name, self.binaries)

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.home)
            self.binaries = self._find_binaries(stack)
            if self._on_two_hosts:
                hosts = stack.enter_context(two_hosts(self.home.path))
                self.client_host, self.server_host = hosts
            tls = self._make_certificate()
            self.postgres = stack.enter_context(self.new_postgres(**self._postgres_tls(tls)))
            self._create_application()
            if self.pooled:
                self._pgbouncer = stack.enter_context(self._new_pgbouncer(tls))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _find_binaries(self, stack: contextlib.ExitStack) -> Binaries:
        if self._pg_bin is None:
            return stack.enter_context(binaries.embedded(parent=self.home.path))
        return stack.enter_context(binaries.unpacked(self._pg_bin, parent=self.home.path))

    def _create_application(self) -> None:
        self.postgres.execute(f"create role {APPLICATION} login")
        self.postgres.execute(f"create role {MONITOR} login in role pg_read_all_stats")
        self.postgres.execute(f"create database {DATABASE} owner {APPLICATION}")

    def _new_pgbouncer(self, tls: tuple[Path, Path] | None) -> PgBouncerServer:
        # With its defaults it would keep a fault's connections for 10 min, and after one failed
        # login refuse clients for 15 s: long after the fault has ended.
        settings: dict[str, str | int] = {"server_idle_timeout": 2, "server_login_retry": 1}
        settings["stats_users"] = MONITOR
        if tls is not None:
            settings["client_tls_sslmode"] = "allow"
            settings["client_tls_key_file"], settings["client_tls_cert_file"] = map(str, tls)
        return PgBouncerServer(
            self.postgres,
            pool_mode="transaction",
            max_client_conn=MAX_CLIENT_CONN,
            default_pool_size=POOL_SIZE,
            settings=settings,
            users=(APPLICATION, MONITOR),
            parent=self.home.path,
        )

    def _postgres_tls(self, tls: tuple[Path, Path] | None) -> dict[str, Setting]:
        if tls is None or not self.binaries.has_tls():
            return {}
        key, certificate = map(str, tls)
        return {"ssl": True, "ssl_key_file": key, "ssl_cert_file": certificate}

    def _make_certificate(self) -> tuple[Path, Path] | None:
        """A key that the servers' user can read, and its certificate; None without openssl."""
        if shutil.which("openssl") is None:
            return None
        key, certificate = self.home.path / "server.key", self.home.path / "server.crt"
        command = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=lab",
                   "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                   "-keyout", str(key), "-out", str(certificate)]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            said = clean(error.stderr.strip(), 300)
            raise LabError(f"openssl makes no certificate: {said}") from None
        key.chmod(0o600)
        certificate.chmod(0o644)
        accounts.own(key, accounts.account_of("nobody"))
        return key, certificate
