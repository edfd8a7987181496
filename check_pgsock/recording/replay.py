"""Replaying: from --source FILE to the view that all checks and tools look at."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from check_pgsock.errors import SourceError
from check_pgsock.recording.archive import Archive, cgroups_of, member_of, processes_of
from check_pgsock.recording.findings import Findings
from check_pgsock.recording.manifest import OWN, Header, Moment, Place, parse_cgroups
from check_pgsock.recording.processes import parse_processes
from check_pgsock.recording.recorded_proc import RecordedProc
from check_pgsock.recording.source import RecordedSource
from check_pgsock.sockets.namespaces import Namespace
from check_pgsock.sockets.pooled_reader import join_readers
from check_pgsock.sockets.reader import Reader, SocketReader
from check_pgsock.sockets.sources import TCP6_FILE, TCP_FILE
from check_pgsock.text import clean
from check_pgsock.view import View

if TYPE_CHECKING:
    from check_pgsock.deadline import Deadline
    from check_pgsock.servers.auto_limit import AnyListener
    from check_pgsock.servers.limits import Limit


# Moments of a series begin a little late, one by more than the next.
_PUNCTUAL = 0.99


class RecordedNamespace(Namespace):
    """The name of a network namespace that is not there any more, or elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = None
        self.identity = None
        self.tables = None
        self.refusal = "it is one of a recording"


def open_recording(
    path: str, moment: int | None, namespaces: Iterable[str], deadline: Deadline
) -> View:
    """The view of a moment, counted from 1 (None: the last), in the recorded network namespaces of
    these names. Raises SourceError.
    """
    archive = Archive(path, deadline)
    replay = Replay(archive, archive.choose(moment), tuple(namespaces), deadline)
    return View(replay.reader(), replay.files, deadline, replay)


class Replay:
    """One moment of a recording: what it tells, and more than sockets and processes do."""

    def __init__(
        self, archive: Archive, number: int, namespaces: tuple[str, ...], deadline: Deadline
    ) -> None:
        self._archive = archive
        self._number = number
        self._namespaces = namespaces
        self._deadline = deadline
        self._findings = Findings(self.about.findings)
        self.files = RecordedProc(
            archive.path,
            self.header.ticks_per_second,
            self.about.since_boot,
            self.about.taken,
            partial(archive.parse, processes_of(number), parse_processes),
        )

    @property
    def header(self) -> Header:
        """What holds for all moments of the recording."""
        return self._archive.manifest.header

    @property
    def about(self) -> Moment:
        """What is said of this moment."""
        return self._archive.manifest.moments[self._number - 1]

    def owner(self, endpoint: str, listeners: Iterable[AnyListener]) -> tuple[int, str]:
        """Whose the listeners were (a process id), and the proof of it; raises LimitUnknown."""
        return self._findings.owner(endpoint, listeners)

    def limit(self, endpoint: str, listeners: Iterable[AnyListener]) -> tuple[Limit, str | None]:
        """The limit that they had, and a pending change of it; raises LimitUnknown."""
        return self._findings.limit(endpoint, listeners)

    def version(self, endpoint: str, listeners: Iterable[AnyListener]) -> int | None:
        """The major version of the server that owned them; raises LimitUnknown."""
        return self._findings.version(endpoint, listeners)

    def cgroups(self) -> dict[int, str]:
        """The paths of the cgroups of sockets, by number."""
        return self._archive.parse(cgroups_of(self._number), parse_cgroups)

    def earlier(self, seconds: float) -> Reader | None:
        """The same place in the latest moment that was `seconds` before or more; None without."""
        moments = self._archive.manifest.moments[: self._number - 1]
        for number in range(len(moments), 0, -1):
            if self.about.since_boot - moments[number - 1].since_boot >= seconds * _PUNCTUAL:
                return Replay(self._archive, number, self._namespaces, self._deadline).reader()
        return None

    def shares_network(self, pid: int, port: int, inode: int) -> bool:
        """Whether a listener on `port` is in the network namespace of a process."""
        try:
            network = self.files.process((str(pid),)).network
        except FileNotFoundError:
            return False
        return any(
            one.inode == inode
            for place in self.about.places
            if network is not None and place.network == network
            for one in self._open(place).listeners(port)
        )

    def reader(self) -> Reader:
        """The sockets."""
        return join_readers([self._open(place) for place in self._choose()])

    def _choose(self) -> list[Place]:
        places = self.about.places
        if not self._namespaces:
            chosen = [one for one in places if one.default] or list(places)
            if len(chosen) != 1:
                raise SourceError(f"{self._archive.path} holds {self._held()}; choose with --netns")
            return chosen
        found = {}
        for name in self._namespaces:
            named = [one for one in places if one.name == name or (one.default and name == OWN)]
            if not named:
                raise SourceError(
                    f"{self._archive.path} holds no network namespace {clean(name)}, but "
                    f"{self._held()}"
                )
            found[named[0].name] = named[0]
        return list(found.values())

    def _held(self) -> str:
        names = [clean(one.name) for one in self.about.places]
        word = "namespace" if len(names) == 1 else "namespaces"
        return f"network {word} {', '.join(names)}" if names else "no network namespace"

    def _open(self, place: Place) -> SocketReader:
        number = self.about.places.index(place) + 1

        def member(table: str) -> str:
            return member_of(self._number, number, table)

        source = RecordedSource(
            place,
            self.header.byte_order,
            lambda table: self._archive.read(member(table)),
            lambda table: f"{self._archive.path}, {member(table)}",
            [self._taken(), *unseen(self.header, self.about)],
            self._describe(place),
            self._deadline,
        )
        namespace = RecordedNamespace(clean(place.name)) if place.asked else None
        return SocketReader("auto", None, self._deadline, namespace, source)

    def _taken(self) -> str:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.about.taken))
        held = len(self._archive.manifest.moments)
        which = f", moment {self._number} of {held}" if held > 1 else ""
        return f"as recorded at {at} UTC{which}"

    def _describe(self, place: Place) -> list[str]:
        header = self.header
        changed = ", anonymized" if header.anonymized else ""
        lines = [
            f"source: recording ({self._archive.path})",
            f"recorded by check_pgsock {header.check_pgsock} as uid {header.uid} on Linux "
            f"{header.kernel} ({header.machine}), from {', '.join(place.tables)}{changed}",
        ]
        if place.refusal:
            lines.append(f"netlink did not answer then: {place.refusal}")
        if TCP_FILE in place.tables and TCP6_FILE not in place.tables:
            lines.append("no tcp6 beside tcp: a kernel without IPv6")
        return lines


def unseen(header: Header, about: Moment) -> list[str]:
    """Sentences on what could not be read of a moment."""
    lines = []
    if about.unreadable:
        lines.append(
            f"not recorded: descriptors of {about.unreadable} of {about.processes} processes, "
            f"which uid {header.uid} may not read"
        )
    if about.hidden:
        lines.append(
            "not recorded: processes that could not be seen, if any (the recorder was in a "
            "container, or /proc has hidepid)"
        )
    return lines
