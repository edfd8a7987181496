"""What made-up processes tell of PostgreSQL servers: clients by titles, and what else runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from check_pgsock.servers.clusters import Census, Cluster
from check_pgsock.view import View
from tests.made_up_proc import FIRST_PID, Fake, make_kthreadd, make_proc, set_age

UID = 26
POSTMASTER, BACKEND, OTHER = range(FIRST_PID, FIRST_PID + 3)
TITLE = "postgres: app shop 192.0.2.7(4001) idle"
PEER = (bytes((192, 0, 2, 7)), 4001)
FAKES: list[Fake] = [("postgres", UID, ["-D", "/data"]), ("postgres", UID, [TITLE])]


def find_cluster(view: View) -> Cluster:
    (one,) = Census(view.processes(), {UID}).clusters
    return one


def test_a_title_that_stays_the_same(tmp_path: Path) -> None:
    cluster = find_cluster(make_proc(tmp_path, UID, FAKES))
    assert cluster.peers == {PEER: BACKEND}
    assert cluster.still_names(PEER)
    title = tmp_path / str(BACKEND) / "cmdline"
    title.write_text(TITLE.replace("idle", "SELECT") + "\0", encoding="ascii")
    assert cluster.still_names(PEER)


def test_a_backend_that_ended_or_another_process_with_its_id(tmp_path: Path) -> None:
    cluster = find_cluster(make_proc(tmp_path, UID, FAKES))
    assert cluster.peers == {PEER: BACKEND}
    backend = tmp_path / str(BACKEND)
    for name, text in (
        ("cmdline", "postgres: app shop 192.0.2.7(4002) idle\0"),
        ("cmdline", ""),  # a zombie
        ("stat", f"{BACKEND} (postgres) S 1 {'0 ' * 48}\n"),  # a child of another
    ):
        before = (backend / name).read_text(encoding="ascii")
        (backend / name).write_text(text, encoding="ascii")
        assert not cluster.still_names(PEER)
        (backend / name).write_text(before, encoding="ascii")
    assert cluster.still_names(PEER)
    shutil.rmtree(backend)
    assert not cluster.still_names(PEER)


def test_a_child_of_another_user_names_no_client(tmp_path: Path) -> None:
    fakes: list[Fake] = [FAKES[0], ("postgres", UID + 1, [TITLE])]
    assert find_cluster(make_proc(tmp_path, UID, fakes)).peers == {}


@pytest.mark.parametrize(
    ("uid", "seconds", "complete"),
    [
        (UID, 3600.0, False),
        (UID, 0.0, None),  # an archive_command, it may be
        (UID + 1, 3600.0, True),
    ],
)
def test_what_else_its_user_runs(
    tmp_path: Path, uid: int, seconds: float, complete: bool | None
) -> None:
    view = make_proc(tmp_path, UID, [*FAKES, ("sh", uid, ["-c", "cp"])])
    set_age(tmp_path, OTHER, seconds)
    assert Census(view.processes(), {UID}).is_complete() is False  # not all may be seen
    make_kthreadd(tmp_path)
    assert Census(view.processes(), {UID}).is_complete() is complete
