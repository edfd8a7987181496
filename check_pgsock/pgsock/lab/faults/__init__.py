"""The faults by name, in the order in which they are shown."""

from __future__ import annotations

import re

from check_pgsock.errors import UsageError
from check_pgsock.pgsock.lab.faults import churn, clients, held, incidents, work
from check_pgsock.pgsock.lab.faults.fault import Fault, Wanted
from check_pgsock.pgsock.lab.lab import Lab
from check_pgsock.text import clean

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        held.Healthy,
        held.Saturate,
        held.Ramp,
        held.Leak,
        held.Hoard,
        clients.Orphan,
        clients.SlowReader,
        clients.Stall,
        clients.Vanish,
        churn.Churn,
        work.Oversize,
        work.Undersize,
        work.Parallel,
        work.LongTransactions,
        incidents.Crash,
        incidents.ResetStatistics,
        incidents.Restart,
        incidents.Failover,
    )
}

_LABEL = re.compile(r"(?P<name>[a-z-]+)(:(?P<kind>[a-z-]+))?(@(?P<via>[a-z]+))?")


def create(lab: Lab, label: str, size: str = "", speed: float | None = None) -> Fault:
    """The fault that `label` names, as in "saturate" or "churn:tls@pgbouncer".

    Raises UsageError where there is no such fault, or it does not take that.
    """
    name, kind, via = _parse_label(label)
    return FAULTS[name](lab, Wanted(kind, size, speed, via))


def fault_class(label: str) -> type[Fault]:
    """The class of the fault that `label` names; raises UsageError where there is none."""
    return FAULTS[_parse_label(label)[0]]


def _parse_label(label: str) -> tuple[str, str, str]:
    """Name, kind and endpoint; the last two may be empty."""
    match = _LABEL.fullmatch(label)
    if match is None or match["name"] not in FAULTS:
        raise UsageError(f"there is no fault '{clean(label)}' (of: {', '.join(FAULTS)})")
    return match["name"], match["kind"] or "", match["via"] or ""
