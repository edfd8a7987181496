"""What command lines of forwarders say: pure."""

from __future__ import annotations

import pytest

from check_pgsock.servers.forwards import Forward, find_forward, parse_forwards
from tests.forwarding import docker_proxy
from tests.moment import LOCAL4, LOCAL6

ANY4 = bytes(4)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 5432 -container-ip 172.17.0.2 "
            "-container-port 5433",
            [Forward(ANY4, 5432, "172.17.0.2:5433")],
        ),
        (
            "docker-proxy --host-port=5432 --host-ip=:: --container-ip=fd00::2 "
            "--container-port=1 -use-listen-fd",
            [Forward(bytes(16), 5432, "[fd00::2]:1")],
        ),
        ("docker-proxy -proto udp -host-ip 0.0.0.0 -host-port 5432", []),
        ("docker-proxy", None),
        ("ssh -L 5432:db:5433 gate", [Forward(None, 5432, "db:5433")]),
        ("ssh -fNL5432:db:5433 gate", [Forward(None, 5432, "db:5433")]),
        ("ssh gate -N -L 127.0.0.1:5432:[fd00::2]:5433", [Forward(LOCAL4, 5432, "[fd00::2]:5433")]),
        ("ssh -L [::1]:5432:/run/.s.PGSQL.1 x", [Forward(LOCAL6, 5432, "/run/.s.PGSQL.1")]),
        ("ssh -L *:5432:db:5433 gate", [Forward(None, 5432, "db:5433")]),
        ("ssh -L :5432:db:5433 gate", [Forward(None, 5432, "db:5433")]),
        ("ssh -D 1080 -L 1:a:2 gate", [Forward(None, 1080, None), Forward(None, 1, "a:2")]),
        ("ssh -D 127.0.0.1:1080 gate", [Forward(LOCAL4, 1080, None)]),
        ("ssh -oLocalForward=5432_db:5433 gate", [Forward(None, 5432, "db:5433")]),
        ("ssh -o localforward_127.0.0.1:5432_db:5433 x", [Forward(LOCAL4, 5432, "db:5433")]),
        ("ssh -oClearAllForwardings=yes -L 5432:db:5433 gate", []),
        ("ssh -L /tmp/socket:db:5433 gate", None),
        ("ssh -R 5432:db:5433 gate", None),
        ("ssh -L 5432 gate", None),
        ("ssh -p 5432 gate", None),
        ("ssh -Z 5432:db:5433 gate", None),
        ("socat TCP-LISTEN:5432,fork,reuseaddr TCP:db:5433", [Forward(None, 5432, "db:5433")]),
        (
            "socat -d -d tcp4-l:5432,bind=127.0.0.1,fork UNIX-CONNECT:/run/.s.PGSQL.5432",
            [Forward(LOCAL4, 5432, "/run/.s.PGSQL.5432")],
        ),
        ("socat TCP6-LISTEN:5432,bind=[::1] EXEC:cat,pty", [Forward(LOCAL6, 5432, None)]),
        ("socat UNIX-LISTEN:/tmp/x TCP:db:5432", None),
        ("kubectl port-forward svc/db 5432", [Forward(None, 5432, "port 5432 of a pod")]),
        (
            "kubectl -n x port-forward --address 0.0.0.0 pod/db 15432:5432 8080:80",
            [Forward(None, 15432, "port 5432 of a pod"), Forward(None, 8080, "port 80 of a pod")],
        ),
        ("kubectl port-forward svc/db :5432", None),
        ("kubectl get pods", []),
        ("pasta -t 5432 -- sleep 1", [Forward(None, 5432, None)]),
        ("pasta.avx2 --tcp-ports=127.0.0.1/5432-5433:1", [
            Forward(LOCAL4, 5432, None), Forward(LOCAL4, 5433, None),
        ]),
        ("passt -t auto", None),
        ("pasta -T 5432", None),
        ("haproxy -f /etc/haproxy/haproxy.cfg", None),
    ],
)  # fmt: skip
def test_command_lines(line: str, expected: list[Forward] | None) -> None:
    arguments = [one.replace("_", " ") for one in line.split()]
    assert parse_forwards(arguments[0], arguments) == expected


def test_a_listener_is_named_by_port_and_address() -> None:
    arguments = ["docker-proxy", *docker_proxy("127.0.0.1", 5432)]
    assert find_forward("docker-proxy", arguments, LOCAL4, 5432) == (True, "172.17.0.2:5432")
    assert find_forward("docker-proxy", arguments, ANY4, 5432) == (False, None)
    assert find_forward("docker-proxy", arguments, LOCAL4, 5433) == (False, None)
    assert find_forward("haproxy", arguments, LOCAL4, 5432) == (None, None)
    anywhere = ["ssh", "-L", "5432:db:5433", "gate"]
    assert find_forward("ssh", anywhere, LOCAL6, 5432) == (True, "db:5433")
