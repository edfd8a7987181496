"""Which processes are looked at: not the backends and kernel threads that most are."""

from __future__ import annotations

from pathlib import Path

from check_pgsock.proc_files import LiveProc
from check_pgsock.servers.candidates import list_programs
from check_pgsock.view import View
from tests.made_up_proc import KTHREADD, Fake, make_children, make_kthreadd, make_proc


class NotingProc(LiveProc):
    """One that notes what is read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.noted: list[tuple[str, ...]] = []

    def read(self, *parts: str) -> bytes:
        """The content of a file."""
        self.noted.append(parts)
        return super().read(*parts)


def test_backends_are_left_out_unread(tmp_path: Path) -> None:
    fakes: list[Fake] = [
        ("postgres", 26, []),  # 100, a backend of 101: process ids have wrapped around
        ("postgres", 26, []),
        ("pgbouncer", 26, []),  # 102
        ("bash", 26, []),
        ("postgres", 26, []),  # 104, a backend
    ]
    view = make_proc(tmp_path, 26, fakes)
    make_children(tmp_path, 101, 100, 104, 999)
    assert list_programs(view) == {101: "postgres", 102: "pgbouncer"}
    files = NotingProc(str(tmp_path))
    list_programs(View(view.reader, files, view.deadline))
    assert [parts[0] for parts in files.noted if parts[1] == "comm"] == ["100", "101", "102", "103"]


def test_children_of_process_2_are_left_out_where_it_is_the_kernels(tmp_path: Path) -> None:
    view = make_proc(tmp_path, 26, [("pgbouncer", 26, [])])
    make_children(tmp_path, 2, 100)
    make_kthreadd(tmp_path)
    assert list_programs(view) == {}
    stat = tmp_path / "2" / "stat"
    stat.write_text(KTHREADD.replace("2129984", "4194560"), encoding="ascii")  # a container's
    assert list_programs(view) == {}  # within a second they are read once
    view.programs = None
    assert list_programs(view) == {100: "pgbouncer"}


def test_where_no_process_can_be_seen(tmp_path: Path) -> None:
    view = make_proc(tmp_path / "none", 26, [])
    assert list_programs(view) == {}
