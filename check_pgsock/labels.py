"""Perfdata labels for what has a name of somebody else's: databases, users, networks; pure."""

import re

# With a prefix of up to 6 characters the 19 that count: RRDtool's data sources have no more.
LONGEST = 13


def label_of(name: str) -> str:
    """The part of a perfdata label that stands for `name`, by that name alone.

    A name that is none of [a-z0-9_]+ or too long is cut, and told from others by its checksum.
    """
    if re.fullmatch(rf"[a-z0-9_]{{1,{LONGEST}}}", name):
        return name
    import zlib  # few names need it

    digits = f"{zlib.crc32(name.encode('utf-8', 'surrogateescape')):08x}"[:6]
    return f"{re.sub('[^a-z0-9_]', '_', name.lower())[:6]}_{digits}"
