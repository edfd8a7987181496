"""The sockets of a leg in TIME_WAIT: how many of them matter, and where they lead."""

from check_pgsock.churn import fullest_destination
from check_pgsock.legs import Leg, format_address
from check_pgsock.sockets.model import TIME_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from check_pgsock.sockets.model import Socket
    from check_pgsock.sockets.reader import Reader


def read_time_wait(leg: Leg, reader: "Reader") -> "tuple[Optional[int], list[str]]":
    """The number of TIME_WAIT sockets to judge, and what is to be said of them; (None, []) where
    the leg has no port. Raises SourceError.
    """
    if not leg.ports:
        return None, []
    if leg.server:
        number = reader.count(leg.query(TIME_WAIT)).count(TIME_WAIT)
        return number, [f"TIME_WAIT: {number}"]
    found = [each.sockets(leg.query(TIME_WAIT)) for each in reader.each]
    most, one = max((fullest_destination(sockets) for sockets in found), key=lambda it: it[0])
    told = f"TIME_WAIT: {sum(map(len, found))}"
    if one is not None:
        told += f", of which {most} {_destination(one)}"
    return most, [told]


def _destination(one: "Socket") -> str:
    """`from 10.0.0.1 to 10.0.0.2 port 5432`"""
    ends = format_address(one.local_address), format_address(one.remote_address)
    return f"from {ends[0]} to {ends[1]} port {one.remote_port}"
