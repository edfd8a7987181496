"""The faults by name, in the order in which they are shown."""

from __future__ import annotations

from check_pgsock.pgsock.lab.faults import held
from check_pgsock.pgsock.lab.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        held.Healthy,
        held.Saturate,
        held.Ramp,
        held.Leak,
        held.Hoard,
    )
}
