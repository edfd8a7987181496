"""Which sessions a check is about, by user and database, as their titles tell them; pure."""

from check_pgsock.errors import PgsockError
from check_pgsock.text import plural

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable

    from check_pgsock.sessions.connections import Connection


class Selection:
    """Users and databases of sessions: all where none is named. False where it selects all."""

    __slots__ = ("databases", "excluded_users", "users")

    def __init__(
        self,
        users: "Iterable[str]" = (),
        excluded_users: "Iterable[str]" = (),
        databases: "Iterable[str]" = (),
    ) -> None:
        self.users = frozenset(users)
        self.excluded_users = frozenset(excluded_users)
        self.databases = frozenset(databases)

    def __bool__(self) -> bool:
        return bool(self.users or self.excluded_users or self.databases)

    def choose(self, connections: "list[Connection]") -> "tuple[list[Connection], list[str]]":
        """Those that are selected, and what is to be said about the others.

        One whose user or database is not known is no user's and no database's that is named; it
        stays where only users are excluded. Raises PgsockError where nothing is known of any.
        """
        chosen, unknown, kept = [], 0, 0
        for one in connections:
            user, database = one["user"], one["database"]
            if user is not None and (
                user in self.excluded_users or (self.users and user not in self.users)
            ):
                continue
            if database is not None and self.databases and database not in self.databases:
                continue
            if (self.users and user is None) or (self.databases and database is None):
                unknown += 1
                continue
            kept += bool(self.excluded_users and user is None)
            chosen.append(one)
        if unknown and unknown == len(connections):
            raise PgsockError(
                f"user and database are known of none of {plural(unknown, 'connection')}, by which "
                "to select them: drop --user and --database, or see the README on who may know them"
            )
        notes = []
        if unknown:
            notes.append(
                f"a lower bound: {plural(unknown, 'connection')} more, whose user or database is "
                "not known, not counted"
            )
        if kept:
            notes.append(f"{plural(kept, 'connection')} of users that are not known counted, too")
        return chosen, notes

    def describe(self) -> str:
        """` of user app on database shop`, or nothing."""
        parts = []
        for word, names in (
            ("of user", self.users),
            ("of all users but", self.excluded_users),
            ("on database", self.databases),
        ):
            if names:
                parts.append(f" {word} {', '.join(sorted(names))}")
        return "".join(parts)


def chosen_selection(options: "Namespace") -> Selection:
    """The selection that the options of options.add_session_options() name."""
    return Selection(options.user, options.exclude_user, options.database)
