"""The batch jobs of a plant: their tables, and the one call per control interval that moves them."""

import copy
from typing import TYPE_CHECKING

import numpy as np

from ..fleet.arbiter.placement_cycle import Lists
from ..fleet.arbiter.placement_fit import WORK_ROWS, Site
from ..fleet.arbiter.placement_queues import Q_PARENT
from ..fleet.arbiter.placement_tables import queue_table, site_rows
from ..fleet.tables import NEVER_S
from .batch_dynamics import BatchRules, batch_step
from .batch_jobs import JOB, MAX_PODS, draw_jobs, in_order, most_jobs

if TYPE_CHECKING:
    from .plant import Plant


class Batch:
    """Jobs of every environment of a plant.

    Attributes:
        job: `batch_jobs.JOB`, shape (B, J).
        account: When each environment's jobs were last moved, and per queue the GPU-time held and deserved since the
            end of the warm-up, in hundredths of a GPU times seconds; shape (B,).
        queue_names: Of the queues, in the order of the accounts.
    """

    def __init__(self, plant: "Plant"):
        scenario, fleet = plant.scenario, plant.fleet
        spec = scenario.batch
        self._spec = spec
        self._queue, self.queue_names = queue_table([q.queue() for q in scenario.queues])
        queues, jobs, nodes = len(self.queue_names), most_jobs(spec, scenario.seconds), len(fleet.nodes)
        account = np.dtype([("last_s", "f8"), ("held", "f8", (queues,)), ("deserved", "f8", (queues,))], align=True)
        self.job, self.account = np.zeros((plant.batch, jobs), JOB), np.zeros(plant.batch, account)
        self._rules = BatchRules(
            fleet.service_index[spec.service],
            spec.restore_s,
            spec.leave_s,
            spec.checkpoint_s,
            spec.busy_frac,
            MAX_PODS,
        )
        node, domain = site_rows(fleet)
        self._members = np.flatnonzero(fleet.node_static["service"] == self._rules.service)
        most_gpus = int(fleet.node_static["gpus"].max())
        self._site = Site(
            node=node,
            domain=domain,
            work=np.zeros((WORK_ROWS, jobs), np.int64),
            pod=np.zeros((2, 2 * jobs * MAX_PODS), np.int64),
            used=np.zeros((2, nodes, most_gpus), np.int64),
            head_w=np.zeros((2, len(fleet.domains)), np.int64),
            wake_w=np.zeros((2, nodes), np.int64),
            picked=np.zeros((3, nodes), np.int64),
            seen=np.zeros((4, nodes), np.int64),
            counter=np.zeros(4, np.int64),
        )
        self._lists = Lists(
            order=np.zeros(jobs, np.int64),
            turn=np.zeros((2, queues), np.int64),
            victims=np.zeros(jobs, np.int64),
            span=np.zeros((2, queues), np.int64),
            cursor=np.zeros(queues, np.int64),
            chain=np.zeros(jobs, np.int64),
            failed=np.zeros((2, jobs), np.int64),
            failures=np.zeros(2, np.int64),
        )
        self._no_bids = np.zeros((plant.batch, nodes, 2), np.float32)

    def start_episode(self, plant: "Plant", b: int, seed: int) -> None:
        """Draw the jobs of an episode that was started, and free its nodes of endless gangs."""
        self.job[b] = draw_jobs(
            self._spec, self.queue_names, plant.fleet, plant.scenario.seconds, seed, plant.arrivals[b]
        )
        self.account[b] = 0
        node = plant.node[b]
        node["gang"][self._members] = -1
        node["job_state"][self._members] = 0
        node["util_frac"][self._members] = 0.0

    def become(self, other: "Batch", env: int, rows: slice) -> None:
        """Copy the jobs of one environment of another plant into some environments of this one."""
        self.job[rows], self.account[rows] = other.job[env], other.account[env]

    def first(self, count: int) -> "Batch":
        """The jobs of the first environments: views of these."""
        out = copy.copy(self)
        out.job, out.account, out._no_bids = self.job[:count], self.account[:count], self._no_bids[:count]
        return out

    def hide_future(self, now_s: np.ndarray) -> None:
        """Drop the jobs that have not arrived; `now_s` has shape (B,)."""
        arrival_s = self.job["arrival_s"]
        arrival_s[arrival_s > now_s[:, None]] = NEVER_S

    def forget_future(self, drawn: np.ndarray, now_s: float) -> None:
        """Replace the jobs that have not arrived by others: nobody knows them.

        Args:
            drawn: Jobs of other episodes, shape (B, J).
            now_s: Where every environment stands.
        """
        for rows, others in zip(self.job, drawn, strict=True):
            known = rows[rows["arrival_s"] <= now_s]
            coming = others[(others["arrival_s"] > now_s) & (others["arrival_s"] < NEVER_S)][: len(rows) - len(known)]
            rows[:] = in_order(np.concatenate([known, coming]), len(rows))

    def step(self, plant: "Plant", bid_node: np.ndarray | None = None) -> None:
        """Move the jobs of every environment up to now, and place.

        Args:
            plant: The plant, before its next control interval.
            bid_node: Node bids, shape (B, N, 2), of which the second orders nodes that receive work; none are neutral.
        """
        f, told = plant.fleet, plant.snapshot
        bids = self._no_bids if bid_node is None else bid_node
        for b in range(plant.batch):
            batch_step(
                b, f.timing.control_s, self._rules, f.node_static, f.domain_static, f.static, plant.params,
                plant.time_s, plant.node, plant.plan.node, told.node, told.domain, plant.totals, bids, self.job,
                self.account, self._queue, self._site, self._lists,
            )  # fmt: skip

    def fairness(self, env: int) -> np.ndarray:
        """GPU-time that each leaf queue held over what it deserved, where it deserved any."""
        parents = set(self._queue[Q_PARENT].tolist())
        leaves = [q for q in range(len(self.queue_names)) if q not in parents]
        held, deserved = self.account["held"][env][leaves], self.account["deserved"][env][leaves]
        return held[deserved > 0] / deserved[deserved > 0]
