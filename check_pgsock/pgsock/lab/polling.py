"""What a monitor that polls pg_stat_activity would say: each check's question, asked of it.

It connects for each poll, as plugins do, and judges by the same thresholds as the checks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from check_pgsock.pgsock.lab.errors import LabError
from check_pgsock.pgsock.lab.lab import DATABASE, MONITOR, Lab
from check_pgsock.pgsock.lab.services import CORES, Run
from check_pgsock.pgsock.lab.wire import Row, Session, WireError

# What it can see something of: neither a client that is gone, nor how a session ended, nor the
# clients of a pooler.
VISIBLE = ("saturation", "thrashing", "pool_size")

_QUERY = """
select datname, state, extract(epoch from clock_timestamp() - backend_start)
from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""
_TIMEOUT = 4.0
# Polls that the busy ratio is sampled over.
_SAMPLES = 5
_THRESHOLDS = {"saturation": (0.8, 0.9), "thrashing": (10.0, 50.0)}


class Poller:
    """Polls one lab; remembers what its verdicts need of earlier polls."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._last: float | None = None
        self._busy: deque[tuple[int, int]] = deque(maxlen=_SAMPLES)

    def poll(self) -> dict[str, Run]:
        """One poll's verdict by service name; UNKNOWN where it got no answer."""
        started = time.monotonic()
        try:
            rows = self._ask()
        except WireError as error:
            refused = error.sqlstate == "53300"  # errcodes.txt, too_many_connections
            states = {"saturation": "CRITICAL"} if refused else {}
            line = str(error)
        except (LabError, OSError) as error:
            states, line = {}, f"no answer: {error}"
        else:
            states, line = self._judge(rows, started), f"{len(rows)} sessions"
        ended = time.monotonic()
        return {
            name: Run(started, ended, states.get(name, "UNKNOWN"), line) for name in VISIBLE
        }  # fmt: skip

    def _ask(self) -> list[Row]:
        server = self._lab.postgres
        with self._lab.server_host.entered():
            session = Session.connect(server.host, server.port, MONITOR, DATABASE, timeout=_TIMEOUT)
        with session:
            return session.query(_QUERY)

    def _judge(self, rows: Sequence[Row], now: float) -> dict[str, str]:
        elapsed = None if self._last is None else now - self._last
        self._last = now
        states = [row[1] for row in rows if row[0] == DATABASE]
        self._busy.append((states.count("active"), states.count("idle in transaction")))
        verdicts = {"saturation": _state("saturation", len(rows) / self._lab.slots)}
        if elapsed is not None:
            # Only of those still there: a session that ended between two polls left no trace.
            new = sum(float(row[2] or 0) < elapsed for row in rows)
            verdicts["thrashing"] = _state("thrashing", new / elapsed)
        if len(self._busy) == _SAMPLES:
            active, waiting = (sum(counts) for counts in zip(*self._busy))
            ratio = active / (active + waiting) if active else 0.0
            too_large = len(states) * ratio > CORES
            verdicts["pool_size"] = "WARNING" if too_large else "OK"
        return verdicts


def _state(name: str, value: float) -> str:
    warning, critical = _THRESHOLDS[name]
    return "CRITICAL" if value > critical else "WARNING" if value > warning else "OK"
