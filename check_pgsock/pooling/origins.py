"""Since when a check counts what it compares with earlier runs, or why not since one of them: the
outcomes and their words, besides those of postgres.statistics; pure.
"""

from check_pgsock.postgres import statistics

EARLIER_RUN = "earlier run"
FIRST_RUN = "first run"
NO_STATE = "no state"

NO_DIRECTORY = "no state directory (--state-dir) keeps what earlier runs saw"
# Why nothing was counted since an earlier run.
WORDS = {
    FIRST_RUN: "first run",
    NO_STATE: NO_DIRECTORY,
    statistics.RESET: "the statistics were reset since the last run",
    statistics.CRASH: "the statistics were lost in a crash since the last run",
    statistics.RESTART: ("the server started anew, or another took its place, since the last run"),
    statistics.OTHER_SERVER: "another server answers than at the last run (a fail-over?)",
    statistics.OTHER_DATABASE: "the database was made anew since the last run",
    statistics.CLOCK_STEP: "the server's clock was set back since the last run",
}
