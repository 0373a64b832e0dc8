"""Requests one by one through k prefill replicas, KV transfer and decode replicas with continuous batching.

Rules are the plant's: a central FCFS queue before prefill, early rejection of requests that would wait too long, a
decode replica that admits what fits its KV memory and, where the switch is on, its ITL target. A request takes a place
in a batch between two iterations; every iteration takes the plant's step time of the batch and contexts of that moment.
"""

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ...envs.serving_dynamics import BACKLOG_SHARE, TIMEOUT_TARGETS
from .laws import Laws
from .requests import Requests

ADMIT_ITL_SHARE = 0.97
"""Share of the ITL target that an admission may fill, as in `envs.serving_dynamics`."""


@dataclass(frozen=True)
class Service:
    """One service of the replay.

    Attributes:
        prefill: Prefill replicas.
        decode: Decode replicas.
        ttft_s: Target.
        itl_s: Target, of a request's mean ITL.
        early_rejection: Whether requests that would wait too long are turned away.
        slo_aware: Whether a decode replica admits within its ITL target alone.
    """

    prefill: int
    decode: int
    ttft_s: float
    itl_s: float
    early_rejection: bool = True
    slo_aware: bool = True


@dataclass
class Outcome:
    """What became of the requests of the measured time.

    Attributes:
        ttft_s: Of admitted requests, arrival to a place in a decode batch.
        step_s: Length of every decode iteration.
        step_tok: Tokens that it made.
        offered, rejected, good, late: Requests.
        good_tok: Prompt and output tokens of the good ones.
        seconds: Measured time.
    """

    seconds: float
    ttft_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    step_tok: list[int] = field(default_factory=list)
    offered: int = 0
    rejected: int = 0
    good: int = 0
    late: int = 0
    good_tok: float = 0.0

    def figures(self) -> dict[str, float]:
        """The figures that the plant reports as well."""
        ttft = np.array(self.ttft_s) if self.ttft_s else np.array([np.nan])
        step, tok = np.array(self.step_s), np.array(self.step_tok, float)
        order = np.argsort(step)
        below = np.cumsum(tok[order]) / tok.sum()
        resolved = self.good + self.late + self.rejected
        return {
            "ttft_p50_s": float(np.quantile(ttft, 0.5)),
            "ttft_p99_s": float(np.quantile(ttft, 0.99)),
            "itl_mean_s": float(step @ tok / tok.sum()),
            "itl_p99_s": float(step[order][np.searchsorted(below, 0.99)]),
            "goodput_tok_s": self.good_tok / self.seconds,
            "attainment": self.good / resolved if resolved else np.nan,
            "reject_frac": self.rejected / max(self.offered, 1),
        }


class _Replica:
    """One decode replica: its batch as a heap of the iterations in which requests end."""

    __slots__ = ("batch", "context", "ends", "iteration", "joining", "running", "step_s")

    def __init__(self) -> None:
        self.batch = self.running = self.iteration = 0
        self.context = 0.0  # tokens of context in the batch
        self.ends: list[tuple[int, int]] = []
        self.joining: list[int] = []
        self.step_s = 0.0


_READY, _STEP = 0, 1


