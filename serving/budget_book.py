"""Budget events that stand: announced, superseded and withdrawn, each durably before it counts."""

import threading
from collections.abc import Callable, Iterable

from ..fleet.errors import BadInput
from ..fleet.tables import NEVER_S
from .budget import BudgetEvent
from .explain import clock_text, watts
from .store import Store


class BudgetBook:
    """Standing budget events; writes go to the store first.

    Args:
        store: Where events live.
        say: Takes a kind and a line for the audit.
        now_s: Events that are over by then are left out.
    """

    def __init__(self, store: Store, say: Callable[[str, str], None], now_s: float) -> None:
        self._store, self._say = store, say
        self._lock = threading.Lock()
        self._events: tuple[BudgetEvent, ...] = tuple(store.budget_events(now_s))

    @property
    def standing(self) -> tuple[BudgetEvent, ...]:
        return self._events

    def announce(self, event: BudgetEvent, supersedes: Iterable[str] = ()) -> None:
        """Durably take a budget event, in place of others or not.

        Raises:
            BadInput: if one to supersede does not stand.
        """
        supersedes = tuple(supersedes)
        with self._lock:
            known = {e.id for e in self._events}
            missing = [s for s in supersedes if s not in known]
            if missing:
                raise BadInput(f"supersedes {missing[0]!r}: no such standing event; see GET /v1/load-targets")
            self._store.save_budget_event(event, supersedes)
            gone = {event.id, *supersedes}
            kept = [e for e in self._events if e.id not in gone and e.until_s > event.announced_s]
            self._events = (*kept, event)
        notice_s = event.start_s - event.announced_s
        when = f"from {clock_text(event.start_s, event.announced_s)}, {notice_s:.0f} s ahead" if notice_s > 0 else "now"
        until = "" if event.until_s >= NEVER_S else f", until {clock_text(event.until_s, event.announced_s)}"
        instead = f", instead of {', '.join(supersedes)}" if supersedes else ""
        self._say("budget", f"{event.id}: {event.domain} gets {watts(event.limit_w)} {when}{until}{instead}")

    def withdraw(self, event_id: str, author: str) -> None:
        """Take a standing budget event back.

        Raises:
            BadInput: if there is none of that id.
        """
        with self._lock:
            if event_id not in {e.id for e in self._events}:
                raise BadInput(f"no standing budget event {event_id!r}; see GET /v1/load-targets")
            self._store.withdraw_budget_event(event_id)
            self._events = tuple(e for e in self._events if e.id != event_id)
        self._say("budget", f"{event_id} was withdrawn by {author}")
