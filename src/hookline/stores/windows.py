"""Windows: how much was taken in the last n seconds, exactly.

Lives here: the arithmetic of one scope, without a clock and without a lock. Elsewhere: many scopes decided together (memory.py).
Idea: a sliding log of amounts whose neighbours are merged. Amounts less than 1/60 of the window apart share one entry that leaves with the youngest of
them, so an amount counts for the whole window and at most 1/60 of it longer, never shorter: in no span of `window_s` is more than the limit taken. The log
holds at most 61 entries. A token bucket or GCRA would be smaller, but lets twice the limit pass within one window after a pause, and can't take an
unused reservation back without touching what others have taken since; here each amount can be corrected where it stands."""

from __future__ import annotations

from collections import deque

GRAINS = 60


class Entry:
    """Amounts taken at nearly the same time."""

    __slots__ = ("amount", "is_counted", "last_s")

    def __init__(self, now_s: float, amount: int) -> None:
        self.last_s = now_s
        self.amount = amount
        self.is_counted = True


class Window:
    """What was taken in one scope. `used` is the sum of the entries that count; without a `window_s`, what is held has no entry and no end."""

    __slots__ = ("_joined_until_s", "entries", "used", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.used = 0
        self.entries: deque[Entry] = deque()
        self._joined_until_s = float("-inf")
        """Until when amounts join the youngest entry."""

    def expire(self, now_s: float) -> None:
        """Forget what is older than the window."""
        entries, oldest_s = self.entries, now_s - self.window_s
        while entries and entries[0].last_s <= oldest_s:
            entry = entries.popleft()
            entry.is_counted = False
            self.used -= entry.amount
        if not entries:
            self._joined_until_s = float("-inf")  # a clock that was set back must not look for the youngest

    def add(self, now_s: float, amount: int) -> Entry | None:
        """Count `amount` from now on; the entry returned is where it can be corrected."""
        self.used += amount
        if now_s < self._joined_until_s:
            entry = self.entries[-1]
            entry.amount += amount
            if now_s > entry.last_s:
                entry.last_s = now_s
            return entry
        if not self.window_s:
            return None
        entry = Entry(now_s, amount)
        self.entries.append(entry)
        self._joined_until_s = now_s + self.window_s / GRAINS
        return entry

    def correct(self, entry: Entry, difference: int) -> None:
        """Change what was added to `entry` by `difference`. An entry that has left the window stays as it is."""
        if entry.is_counted:
            entry.amount += difference
            self.used += difference

    def fits_after_s(self, now_s: float, room: int) -> float:
        """In how many seconds at most `room` is used, if nothing else is taken. `expire` comes first."""
        used = self.used
        if used <= room:
            return 0.0
        for entry in self.entries:
            used -= entry.amount
            if used <= room:
                return max(entry.last_s + self.window_s - now_s, 0.0)
        return float("inf")

    def reset_s(self, now_s: float) -> float:
        """In how many seconds nothing is used."""
        entries = self.entries
        return max(entries[-1].last_s + self.window_s - now_s, 0.0) if entries else 0.0
