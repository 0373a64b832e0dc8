"""Copies of a running plant, rolled forward under other bids: what a planning policy thinks with.

Implements `policies.base.Simulator`. A roll is a small plant of its own whose rows start as environments stand: the
plant that is being judged never moves.
"""

import copy
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from ..fleet.bids import Bids
from ..fleet.errors import BadInput
from ..fleet.observe import Observation, observe
from ..fleet.snapshot import Snapshot
from ..fleet.tables import NEVER_S
from .plant import EPISODE, EVOLVING, Plant
from .scenario import Scenario
from .serving_dynamics import ITL_SPREAD

SERIES = ("arrivals", "prompt_tok", "output_tok", "limits", "told")
"""Arrays of the plant with a time axis, of which a roll reads the window ahead."""

TABLES = ("params", "tick", "time_s", "ca2", "cs2", "node", "domain", "service", "totals", "ttft", "itl")
"""Arrays of the plant with one row per environment, as it stands."""


_NEVER_TICK = 2**62
"""An event that starts then does not happen."""


class Outcome(NamedTuple):
    """What became of copies, shape (copies,) each; implements `policies.base.Outcome`."""

    good_tok: np.ndarray
    spoilt_tok: np.ndarray
    flight_tok: np.ndarray
    judged_tok: np.ndarray
    is_over: np.ndarray