class Replay:
    """One run; `run` may be called once."""

    def __init__(self, service: Service, laws: Laws, requests: Requests, warmup_s: float = 0.0):
        self.service, self.laws, self.requests, self.warmup_s = service, laws, requests, warmup_s
        self.free_at_s = [0.0] * service.prefill
        self.replicas = [_Replica() for _ in range(service.decode)]
        self.ready: deque[int] = deque()
        self.events: list[tuple[float, int, int]] = []
        self.outcome = Outcome(requests.seconds - warmup_s)
        self.start_s = np.zeros(len(requests.t_s))
        self.prompt = requests.prompt_tok.tolist()
        self.output = requests.output_tok.tolist()
        self.done_rps = 0.0
        self.done_at_s = 0.0

    def run(self) -> Outcome:
        """Play all requests that arrive before the end; what is still in flight then does not count."""
        end_s = self.requests.seconds
        for r, t_s in enumerate(self.requests.t_s.tolist()):
            while self.events and self.events[0][0] <= t_s:
                self._advance()
            self._arrive(r, t_s)
        while self.events and self.events[0][0] < end_s:
            self._advance()
        return self.outcome

    def _advance(self) -> None:
        now_s, kind, index = heapq.heappop(self.events)
        if kind == _READY:
            self.ready.append(index)
            self._admit(now_s)
        else:
            self._end_step(index, now_s)

    def _arrive(self, r: int, now_s: float) -> None:
        """Early rejection and the prefill queue: first come, first served, so the wait is known at the door."""
        out, prompt = self.outcome, self.prompt[r]
        is_measured = now_s >= self.warmup_s
        out.offered += is_measured
        begin_s = max(self.free_at_s[0], now_s)
        work_s, transfer_s = self.laws.prompt_s(prompt), self.laws.transfer_s(prompt)
        ready_wait_s = len(self.ready) / max(self._completions_rps(now_s), 1e-3) if self.ready else 0.0
        targets = BACKLOG_SHARE if self.service.early_rejection else TIMEOUT_TARGETS
        if begin_s - now_s > targets * self.service.ttft_s - work_s - transfer_s - ready_wait_s:
            out.rejected += is_measured
            return
        heapq.heapreplace(self.free_at_s, begin_s + work_s)
        heapq.heappush(self.events, (begin_s + work_s + transfer_s, _READY, r))

    def _completions_rps(self, now_s: float) -> float:
        """Completions per second, a mean over 3 s as in the plant."""
        self.done_rps *= np.exp(-(now_s - self.done_at_s) / 3.0)
        self.done_at_s = now_s
        return float(self.done_rps)

    def _admit(self, now_s: float) -> None:
        """Give ready requests places, each on the emptiest replica that has one."""
        while self.ready:
            r = self.ready[0]
            replica = min(self.replicas, key=_batch_of)
            if not self._has_room(replica, self.prompt[r]):
                return
            self.ready.popleft()
            self.start_s[r] = now_s
            if self.requests.t_s[r] >= self.warmup_s:
                self.outcome.ttft_s.append(now_s - self.requests.t_s[r])
            replica.joining.append(r)
            replica.batch += 1
            replica.context += self.prompt[r]
            if not replica.running:
                self._begin_step(self.replicas.index(replica), now_s)

    def _has_room(self, replica: _Replica, prompt: float) -> bool:
        if replica.batch == 0:
            return True
        batch, context = replica.batch + 1, replica.context + prompt
        if context > self.laws.kv_tokens:
            return False
        if not self.service.slo_aware:
            return True
        return self.laws.step_s(batch, context / batch) <= ADMIT_ITL_SHARE * self.service.itl_s

    def _begin_step(self, index: int, now_s: float) -> None:
        replica = self.replicas[index]
        for r in replica.joining:
            heapq.heappush(replica.ends, (replica.iteration + int(self.output[r]), r))
        replica.joining.clear()
        replica.running = replica.batch
        if replica.batch:
            replica.step_s = self.laws.step_s(replica.batch, replica.context / replica.batch)
            heapq.heappush(self.events, (now_s + replica.step_s, _STEP, index))

    def _end_step(self, index: int, now_s: float) -> None:
        replica, out = self.replicas[index], self.outcome
        replica.iteration += 1
        replica.context += replica.running
        if now_s >= self.warmup_s:
            out.step_s.append(replica.step_s)
            out.step_tok.append(replica.running)
        has_ended = False
        while replica.ends and replica.ends[0][0] <= replica.iteration:
            self._complete(replica, heapq.heappop(replica.ends)[1], now_s)
            has_ended = True
        if has_ended and self.ready:
            self._admit(now_s)
        self._begin_step(index, now_s)

    def _complete(self, replica: _Replica, r: int, now_s: float) -> None:
        replica.batch -= 1
        replica.context -= self.prompt[r] + self.output[r]
        self.done_rps = self._completions_rps(now_s) + 1.0 / 3.0
        if now_s < self.warmup_s:
            return
        ttft_s = self.start_s[r] - self.requests.t_s[r]
        itl_s = (now_s - self.start_s[r]) / self.output[r]
        if ttft_s <= self.service.ttft_s and itl_s <= self.service.itl_s:
            self.outcome.good += 1
            self.outcome.good_tok += self.prompt[r] + self.output[r]
        else:
            self.outcome.late += 1


def _batch_of(replica: _Replica) -> int:
    return replica.batch
