"""The errors of the suite: each message is one sentence for an operator, and says what to do."""


class PgsockError(Exception):
    """Base of all errors that end a check as UNKNOWN with their message as the sentence."""


class UsageError(PgsockError):
    """The command line asks for something that cannot be."""


class SourceError(PgsockError):
    """A source (netlink, procfs, a process, a server) could not be read, whole or in part."""


class MalformedError(SourceError):
    """A source was read but does not say what its format promises; the message quotes it."""


class SlotsExhausted(SourceError):
    """A server or pooler refused a connection for want of a slot. What the checks watch for: a
    check that meets it reports CRITICAL, without perfdata, since nothing was measured.
    """


class DatabaseFull(SlotsExhausted):
    """The CONNECTION LIMIT of the database is used up: of the server's slots that says nothing."""


class StateError(PgsockError):
    """The state directory or the store in it cannot be trusted or used."""


class DeadlineError(PgsockError):
    """The run's one deadline has passed."""
