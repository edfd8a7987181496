"""Names in titles, of clusters, users and databases: where each may begin and end; pure.

Nothing marks their ends, and spaces and colons may be part of them.
"""

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    Names = tuple[str, Optional[str]]  # of a user, and of a database, where there is one

# NAMEDATALEN - 1: the longest name of a user, a database or a cluster, in bytes.
NAME_BYTES = 63


def strip_cluster_name(rest: str, cluster_name: "Optional[str]") -> "list[str]":
    """What may follow the cluster_name ("" is none, None is unknown) in `rest`; nothing where
    another name stands there.
    """
    if cluster_name is None:
        ends = [at.end() for at in re.finditer(": ", rest[: NAME_BYTES + 2])]
        return [rest, *(rest[end:] for end in ends if end > 2)]
    if not cluster_name:
        return [rest]
    prefix = f"{cluster_name}: "
    return [rest[len(prefix) :]] if rest.startswith(prefix) else []


def split_names(names: str, most: int) -> "list[Names]":
    """The ways to take `names` as USER and DATABASE; no more than `most` of them."""
    found: list[Names] = []
    if byte_size(names) > 2 * NAME_BYTES + 1:
        return found
    at = names.find(" ", 1)
    while at >= 0 and len(found) < most:
        if names[at + 1 :]:
            found.append((names[:at], names[at + 1 :]))
        at = names.find(" ", at + 1)
    return found


def byte_size(text: str) -> int:
    """How long a text is as it was read: see titles.text_of."""
    return len(text.encode("utf-8", "surrogateescape"))
