"""Programs that listen for PostgreSQL clients, told by the name of their process; pure.

The name is task comm, of which the kernel keeps 15 bytes (TASK_COMM_LEN in linux/sched.h). Any
process may choose it: what a name tells counts only for a process that holds, or may hold, the
listener.
"""

from check_pgsock.processes import POSTGRES_COMMANDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

POSTGRESQL = "postgresql"
POOLER = "pooler"
FORWARDER = "forwarder"

# Poolers, and the port that each listens on unless it is told another.
POOLERS = {
    "odyssey": 6432,
    "pg_doorman": 6432,
    "pgagroal": 2345,
    "pgbouncer": 6432,
    "pgcat": 6432,
    "pgdog": 6432,
    "pgpool": 9999,
}
PGBOUNCER = "pgbouncer"
# Forwarders into the network namespace of a container, or into a virtual machine.
CONTAINER_FORWARDERS = frozenset((
    "docker-proxy", "gvproxy", "passt", "passt.avx2", "pasta", "pasta.avx2", "rootlesskit",
    "rootlessport", "rootlessport-ch", "slirp4netns", "vpnkit",
))  # fmt: skip
# Programs that forward, and do nothing else.
PLAIN_FORWARDERS = CONTAINER_FORWARDERS | {
    "cloud-sql-proxy", "cloud_sql_proxy", "envoy", "haproxy", "rinetd", "socat", "stunnel",
    "stunnel4", "systemd-socket-",
}  # fmt: skip
# Programs that forward, too.
_SSH_DAEMONS = frozenset(("sshd", "sshd-session"))
_USERS_FORWARDERS = _SSH_DAEMONS | {"kubectl", "ssh"}
OTHER_FORWARDERS = _USERS_FORWARDERS | {"nginx", "traefik"}

# What clients of PostgreSQL expect: its own port, the next ones of further servers, the poolers'.
WELL_KNOWN_PORTS = frozenset((*range(5432, 5440), *POOLERS.values()))


def kind_of(command: str) -> "Optional[str]":
    """POSTGRESQL, POOLER or FORWARDER; None for any other program."""
    if command in POSTGRES_COMMANDS:
        return POSTGRESQL
    if pooler_of(command) in POOLERS:
        return POOLER
    if command in PLAIN_FORWARDERS or command in OTHER_FORWARDERS:
        return FORWARDER
    return None


def pooler_of(command: str) -> str:
    """The name of a pooler whose program is called by its version as well, as one is that was
    installed beside another (pgbouncer-1.25, pgbouncer_1_25_2); else the name as it is.
    """
    name = command.rstrip("-_.0123456789")
    version = command[len(name) :].strip("-_.")
    return name if version and name in POOLERS else command


def only_forwards(command: str) -> bool:
    """Whether all that the program listens for is to be forwarded."""
    return command in PLAIN_FORWARDERS


def may_forward(command: str, title: str) -> bool:
    """Whether a process of a program may listen to forward, by its title: of OpenSSH's server the
    process of a logged-in user alone (`sshd: app@notty`), not the daemon, which every host has, nor
    the parts that a title has in brackets (`sshd: app [priv]`).
    """
    if command not in _SSH_DAEMONS:
        return True
    name, _, user = title.partition(": ")
    return name in _SSH_DAEMONS and user != "" and not any(one in user for one in " []")


def may_hold(command: str, uid: int, port: int, listener_uid: int) -> bool:
    """Whether a process, of a program of known kind and a user, may hold a user's listener.

    Some programs open it as root and go over to another user then. PostgreSQL refuses to run as
    root, and OpenSSH and kubectl listen as the user for whom they forward. Poolers have a listener
    of root only where systemd opened it for them, which counts on their usual port alone: a
    forwarder's listener is often root's.
    """
    if listener_uid == uid:
        return True
    if listener_uid != 0 or command in POSTGRES_COMMANDS or command in _USERS_FORWARDERS:
        return False
    return POOLERS.get(pooler_of(command), port) == port
