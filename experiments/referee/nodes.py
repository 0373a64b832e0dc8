"""What one node truly runs, and what it may be running by all that the controller sent and heard."""

from .events import PARKED, PARKS_W, Applied, Command, FellBack, Heard, Id, SiteNode

NO_ID: Id = (-1, -1)


class NodeRecord:
    """One node's truth (from the emulation) and knowledge (from commands and reports alone).

    Knowledge. After a report that was sampled at `s` and reads back command `id` and cap `c`, the node may run `c`, the
    cap of any command after `id` (from `id` on where answers to older reports may still arrive), and, until `s` plus
    the firmware's lag, whatever it could run before. A later report replaces an earlier one; an older one that arrives
    late proves nothing. A node seen parked, with no later command to leave parking, draws its bound for parking.
    """

    __slots__ = (
        "acked",
        "boot",
        "held",
        "is_seen_parked",
        "is_unknown",
        "lag_ms",
        "lagging",
        "last",
        "live",
        "may_renew_late",
        "obeys_ms",
        "progressed_ms",
        "read_w",
        "runs_stage",
        "runs_w",
        "sampled_ms",
        "sent_ms",
        "site",
    )  # fmt: skip

    def __init__(self, site: SiteNode, lag_ms: int, cap_w: int, acked: Id = NO_ID, may_renew_late: bool = False):
        self.may_renew_late = may_renew_late
        self.site, self.lag_ms = site, lag_ms
        self.runs_w, self.runs_stage = cap_w, site.stage
        self.lagging: list[tuple[int, int]] = []
        self.is_unknown = False
        self.boot = 0
        self.obeys_ms: int | None = None  # when its first cap since a reboot was applied
        self.acked, self.read_w, self.sampled_ms = acked, cap_w, -1
        self.is_seen_parked = site.stage == PARKED
        self.live: dict[Id, Command] = {}
        self.sent_ms: dict[Id, int] = {}
        self.held: list[tuple[int, int]] = []
        self.progressed_ms = 0
        self.last: Command | None = None

    def copy(self) -> "NodeRecord":
        other = NodeRecord.__new__(NodeRecord)
        for name in self.__slots__:
            value = getattr(self, name)
            setattr(other, name, value.copy() if isinstance(value, list | dict) else value)
        return other

    # ── truth ────────────────────────────────────────────────────────────────────────────────────────────
    def draws_w(self, time_ms: int) -> int:
        """The most that its GPUs draw now."""
        if self.runs_stage == PARKED:
            return self.site.parked_max_w
        if not self.lagging:
            return self.runs_w
        self.lagging = [(until, w) for until, w in self.lagging if until > time_ms]
        return max([self.runs_w, *(w for _, w in self.lagging)])

    def set_cap(self, time_ms: int, cap_w: int) -> None:
        if cap_w < self.runs_w:
            self.lagging.append((time_ms + self.lag_ms, self.runs_w))
        self.runs_w = cap_w

    def fall_back(self, event: FellBack) -> None:
        self.set_cap(event.time_ms, event.cap_w)
        if event.is_parked:
            self.runs_stage = PARKED

    def apply(self, event: Applied) -> None:
        self.set_cap(event.time_ms, event.cap_w)
        self.runs_stage = event.stage
        if self.obeys_ms is None:
            self.obeys_ms = event.time_ms

    def reboot(self) -> None:
        self.runs_w, self.lagging, self.is_unknown = self.site.cap_max_w, [], True
        # a rebooted node loads its stage again; until then, and whatever it loads, its maximum covers it
        self.runs_stage = self.site.stage
        self.boot += 1
        self.obeys_ms = None

    # ── knowledge ────────────────────────────────────────────────────────────────────────────────────────
    def possible_w(self, time_ms: int) -> int:
        """The most that its GPUs may draw by commands and reports alone."""
        if self.is_seen_parked and all(c.stage == PARKED for k, c in self.live.items() if k >= self.acked):
            return self.site.parked_max_w
        self.held = [(until, w) for until, w in self.held if until > time_ms]
        return max([self.read_w, *(c.cap_w for c in self.live.values()), *(w for _, w in self.held)])

    def fallback_w(self) -> int:
        """The most that it may run once its lease has expired."""
        falls = [self.falls_to_w(c) for c in self.live.values()]
        return max(falls) if falls else self.read_w

    def falls_to_w(self, command: Command) -> int:
        """The most that its GPUs draw once a lease of this command has expired."""
        if command.fallback_w == PARKS_W:
            return self.site.parked_max_w
        return min(command.cap_w, command.fallback_w)

    def waits_ms(self, time_ms: int) -> int:
        """How long a command waits for its acknowledgement, with no report of any progress since."""
        waiting = [t for k, t in self.sent_ms.items() if k > self.acked]
        return time_ms - max(min(waiting), self.progressed_ms) if waiting else 0

    def send(self, time_ms: int, command: Command) -> None:
        self.live[command.id] = command
        self.sent_ms.setdefault(command.id, time_ms)
        self.last = command

    def hear(self, event: Heard) -> None:
        if event.boot < self.boot or event.sampled_ms <= self.sampled_ms or event.cap_w < 0:
            return
        before_w = self.possible_w(event.time_ms)
        self.sampled_ms = event.sampled_ms
        if event.id > self.acked:
            self.progressed_ms = event.time_ms
        self.acked, self.read_w = event.id, event.cap_w
        # the command read back counts unless the node read back less than it and drops answers to older reports
        acked = self.live.get(event.id)
        is_live = self.may_renew_late or acked is None or event.cap_w >= acked.cap_w
        self.live = {k: c for k, c in self.live.items() if k > event.id or (k == event.id and is_live)}
        self.sent_ms = {k: t for k, t in self.sent_ms.items() if k >= event.id}
        self.is_seen_parked = event.stage == PARKED and not event.is_moving
        if self.possible_w(event.time_ms) < before_w:
            self.held.append((event.sampled_ms + self.lag_ms, before_w))
        # it draws its maximum until the firmware's lag after the cap that it acknowledges: unknown until then
        if event.id != NO_ID and self.obeys_ms is not None and event.sampled_ms >= self.obeys_ms + self.lag_ms:
            self.is_unknown = False

    def is_late(self, time_ms: int, p99_ms: int, applied: Id) -> bool:
        """Whether a command was sent longer ago than a command takes, and neither it nor a later one runs yet.

        Not only the newest: where commands change at every tick the newest is never old, however many were lost.
        """
        return any(k > applied and time_ms - sent > p99_ms for k, sent in self.sent_ms.items())
