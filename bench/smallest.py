"""The smallest possible nagiosplugin check: what no check built on it can be faster than."""

import nagiosplugin


class One(nagiosplugin.Resource):  # type: ignore[misc]
    """A resource that needs no reading."""

    def probe(self) -> "list[nagiosplugin.Metric]":
        return [nagiosplugin.Metric("one", 1)]


nagiosplugin.Check(One(), nagiosplugin.ScalarContext("one", "5", "10")).main()
