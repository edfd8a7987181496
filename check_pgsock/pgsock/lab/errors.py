"""The lab's error."""

from check_pgsock.errors import PgsockError


class LabError(PgsockError):
    """A throw-away server cannot be had, or did not do what it should."""
