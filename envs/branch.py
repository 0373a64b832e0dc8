"""Copies of a running plant, rolled forward under other bids: what a planning policy thinks with.

Implements `policies.base.Simulator`. A roll is a small plant of its own whose rows start as one environment stands:
the plant that is being judged never moves.
"""

from functools import cached_property

import numpy as np

from ..fleet.bids import Bids
from ..fleet.errors import BadInput
from ..fleet.snapshot import Snapshot
from ..fleet.tables import NEVER_S
from .plant import Plant
from .scenario import Scenario
from .serving_dynamics import ITL_SPREAD

SERIES = ("arrivals", "prompt_tok", "output_tok", "limits", "told")
"""Arrays of the plant with a time axis, of which a roll reads the window ahead."""

TABLES = ("params", "tick", "time_s", "ca2", "cs2", "node", "domain", "service", "totals", "ttft", "itl")
"""Arrays of the plant with one row per environment, as it stands."""


_NEVER_TICK = 2**62
"""An event that starts then does not happen."""


class Roll:
    """One environment, several times over, ahead of time.

    Attributes:
        steps: Control intervals that it can be stepped, fewer at the end of an episode.

    Args:
        scenario: The plant's.
        plant: What is copied later.
        copies: How many.
        ticks: How far ahead.
    """

    def __init__(self, scenario: Scenario, plant: Plant, copies: int, ticks: int):
        self._plant = Plant(scenario, plant.fleet, copies, plant.substeps)
        self._ahead, self._ticks = slice(0, 0), ticks
        self.steps = 0

    @property
    def snapshot(self) -> Snapshot:
        """What is known now in every copy."""
        return self._plant.snapshot

    def step(self, bids: Bids) -> None:
        """Advance every copy by one control interval."""
        self._plant.step(bids)

    def start(self, plant: Plant, env: int) -> None:
        """Become copies of one environment of `plant`, its future included."""
        mine, now = self._plant, int(plant.tick[env])
        end = min(now + self._ticks, plant.ticks)
        self.steps = (end - now) // plant.control_ticks
        self._ahead = slice(now, end + 1)  # limits are known for the end of the last tick too
        for name in TABLES:
            getattr(mine, name)[:] = getattr(plant, name)[env]
        for name in SERIES:
            getattr(mine, name)[:, self._ahead] = getattr(plant, name)[env, self._ahead]
        for tables in ("state", "snapshot", "plan"):
            source, target = getattr(plant, tables), getattr(mine, tables)
            for name, array in vars(target).items():
                array[:] = getattr(source, name)[env]
        if mine.batch_jobs is not None:
            mine.batch_jobs.become(plant.batch_jobs, env)
        self._served_tok, self._spoilt_tok = self._books()

    def guess(self, future: np.ndarray, nominal: dict[str, float]) -> None:
        """Replace what nobody can know: the load to come, true parameters, faults, and changes not announced.

        Args:
            future: Requests, mean prompt and output tokens of each tick's arrivals, shape (copies, ticks, S, 3).
            nominal: Parameters by name.
        """
        mine, ahead = self._plant, self._ahead
        for i, name in enumerate(("arrivals", "prompt_tok", "output_tok")):
            window = getattr(mine, name)[:, ahead]
            window[:, : future.shape[1]] = future[:, : window.shape[1], :, i]
        for name, value in nominal.items():
            mine.params[name] = value
        mine.params["fault_scale"] = 0.0
        if mine.batch_jobs is not None:
            mine.batch_jobs.hide_future(mine.time_s)
        starts = mine.params["event_start"]
        mine.params["event_start"] = np.where(starts > ahead.start, _NEVER_TICK, starts)
        domain = mine.snapshot.domain[0]
        ticks = np.arange(ahead.stop - ahead.start)
        in_s = domain["next_in_s"][None] - mine.fleet.timing.tick_s * ticks[:, None]
        limit_w = np.where(in_s > 0, domain["limit_w"], domain["next_limit_w"])
        mine.limits[:, ahead] = limit_w[None, ..., None]
        told = mine.told[:, ahead]
        told[..., 0], told[..., 1] = limit_w, domain["next_limit_w"]
        told[..., 2] = np.where(in_s > 0, in_s, NEVER_S)

    def _books(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens served in time, and tokens late, rejected or lost, since reset; shape (copies,) each."""
        s = self._plant.service
        late = s["late_tok"].sum(-1)
        return s["served_tok"].sum(-1) - late, late + (s["rejected_tok"] + s["lost_tok"]).sum(-1)

    def score(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What became of the copies since they started, shape (copies,) each.

        Returns:
            Tokens served in time; tokens late, rejected or lost; tokens in flight, each weighted by the chance that
            its request still meets both targets.
        """
        served_tok, spoilt_tok = self._books()
        s = self._plant.service
        target_s = self._plant.fleet.service_static["itl_s"]
        margin = np.log(target_s / np.maximum(s["itl_request_s"], 1e-6)) / ITL_SPREAD
        in_time = 1.0 / (1.0 + np.exp(np.clip(-1.7 * margin, -50.0, 50.0)))
        flight_tok = np.zeros(s.shape)
        for store, requests in (("queue", "queue_req"), ("ready", "ready_req"), ("active", "active")):
            ok = s[f"{store}_ok"] / np.maximum(s[requests], 1e-9)
            flight_tok += (s[f"{store}_tok"] + s[f"{store}_out_tok"]) * np.minimum(ok, 1.0) * in_time
        return served_tok - self._served_tok, spoilt_tok - self._spoilt_tok, flight_tok.sum(-1)


class PlantSimulator:
    """Rolls of the plant that a core steps.

    Args:
        scenario: Its scenario.
    """

    def __init__(self, scenario: Scenario):
        self.scenario = scenario
        self._plant: Plant | None = None
        self._envs: np.ndarray | None = None
        self._rolls: dict[tuple[int, int], Roll] = {}

    def follow(self, plant: Plant) -> None:
        """Think about this plant from now on; whoever steps it calls this."""
        self._plant, self._envs, self._rolls = plant, None, {}

    def look_at(self, envs: np.ndarray | None) -> None:
        """Rows of the next snapshot are these environments; None for all."""
        self._envs = envs

    @cached_property
    def nominal(self) -> dict[str, float]:
        """The middle of the scenario's ranges."""
        return {name: 0.5 * (low + high) for name, (low, high) in self.scenario.plant.items()}

    def branch(self, row: int, copies: int, steps: int, future: np.ndarray | None = None) -> Roll:
        """Copies of the environment in a row of the snapshot; see `policies.base.Simulator`.

        Raises:
            BadInput: if no plant is followed: outside the simulator there is nothing to copy.
        """
        plant = self._plant
        if plant is None:
            raise BadInput("this policy thinks with copies of the simulated plant; use it with simulate or evaluate")
        key = (copies, steps * plant.control_ticks)
        if key not in self._rolls:
            self._rolls[key] = Roll(self.scenario, plant, *key)
        roll = self._rolls[key]
        roll.start(plant, row if self._envs is None else int(self._envs[row]))
        if future is not None:
            roll.guess(future, self.nominal)
        return roll
