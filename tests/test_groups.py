"""Sessions by user, database or peer, against limits of their own."""

from __future__ import annotations

from argparse import Namespace

import pytest

from check_pgsock.errors import PgsockError, UsageError
from check_pgsock.option_values import parse_address
from check_pgsock.sessions.groups import (
    GroupLimits,
    Groups,
    chosen_groups,
    group_slots,
    parse_group_limit,
)
from check_pgsock.sessions.slots import Slots
from check_pgsock.sessions.titles import CLIENT_BACKEND, Title


def slots(*names: tuple[str | None, str | None]) -> Slots:
    """The slots of sessions with these users and databases."""
    holders = {
        pid: Title(CLIENT_BACKEND, user=user, database=database)
        for pid, (user, database) in enumerate(names)
    }
    return Slots(holders, set())


def told(groups: Groups) -> tuple[list[tuple[str, int, int]], str]:
    """The named groups with count and limit, and what is said of the fullest."""
    return [(one.name, one.count, one.limit) for one in groups.named], groups.describe()


def test_the_fullest_is_the_one_that_has_most_of_its_limit() -> None:
    sessions = slots(*[("app", "shop")] * 3, ("batch", "shop"), ("batch", "stock"))
    by_user = group_slots(GroupLimits("user", [("app", 30), ("batch", 4)]), sessions)
    assert told(by_user) == (
        [("app", 3, 30), ("batch", 2, 4)], "user batch has 2 of 4 sessions (50 %)",
    )  # fmt: skip
    by_database = group_slots(GroupLimits("database", [("stock", 4), ("none", 1)]), sessions)
    assert told(by_database) == (
        [("stock", 1, 4), ("none", 0, 1)], "database stock has 1 of 4 sessions (25 %)",
    )  # fmt: skip
    assert by_user.note() is None


def test_each_group_that_is_not_named() -> None:
    limits = GroupLimits("user", [("app", 30), ("*", 2)])
    sessions = slots(*[("app", "shop")] * 3, *[("b|atch", "shop")] * 3, ("web", "shop"))
    assert told(group_slots(limits, sessions)) == (
        [("app", 3, 30)], "user b?atch has 3 of 2 sessions (150 %)",
    )  # fmt: skip
    assert told(group_slots(GroupLimits("user", [("*", 2)]), slots()))[0] == []


def test_a_limit_of_0_admits_nobody() -> None:
    limits = GroupLimits("user", [("app", 0), ("batch", 2)])
    some = group_slots(limits, slots(("app", "shop"), ("batch", "shop"), ("batch", "shop")))
    assert some.describe() == "user app has 1 of 0 sessions (none allowed)"
    assert [(one.name, one.percent) for one in some.ranked] == [("app", 200), ("batch", 100)]
    assert group_slots(limits, slots()).fullest.percent == 0


def test_sessions_of_unknown_users_make_it_a_lower_bound() -> None:
    limits = GroupLimits("user", [("app", 10)])
    some = group_slots(limits, slots(("app", None), (None, "shop")))
    assert (some.named[0].count, some.note()) == (
        1,
        "the user of 1 of the sessions is not known: what groups have is a lower bound",
    )
    with pytest.raises(PgsockError) as caught:
        group_slots(limits, slots((None, "shop"), (None, "shop")))
    assert str(caught.value) == (
        "the users of sessions are not known: the titles of all 2 do not tell for certain; drop "
        "--group-limit, or count --by peer"
    )


def test_the_narrowest_network_has_a_peer() -> None:
    names = ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "2001:db8::/32")
    limits = GroupLimits("peer", [(name, 5) for name in names])
    for address, name in (
        ("10.1.2.3", "10.1.2.3"),
        ("10.1.2.4", "10.1.0.0/16"),
        ("10.2.0.1", "10.0.0.0/8"),
        ("2001:db8::1", "2001:db8::/32"),
        ("192.0.2.1", "192.0.2.1"),
    ):
        assert limits.name_of(parse_address(address)) == name


def test_labels_are_told_apart_by_the_first_19_characters() -> None:
    names = ("app", "App", "application_of_the_shop", "application_of_the_stock", "10.0.0.0/8")
    for by, prefix in (("user", "user_"), ("database", "db_"), ("peer", "peer_")):
        limits = GroupLimits(by, [])
        labels = [limits.label(name) for name in names]
        assert len({label[:19] for label in labels}) == len(names)
        assert all(label.startswith(prefix) and len(label) <= 19 for label in labels)


@pytest.mark.parametrize(
    ("text", "found"),
    [("app=40", ("app", 40)), ("a=b=1", ("a=b", 1)), ("*=5", ("*", 5)), ("a=0", ("a", 0))],
)
def test_a_limit_is_read(text: str, found: tuple[str, int]) -> None:
    assert parse_group_limit(text) == found


@pytest.mark.parametrize("text", ["app", "app=", "=4", "app=00", "app=-1", "app=4.5", "app=1e3"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_group_limit(text)


def options(**values: object) -> Namespace:
    """The options that groups are about."""
    found: dict[str, object] = {
        "by": None,
        "group_limit": [],
        "leg": "server",
        "socket": [],
        "port": [],
        "given_thresholds": {},
    }
    return Namespace(**{**found, **values})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"group_limit": [("a", 1)]},
         "--group-limit needs --by user, --by database or --by peer"),
        ({"given_thresholds": {"fullest_group": ["--fullest-group-critical"]}},
         "--fullest-group-critical needs --by user, --by database or --by peer"),
        ({"by": "user", "group_limit": [(f"application_{one}", 40) for one in range(30)]},
         "--group-limit names 30 groups, of which the first 13 fit into the perfdata of one line; "
         "give the others a service of their own, or all that have one limit: '*'=N"),
        ({"by": "user"}, "--by user needs --group-limit NAME=N, once at least"),
        ({"by": "user", "group_limit": [("a", 1), ("a", 2)]},
         "--group-limit names a twice; drop one"),
        ({"by": "user", "group_limit": [("*", 1), ("*", 2)]},
         "--group-limit names * twice; drop one"),
        ({"by": "user", "group_limit": [("a", 1)], "leg": "client"},
         "--by user counts the sessions of a server, on the server leg; drop --leg client, or "
         "count --by peer"),
        ({"by": "peer", "group_limit": [("a", 1)], "socket": ["/s"]},
         "--by peer: connections over a Unix socket have no address; see --by user"),
        ({"by": "peer", "group_limit": [("10.0.0.1/8", 1)]},
         "--group-limit of --by peer: '10.0.0.1/8' has host bits set; did you mean 10.0.0.0/8?"),
    ],
)  # fmt: skip
def test_what_contradicts_itself(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_groups(options(**values))
    assert str(caught.value) == sentence


def test_no_groups() -> None:
    assert chosen_groups(options()) is None
