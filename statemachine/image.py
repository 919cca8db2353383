"""The long tables once more, for whoever writes them down while commands go on.

To list the rows of a table takes as long as there are rows, and nothing else may happen meanwhile: thirty
milliseconds a million. So a second table follows each long one, entry by entry. It stands still while it is read, and
what is written in that time waits. A short table is listed: following it would cost each command more.
"""

from __future__ import annotations

from collections.abc import Mapping

from statemachine.rows import Row

#: written past the tables of a transaction, where nobody would note it; they are kept short
SHORT = ("cluster", "events")
#: rows from which a table is long; listing fewer takes a millisecond
LONG = 40_000
#: writes that one entry takes in at the most after a reading, so that the backlog holds nothing up
STEP = 10_000


class Image:
    """Rows by table and key, in the order of the tables. Belongs to the thread that applies; one reads at a time."""

    def __init__(self) -> None:
        #: only the long ones, from the first reading on that found them long
        self.tables: dict[str, dict[str, Row]] = {}
        #: what was written and is not taken in yet, in order
        self._ahead: list[tuple[str, str, Row | None]] = []
        self._read = False

    def begin(self, tables: Mapping[str, Mapping[str, Row]]) -> None:
        """Follow from now on those that have become long."""
        for name, rows in tables.items():
            if len(rows) >= LONG and name not in SHORT and name not in self.tables:
                self.tables[name] = dict(rows)

    def note(self, table: str, key: str, row: Row | None) -> None:
        """A row of a table that is followed was written, or deleted."""
        self._ahead.append((table, key, row))

    def follow(self) -> None:
        """Take in what was written, unless somebody reads."""
        if self._read:
            return
        for table, key, row in self._ahead[:STEP]:
            if row is None:
                del self.tables[table][key]
            else:
                self.tables[table][key] = row
        del self._ahead[:STEP]

    def hold(self, tables: Mapping[str, Mapping[str, Row]]) -> Mapping[str, Mapping[str, Row]] | None:
        """The long ones of `tables` as they are now, unmoved until `release`; None while somebody else reads."""
        if self._read:
            return None
        while self._ahead:
            self.follow()
        self.begin(tables)
        self._read = True
        return self.tables

    def release(self) -> None:
        """The one who held it has read."""
        self._read = False
