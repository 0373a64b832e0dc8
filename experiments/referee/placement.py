"""The judge of placements: reads what went into a scheduling cycle and what came out, and says what is broken.

It shares no code with the arbiter: fair shares are exact fractions, occupancies are dictionaries, and whether a gang
could have started is counted from the whole tree at once instead of searched for.
"""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ...fleet.placement import (
    CENT,
    GPU_MEMORY_MIB,
    NON_PREEMPTIBLE,
    Eviction,
    PlacementNodes,
    Placements,
    Queue,
    Wait,
    Workload,
    WorkState,
)
from ...fleet.topology import Fleet

ROOM_REASONS = (Wait.NO_ROOM, Wait.NO_POWER, Wait.LIKE_EARLIER)
INFINITE = 10**12


class PlacementJudge:
    """One cycle's inputs and decisions.

    Attributes:
        violations: What `judge` found, one line each.
    """

    def __init__(
        self,
        fleet: Fleet,
        queues: Sequence[Queue],
        workloads: Sequence[Workload],
        nodes: PlacementNodes,
        headroom_w: np.ndarray,
        now_s: float,
        result: Placements,
    ):
        self.fleet, self.nodes, self.now_s, self.result = fleet, nodes, now_s, result
        self.queues = {q.name: q for q in queues}
        self.work = {w.name: w for w in workloads}
        self.headroom_w = [int(w) for w in headroom_w]
        self.violations: list[str] = []
        self.started = {p.workload: p.on for p in result.started}
        self.nominated = {p.workload: p.on for p in result.nominated}
        self.evicted = {e.workload: e for e in result.evicted}
        self.shares = {w.name: self.share(w) for w in workloads}

    # ── what things are ──────────────────────────────────────────────────────────────────────────────────
    def share(self, w: Workload) -> int:
        """Hundredths of a GPU per pod."""
        holds = [m for m in (GPU_MEMORY_MIB[s] for s in self.products(w)) if m >= w.memory_mib]
        if w.gpu >= CENT or not holds:
            return w.gpu
        need = Fraction(CENT * w.memory_mib, min(holds))
        return max(w.gpu, need.numerator // need.denominator + (need.denominator > 1))

    def products(self, w: Workload) -> list[str]:
        """Products that can hold a pod."""
        names = {n.sku for n in self.fleet.nodes}
        return [s for s in names if GPU_MEMORY_MIB[s] >= w.memory_mib and (not w.skus or s in w.skus)]

    def amount(self, name: str) -> int:
        """Hundredths of GPUs of a whole gang."""
        return self.work[name].pods * self.shares[name]

    def line(self, queue: str | None) -> list[str]:
        """A queue and those above it."""
        out: list[str] = []
        while queue is not None:
            out.append(queue)
            queue = self.queues[queue].parent
        return out

    def under(self, node: int) -> list[int]:
        """Domains that feed a node."""
        return self.fleet.path(int(self.fleet.node_static["domain"][node]))

    def occupancy(self, gangs) -> dict[tuple[int, int], int]:
        """Hundredths taken of each GPU by gangs given as (name, pods)."""
        taken: dict[tuple[int, int], int] = defaultdict(int)
        for name, on in gangs:
            for pod in on:
                for g in pod.gpus:
                    taken[pod.node, g] += min(self.shares[name], CENT)
        return taken

    def running(self, *states: WorkState):
        return [(w.name, w.on) for w in self.work.values() if w.state in states]

    # ── judgement ────────────────────────────────────────────────────────────────────────────────────────
    def judge(self) -> list[str]:
        """Check every clause of guarantee 8."""
        self.check_gangs()
        self.check_gpus()
        self.check_watts()
        self.check_queues()
        self.check_evictions()
        self.check_order()
        self.check_idleness()
        return self.violations

    def blame(self, text: str) -> None:
        self.violations.append(text)

    def check_gangs(self) -> None:
        """All or nothing, on nodes that may take them, of products that hold them, in one domain."""
        for name, on in (*self.started.items(), *self.nominated.items()):
            w, share = self.work[name], self.shares[name]
            if w.state != WorkState.PENDING:
                self.blame(f"{name} was not pending")
            if name in self.started and name in self.nominated:
                self.blame(f"{name} both starts and waits")
            if len(on) != w.pods:
                self.blame(f"{name} has {len(on)} of {w.pods} pods")
            for pod in on:
                count = share // CENT if share >= CENT else 1
                if len(set(pod.gpus)) != count or len(pod.gpus) != count:
                    self.blame(f"{name} got GPUs {pod.gpus}, asked for {count}")
                if any(g >= self.nodes.gpus[pod.node] for g in pod.gpus):
                    self.blame(f"{name} got a GPU that node {pod.node} does not have")
                if not self.nodes.accepts[pod.node]:
                    self.blame(f"{name} went to node {pod.node}, which takes nothing new")
                if self.fleet.nodes[pod.node].sku not in self.products(w):
                    self.blame(f"{name} went to a product that cannot hold it")
            if w.require:
                common = set.intersection(*(set(self.under(p.node)) for p in on))
                if not any(self.fleet.domain_static["depth"][d] == w.require for d in common):
                    self.blame(f"{name} is not within one domain of depth {w.require}")

    def check_gpus(self) -> None:
        """No GPU is given twice: not now, with all that still runs, nor when the evicted are gone."""
        started, nominated = list(self.started.items()), list(self.nominated.items())
        now = self.occupancy(self.running(WorkState.RUNNING, WorkState.LEAVING) + started)
        stays = [(n, on) for n, on in self.running(WorkState.RUNNING) if n not in self.evicted]
        later = self.occupancy(stays + started + nominated)
        for when, taken in (("now", now), ("later", later)):
            for (node, g), cents in taken.items():
                if cents > CENT:
                    self.blame(f"GPU {g} of node {node} holds {cents} hundredths {when}")

    def check_watts(self) -> None:
        """What starts takes no more watts than every domain has left before; what is nominated, than it will have."""
        held = self.running(WorkState.RUNNING, WorkState.LEAVING)
        stays = [(n, on) for n, on in self.running(WorkState.RUNNING) if n not in self.evicted]
        started = list(self.started.items())
        both = started + list(self.nominated.items())
        for new, kept in ((started, held), (both, stays)):
            before, then = set(self.occupancy(held)), set(self.occupancy(kept + new))
            woken = {pod.node for _, on in new for pod in on}
            for d, room_w in enumerate(self.headroom_w):
                gain_w = sum(int(self.nodes.gpu_w[n]) for n, _ in then - before if d in self.under(n))
                gain_w -= sum(int(self.nodes.gpu_w[n]) for n, _ in before - then if d in self.under(n))
                gain_w += sum(int(self.nodes.wake_w[n]) for n in woken if d in self.under(n))
                if gain_w > max(0, room_w):
                    self.blame(f"domain {d}: {gain_w} W start into {room_w} W")

    def allocated(self, names) -> dict[str, int]:
        """Hundredths of GPUs by queue, those above included."""
        out: dict[str, int] = defaultdict(int)
        for name in names:
            for q in self.line(self.work[name].queue):
                out[q] += self.amount(name)
        return out

    def check_queues(self) -> None:
        """Limits hold, and what cannot be evicted stays within quotas, in every queue that gained."""
        stays = [n for n, _ in self.running(WorkState.RUNNING) if n not in self.evicted]
        gains = [*self.started, *self.nominated]
        after, gained = self.allocated(stays + gains), self.allocated(gains)
        firm = self.allocated(n for n in stays + gains if self.work[n].priority >= NON_PREEMPTIBLE)
        firm_gained = self.allocated(n for n in gains if self.work[n].priority >= NON_PREEMPTIBLE)
        for name, q in self.queues.items():
            if gained[name] and 0 <= q.limit < after[name]:
                self.blame(f"queue {name} holds {after[name]} of at most {q.limit}")
            if firm_gained[name] and 0 <= q.quota < firm[name]:
                self.blame(f"queue {name} holds {firm[name]} that cannot be evicted, quota {q.quota}")

    def fair_shares(self) -> dict[str, Fraction]:
        """What each queue deserves, exactly."""
        demand: dict[str, int] = defaultdict(int)
        for w in self.work.values():
            runs = w.state == WorkState.RUNNING and not w.is_broken
            if runs or w.state == WorkState.PENDING:
                demand[w.queue] += self.amount(w.name)
        fair: dict[str, Fraction] = {}
        self._wants: dict[str, int] = {}
        for name in self.queues:
            self._want(name, demand)
        self._split(None, Fraction(CENT * int(self.nodes.gpus.sum())), fair)
        return fair

    def _want(self, name: str, demand: dict[str, int]) -> int:
        children = [q.name for q in self.queues.values() if q.parent == name]
        own = sum(self._want(c, demand) for c in children) if children else demand[name]
        limit = self.queues[name].limit
        self._wants[name] = own if limit < 0 else min(own, limit)
        return self._wants[name]

    def _split(self, parent: str | None, total: Fraction, fair: dict[str, Fraction]) -> None:
        children = sorted((q for q in self.queues.values() if q.parent == parent), key=lambda q: self._path(q.name))
        left = total
        for q in children:
            quota = q.quota if q.quota >= 0 else max(left, Fraction(0))
            fair[q.name] = min(Fraction(self._wants[q.name]), Fraction(quota))
            left -= fair[q.name]
        while left > 0:
            hungry = [q for q in children if fair[q.name] < self._wants[q.name] and q.weight > 0]
            if not hungry:
                break
            top = max(q.priority for q in hungry)
            hungry = [q for q in hungry if q.priority == top]
            weights = sum(q.weight for q in hungry)
            given = {q.name: min(left * q.weight / weights, self._wants[q.name] - fair[q.name]) for q in hungry}
            for name, part in given.items():
                fair[name] += part
            left -= sum(given.values())
        for q in children:
            self._split(q.name, fair[q.name], fair)

    def _path(self, name: str) -> list[str]:
        return self.line(name)[::-1]

    def check_evictions(self) -> None:
        """Who leaves may be made to, for somebody who may ask, and the order of saturation stays."""
        fair = self.fair_shares()
        slack = len(self.queues) + 1  # the arbiter deals in whole hundredths
        for name, share in fair.items():
            if abs(self.result.fair_share[name] - share) > slack:
                self.blame(f"queue {name} deserves {float(share):.1f}, was given {self.result.fair_share[name]}")
        # preemption comes after reclaiming, and is not held to its rules
        # reclaims come one after the other: what is bounded is what either side held when this one came
        preemptors = {e.beneficiary for e in self.evicted.values() if e.reason == Eviction.PREEMPTED}
        gains = [n for n in (*self.started, *self.nominated) if n not in preemptors]
        runs = [w.name for w in self.work.values() if w.state == WorkState.RUNNING and not w.is_broken]
        before = self.allocated(runs + gains)
        stays = [n for n in runs if n not in self.evicted]
        for name, e in self.evicted.items():
            w = self.work[name]
            if w.state != WorkState.RUNNING:
                self.blame(f"{name} is evicted, but does not run")
            if e.reason == Eviction.BROKEN:
                if not w.is_broken:
                    self.blame(f"{name} is called broken")
                continue
            if e.beneficiary not in self.nominated:
                self.blame(f"{name} leaves for {e.beneficiary}, which is not nominated")
                continue
            taker, giver = self.work[e.beneficiary].queue, w.queue
            ran_s = self.now_s - w.started_s
            if w.priority >= NON_PREEMPTIBLE:
                self.blame(f"{name} cannot be evicted")
            if e.reason == Eviction.PREEMPTED:
                if taker != giver or self.work[e.beneficiary].priority <= w.priority:
                    self.blame(f"{name} is preempted from outside its queue or for no higher priority")
                if ran_s < self.queues[giver].preempt_min_s:
                    self.blame(f"{name} is preempted after {ran_s} s")
                continue
            if ran_s < self.queues[giver].reclaim_min_s:
                self.blame(f"{name} is reclaimed after {ran_s} s")
            least = self.allocated([*stays, *self.started, e.beneficiary])
            gone = [n for n, other in self.evicted.items() if other.beneficiary == e.beneficiary]
            most = self.allocated(n for n in runs + gains if n not in gone)
            self._check_reclaim(name, taker, giver, fair, before, least, most, slack)
        for w in self.work.values():
            if w.is_broken and w.state == WorkState.RUNNING and w.name not in self.evicted:
                self.blame(f"{w.name} runs on although it is broken")

    def _check_reclaim(self, name, taker, giver, fair, before, least, most, slack) -> None:
        above = set(self.line(taker)) & set(self.line(giver))
        a = next((q for q in reversed(self.line(taker)) if q not in above), None)
        b = next((q for q in reversed(self.line(giver)) if q not in above), None)
        if a is None or b is None:
            self.blame(f"{name} is reclaimed by its own queue")
            return
        quota_a, quota_b = (INFINITE if self.queues[q].quota < 0 else self.queues[q].quota for q in (a, b))
        if before[b] <= fair[b] - slack:
            self.blame(f"{name} is reclaimed from {b}, which is below its fair share")
        if least[a] > max(fair[a], quota_a) + slack:
            self.blame(f"{a} reclaims beyond what it deserves")
        in_quota = least[a] <= quota_a and before[b] > quota_b
        saturated = (least[a] - slack) * max(fair[b], 1) <= (most[b] + slack) * max(fair[a], 1)
        if not in_quota and not saturated:
            self.blame(f"{name}: {a} is then more saturated than {b}, from which it reclaims")

    def check_order(self) -> None:
        """Nothing as large overtakes what found no room in its queue; in strict queues nothing does."""
        pending = [w for w in self.work.values() if w.state == WorkState.PENDING]
        for first in pending:
            reason = self.result.waits.get(first.name)
            if reason is None:
                if first.name not in self.started:
                    self.blame(f"{first.name} neither starts nor has a reason to wait")
                continue
            for other in pending:
                if other.queue != first.queue or self._turn(other) <= self._turn(first):
                    continue
                if other.name not in self.started:
                    continue
                if self.queues[first.queue].is_strict:
                    self.blame(f"{other.name} overtakes {first.name} in a strict queue")
                if reason in ROOM_REASONS and self._is_larger(other, first):
                    self.blame(f"{other.name} overtakes {first.name}, which is no larger")

    def _turn(self, w: Workload) -> tuple:
        return -w.priority, round(1000 * w.submitted_s), w.name

    def _is_larger(self, a: Workload, b: Workload) -> bool:
        return (
            a.pods >= b.pods
            and self.shares[a.name] >= self.shares[b.name]
            and a.require >= b.require
            and set(self.products(a)) <= set(self.products(b))
        )

    def check_idleness(self) -> None:
        """No gang waits for room that is there, where a GPU costs the same everywhere and nothing is being moved."""
        is_plain = len(set(self.nodes.gpu_w)) == 1 and not np.any(self.nodes.wake_w)
        moving = self.nominated or self.evicted or self.running(WorkState.LEAVING)
        if not is_plain or moving:
            return
        held = self.running(WorkState.RUNNING)
        taken = self.occupancy(held + list(self.started.items()))
        new = set(self.occupancy(self.started.items())) - set(self.occupancy(held))
        room_w = list(self.headroom_w)
        for node, _ in new:
            for d in self.under(node):
                room_w[d] -= int(self.nodes.gpu_w[node])
        for w in self.work.values():
            if self.result.waits.get(w.name) in ROOM_REASONS and self.fits(w, taken, room_w):
                self.blame(f"{w.name} waits although it fits")

    def fits(self, w: Workload, taken: dict[tuple[int, int], int], room_w: list[int]) -> bool:
        """Whether some domain of the depth that a gang requires has room for all its pods, counted down the tree."""
        share, gpu_w = self.shares[w.name], int(self.nodes.gpu_w[0])
        static = self.fleet.domain_static
        slots, pods = defaultdict(int), defaultdict(int)  # on GPUs in use; GPUs or groups of them that are idle
        for n, node in enumerate(self.fleet.nodes):
            if not self.nodes.accepts[n] or node.sku not in self.products(w):
                continue
            used = [taken.get((n, g), 0) for g in range(int(self.nodes.gpus[n]))]
            d = int(self.fleet.node_static["domain"][n])
            if share < CENT:
                slots[d] += sum((CENT - u) // share for u in used if u)
                pods[d] += used.count(0)
            else:
                pods[d] += used.count(0) // (share // CENT)
        each = max(1, share // CENT)  # GPUs that one unit takes

        def units(d: int) -> int:
            below = pods[d] + sum(units(int(c)) for c in np.flatnonzero(static["parent"] == d))
            return below if gpu_w == 0 else min(below, max(0, room_w[d]) // (gpu_w * each))

        def all_slots(d: int) -> int:
            return slots[d] + sum(all_slots(int(c)) for c in np.flatnonzero(static["parent"] == d))

        per = CENT // share if share < CENT else 1
        for d in np.flatnonzero(static["depth"] == w.require):
            capacity = units(int(d))
            for a in self.fleet.path(int(d))[1:]:
                if gpu_w:
                    capacity = min(capacity, max(0, room_w[a]) // (gpu_w * each))
            if all_slots(int(d)) + per * capacity >= w.pods:
                return True
        return False