class Roll:
    """Some environments, several times over, ahead of time: copies of one row stand beside each other.

    Attributes:
        steps: Control intervals that it can be stepped.

    Args:
        plant: Rows that become the copies.
        source: The plant that is copied.
        envs: Its environments, which have equally many ticks left.
        copies: How many of each.
        steps: Control intervals ahead, fewer at the end of an episode.
    """

    def __init__(self, plant: Plant, source: Plant, envs: np.ndarray, copies: int, steps: int):
        self._plant, self._copies = plant, copies
        self.steps = min(steps, int(source.ticks_left[envs].min()) // source.control_ticks)
        self._is_over = np.repeat(source.ticks_left[envs] // source.control_ticks <= self.steps, copies)
        self._ahead = []
        ticks = self.steps * source.control_ticks
        for i, env in enumerate(envs):
            mine, now = self._block(i), int(source.tick[env])
            ahead = slice(now, now + ticks + 1)  # limits are known for the end of the last tick too
            self._ahead.append(ahead)
            for name in TABLES:
                getattr(plant, name)[mine] = getattr(source, name)[env]
            for name in SERIES:
                getattr(plant, name)[mine, ahead] = getattr(source, name)[env, ahead]
            for tables in ("state", "snapshot", "plan"):
                theirs, ours = getattr(source, tables), getattr(plant, tables)
                for name, array in vars(ours).items():
                    array[mine] = getattr(theirs, name)[env]
            if plant.batch_jobs is not None:
                plant.batch_jobs.become(source.batch_jobs, env, mine)
        self._before = self._books()

    def _block(self, i: int) -> slice:
        """Copies of the environment at place i."""
        return slice(i * self._copies, (i + 1) * self._copies)

    @property
    def snapshot(self) -> Snapshot:
        """What is known now in every copy."""
        return self._plant.snapshot

    @property
    def observation(self) -> Observation:
        """The features of what is known now, node features left out."""
        return observe(self._plant.fleet, self._plant.state, self._plant.snapshot, nodes=False)

    def step(self, bids: Bids) -> None:
        """Advance every copy by one control interval."""
        self._plant.step(bids)

    def guess(self, future: np.ndarray, nominal: dict[str, float]) -> None:
        """Replace what nobody can know: the load to come, true parameters, faults, and changes not announced.

        Args:
            future: Requests, mean prompt and output tokens of each tick's arrivals, shape (rows, ticks, S, 3).
            nominal: Parameters by name.
        """
        plant = self._plant
        for name, value in nominal.items():
            plant.params[name] = value
        plant.params["fault_scale"] = 0.0
        if plant.batch_jobs is not None:
            plant.batch_jobs.hide_future(plant.time_s)
        for i, ahead in enumerate(self._ahead):
            mine = self._block(i)
            for column, name in enumerate(("arrivals", "prompt_tok", "output_tok")):
                window = getattr(plant, name)[mine, ahead]
                window[:, : future.shape[1]] = future[mine, : window.shape[1], :, column]
            starts = plant.params["event_start"][mine]
            plant.params["event_start"][mine] = np.where(starts > ahead.start, _NEVER_TICK, starts)
            domain = plant.snapshot.domain[mine.start]
            ticks = np.arange(ahead.stop - ahead.start)
            in_s = domain["next_in_s"][None] - plant.fleet.timing.tick_s * ticks[:, None]
            limit_w = np.where(in_s > 0, domain["limit_w"], domain["next_limit_w"])
            plant.limits[mine, ahead] = limit_w[None, ..., None]
            told = plant.told[mine, ahead]
            told[..., 0], told[..., 1] = limit_w, domain["next_limit_w"]
            told[..., 2] = np.where(in_s > 0, in_s, NEVER_S)

    def _books(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens in time, tokens late, rejected or lost, and tokens in time that count, since reset; (rows,) each."""
        s = self._plant.service
        late = s["late_tok"].sum(-1)
        spoilt = late + (s["rejected_tok"] + s["lost_tok"]).sum(-1)
        return s["served_tok"].sum(-1) - late, spoilt, self._plant.totals["good_tok"].copy()

    def outcome(self) -> Outcome:
        """What became of the copies since they started."""
        good, spoilt, judged = (now - then for now, then in zip(self._books(), self._before, strict=True))
        s = self._plant.service
        target_s = self._plant.fleet.service_static["itl_s"]
        margin = np.log(target_s / np.maximum(s["itl_request_s"], 1e-6)) / ITL_SPREAD
        in_time = 1.0 / (1.0 + np.exp(np.clip(-1.7 * margin, -50.0, 50.0)))
        flight_tok = np.zeros(s.shape)
        for store, requests in (("queue", "queue_req"), ("ready", "ready_req"), ("active", "active")):
            ok = s[f"{store}_ok"] / np.maximum(s[requests], 1e-9)
            flight_tok += (s[f"{store}_tok"] + s[f"{store}_out_tok"]) * np.minimum(ok, 1.0) * in_time
        return Outcome(good, spoilt, flight_tok.sum(-1), judged, self._is_over)


class PlantSimulator:
    """Rolls of the plant that a core steps.

    Args:
        scenario: Its scenario.
    """

    def __init__(self, scenario: Scenario):
        self.scenario = scenario
        self._plant: Plant | None = None
        self._envs: np.ndarray | None = None
        self._room: Plant | None = None

    def follow(self, plant: Plant) -> None:
        """Think about this plant from now on; whoever steps it calls this."""
        self._plant, self._envs, self._room = plant, None, None

    def look_at(self, envs: np.ndarray | None) -> None:
        """Rows of the next snapshot are these environments; None for all."""
        self._envs = envs

    @cached_property
    def nominal(self) -> dict[str, float]:
        """The middle of the scenario's ranges."""
        return {name: 0.5 * (low + high) for name, (low, high) in self.scenario.plant.items()}

    def _followed(self) -> Plant:
        if self._plant is None:
            raise BadInput("this policy thinks with copies of the simulated plant; use it with simulate or evaluate")
        return self._plant

    def _of(self, rows: np.ndarray) -> np.ndarray:
        """Environments in rows of the snapshot."""
        return np.asarray(rows) if self._envs is None else np.asarray(self._envs)[rows]

    def steps_left(self, rows: np.ndarray) -> np.ndarray:
        """Control intervals left in the episodes of rows of the snapshot; see `policies.base.Simulator`."""
        plant = self._followed()
        return plant.ticks_left[self._of(rows)] // plant.control_ticks

    def branch(self, rows: np.ndarray, copies: int, steps: int, future: np.ndarray | None = None) -> Roll:
        """Copies of the environments in rows of the snapshot; see `policies.base.Simulator`.

        The roll before it ends: there is room for one.

        Raises:
            BadInput: if no plant is followed: outside the simulator there is nothing to copy.
        """
        plant = self._followed()
        count = len(rows) * copies
        if self._room is None or self._room.batch < count:
            self._room = Plant(self.scenario, plant.fleet, count, plant.substeps)
        roll = Roll(_first(self._room, count), plant, self._of(rows), copies, steps)
        if future is not None:
            roll.guess(future, self.nominal)
        return roll


def _first(plant: Plant, count: int) -> Plant:
    """The first environments of a plant as a plant of their own: views of its arrays."""
    out = copy.copy(plant)
    out.batch = count
    for tables in ("state", "snapshot", "plan"):
        setattr(out, tables, copy.copy(getattr(plant, tables)))
    out._series = [None] * count
    for name in EPISODE + EVOLVING:
        name = {"limits": "_limits", "told": "_told"}.get(name, name)  # the properties tell the next reset of writers
        owner, _, field = name.rpartition(".")
        object.__setattr__(getattr(out, owner) if owner else out, field, attrgetter(name)(plant)[:count])
    object.__setattr__(out.snapshot, "time_s", out.time_s)
    if plant.batch_jobs is not None:
        out.batch_jobs = plant.batch_jobs.first(count)
    return out
