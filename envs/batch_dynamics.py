"""Batch jobs, one control interval at a time: they compute, finish, break, leave, and new ones are placed.

The placement is the arbiter's own (`fleet.arbiter.placement`), fed with what is told, not with the truth.
"""

import math
from typing import NamedTuple

import numpy as np

from ..fleet.arbiter.placement_cycle import run_cycle
from ..fleet.arbiter.placement_fit import (
    ACCEPTS,
    BID,
    BID_STEPS,
    EVICTED,
    GPU_W,
    GPUS,
    OUTCOME,
    POD,
    POD_GPUS,
    POD_NODE,
    PODS,
    PREFER,
    PRIORITY,
    QUEUE,
    REQUIRE,
    SHARE,
    SKUS,
    STARTED,
    STATE,
    WORK_RANK,
)
from ..fleet.arbiter.placement_queues import ALLOCATED, FAIR
from ..fleet.arbiter.state import BANK_FRAC
from ..fleet.tables import DECODE, PARKED
from .batch_jobs import MAX_PODS
from .compiled import kernel
from .physics import relative_rate
from .training_dynamics import QUIET_FRAC, TRAINING_COMPUTE_SHARE
from .training_jobs import WAIT_BINS, WAIT_HIGH_S, WAIT_LOW_S

PENDING, RUNNING, LEAVING, OVER = range(4)
"""`fleet.placement.WorkState`."""

PLACED = 0
"""`fleet.placement.Wait.STARTED`."""

MAX_TRIES = 32
"""Jobs for which a cycle seeks victims."""

_BINS_PER_LOG = WAIT_BINS / math.log(WAIT_HIGH_S / WAIT_LOW_S)


class BatchRules(NamedTuple):
    """What stays over an episode."""

    service: int  # index of the service whose nodes run jobs
    restore_s: float
    leave_s: float
    checkpoint_s: float
    busy_frac: float
    max_pods: int


@kernel
def batch_step(
    b, control_s, rules, node_static, domain_static, fleet_static, params, time_s, node, plan_node, told_node,
    told_domain, totals, bid_node, job, account, queue, site, lists,
):  # fmt: skip
    """Advance the jobs of environment `b` by what passed since the last call, place new ones, and set nodes' use."""
    now_s, pr = time_s[b], params[b]
    measured = now_s >= pr.warmup_s
    passed_s = min(max(now_s - account[b].last_s, 0.0), control_s)
    account[b].last_s = now_s
    for j in range(job.shape[1]):
        if job[b, j].state == RUNNING or job[b, j].state == LEAVING:
            _advance(b, j, passed_s, now_s, measured, rules, node_static, pr, node, plan_node, totals, job)
    _read_nodes(b, rules, node_static, fleet_static, node, plan_node, told_node, bid_node, site)
    _read_headroom(b, rules, node_static, domain_static, told_node, told_domain, job, site)
    _read_jobs(b, now_s, job, site, lists)
    run_cycle(site, queue, lists, np.int64(1000.0 * now_s), job.shape[1] * MAX_PODS, MAX_TRIES)
    for j in range(job.shape[1]):
        _obey(b, j, now_s, measured, rules, totals, job, site)
    if measured:
        for q in range(queue.shape[1]):
            account[b].held[q] += queue[ALLOCATED, q] * passed_s
            account[b].deserved[q] += queue[FAIR, q] * passed_s
    _use_nodes(b, rules, node_static, node, job, site)


@kernel(inline=True)
def _advance(b, j, passed_s, now_s, measured, rules, node_static, pr, node, plan_node, totals, job):
    """One running or leaving job: its work, its end, or what became of its nodes."""
    row = job[b, j]
    is_whole, is_drained, phi = True, False, 1.0
    node_s = 0.0
    for p in range(row.pods):
        n = row.pod_node[p]
        nd = node[b, n]
        healthy = node_static[n].gpus - nd.gpus_down
        is_cut = nd.gpus_down > 0 and (row.pod_gpus[p] >> healthy) != 0
        if nd.down_s > 0.0 or nd.moving_s > 0.0 or nd.stage != DECODE or is_cut:
            is_whole = False
        is_drained |= plan_node[b, n].is_drained == 1
        phi = min(phi, nd.phi)
        node_s += row.share / (100.0 * node_static[n].gpus)
    gpus = row.pods * row.share / 100.0
    if not is_whole:
        # a gang dies with a member, and what was not written is lost
        if measured:
            totals[b].trained_gpu_s -= row.since_s * gpus
            totals[b].lost_work_node_s += row.since_s * node_s
        row.since_s, row.left_s = 0.0, 0.0
        row.state = PENDING
        return
    if row.state == LEAVING:
        row.left_s -= passed_s
        if row.left_s <= 0.0:
            row.done_s += row.since_s
            row.since_s = row.left_s = 0.0
            row.state = PENDING
        return
    restoring_s = min(row.left_s, passed_s)
    row.left_s -= restoring_s
    left_s = row.work_s - row.done_s - row.since_s
    work_s = min((passed_s - restoring_s) * relative_rate(phi, TRAINING_COMPUTE_SHARE, pr.phi_mem), left_s)
    row.since_s += work_s
    if measured:
        totals[b].trained_gpu_s += work_s * gpus
    if work_s >= left_s:
        row.state = OVER
        if measured:
            totals[b].jobs_completed += 1.0
    elif row.since_s >= rules.checkpoint_s:
        row.done_s += row.since_s
        row.since_s = 0.0
        if measured:
            totals[b].checkpoints += 1.0
    if is_drained and row.state == RUNNING:
        row.state, row.left_s = LEAVING, rules.leave_s


@kernel
def _read_nodes(b, rules, node_static, fleet_static, node, plan_node, told_node, bid_node, site):
    """Which nodes may take what: those that are heard, up, serving, sound and not drained or cordoned."""
    for n in range(len(node_static)):
        static, sn = node_static[n], told_node[b, n]
        for row in (GPUS, ACCEPTS, GPU_W, BID):
            site.node[row, n] = 0
        site.wake_w[0, n] = site.wake_w[1, n] = 0
        if static.service != rules.service:
            continue
        is_fresh = sn.is_silent == 0 and sn.age_s <= fleet_static[0].stale_s
        is_serving = sn.is_up == 1 and sn.stage == DECODE and sn.moving_s <= 0.0 and sn.xid == 0
        cmd = plan_node[b, n]
        # parked nodes are the arbiter's to wake
        is_kept = cmd.is_drained == 0 and cmd.is_cordoned == 0 and (cmd.stage == DECODE or cmd.seq == 0)
        site.node[GPUS, n] = static.gpus - node[b, n].gpus_down if sn.is_up == 1 else 0
        site.node[ACCEPTS, n] = 1 if is_fresh and is_serving and is_kept else 0
        # what a GPU in use needs above the lowest cap, for which the arbiter has the watts anyway
        site.node[GPU_W, n] = max(static.decode_floor_w - static.cap_min_w + static.gpus - 1, 0) // static.gpus
        bid = bid_node[b, n, 1]
        if np.isfinite(bid):
            site.node[BID, n] = np.int64(np.rint(min(max(bid, -1.0), 1.0) * BID_STEPS))


@kernel
def _read_headroom(b, rules, node_static, domain_static, told_node, told_domain, job, site):
    """Watts that every domain has left when each node has its floor and each GPU in use what it needs."""
    for d in range(len(domain_static)):
        static, sn = domain_static[d], told_domain[b, d]
        limit_w = min(min(sn.limit_w, sn.next_limit_w), static.peak_w)
        if static.mean_w > 0:
            limit_w = min(limit_w, np.int64((1.0 - BANK_FRAC) * static.mean_w))
        room_w = limit_w - static.unmanaged_w - static.non_gpu_max_w
        for n in range(static.node_start, static.node_end):
            row = node_static[n]
            if told_node[b, n].stage == PARKED:
                room_w -= row.parked_max_w
            elif row.service == rules.service:
                room_w -= row.cap_min_w
            else:
                room_w -= max(row.decode_floor_w, row.cap_min_w)
        site.head_w[0, d] = room_w
    site.used[:] = 0
    for j in range(job.shape[1]):
        row = job[b, j]
        if row.state == RUNNING or row.state == LEAVING:
            for p in range(row.pods):
                n, gpus = row.pod_node[p], row.pod_gpus[p]
                for g in range(site.used.shape[2]):
                    if (gpus >> g) & 1 == 1 and site.used[0, n, g] == 0:
                        site.used[0, n, g] = 1
                        d = node_static[n].domain
                        while d >= 0:
                            site.head_w[0, d] -= site.node[GPU_W, n]
                            d = domain_static[d].parent
    site.used[:] = 0
    for d in range(len(domain_static)):
        site.head_w[1, d] = site.head_w[0, d]


@kernel
def _read_jobs(b, now_s, job, site, lists):
    """Fill the work table, the queues' orders and the victims'."""
    work, jobs = site.work, job.shape[1]
    pending, running = 0, 0
    for q in range(lists.turn.shape[1]):
        lists.turn[0, q] = lists.turn[1, q] = 0
        lists.span[0, q] = lists.span[1, q] = 0
    for j in range(jobs):
        row = job[b, j]
        state = OVER if row.state == PENDING and row.arrival_s > now_s else row.state
        work[STATE, j] = state
        work[QUEUE, j], work[PRIORITY, j], work[PODS, j], work[SHARE, j] = row.queue, row.priority, row.pods, row.share
        work[REQUIRE, j], work[PREFER, j], work[SKUS, j], work[WORK_RANK, j] = row.require, row.prefer, -1, j
        work[STARTED, j] = np.int64(1000.0 * row.started_s)
        work[POD, j] = j * MAX_PODS
        if state == PENDING:
            lists.order[pending] = j
            pending += 1
            lists.turn[1, row.queue] += 1
        elif state in (RUNNING, LEAVING):
            for p in range(row.pods):
                site.pod[POD_NODE, j * MAX_PODS + p] = row.pod_node[p]
                site.pod[POD_GPUS, j * MAX_PODS + p] = row.pod_gpus[p]
        if state == RUNNING:
            i = running
            while i > 0 and _leaves_before(work, j, lists.victims[i - 1]):
                lists.victims[i] = lists.victims[i - 1]
                i -= 1
            lists.victims[i] = j
            running += 1
            lists.span[1, row.queue] += 1
    for q in range(1, lists.turn.shape[1]):  # counts become ends
        lists.turn[1, q] += lists.turn[1, q - 1]
        lists.span[1, q] += lists.span[1, q - 1]
        lists.turn[0, q], lists.span[0, q] = lists.turn[1, q - 1], lists.span[1, q - 1]


@kernel(inline=True)
def _leaves_before(work, a, b):
    """Order of victims: by queue, then lowest priority, then last started, then by id."""
    if work[QUEUE, a] != work[QUEUE, b]:
        return work[QUEUE, a] < work[QUEUE, b]
    if work[PRIORITY, a] != work[PRIORITY, b]:
        return work[PRIORITY, a] < work[PRIORITY, b]
    if work[STARTED, a] != work[STARTED, b]:
        return work[STARTED, a] > work[STARTED, b]
    return a < b


@kernel(inline=True)
def _obey(b, j, now_s, measured, rules, totals, job, site):
    """Start or evict a job as the cycle decided."""
    row, work = job[b, j], site.work
    if work[STATE, j] == PENDING and work[OUTCOME, j] == PLACED:
        for p in range(row.pods):
            row.pod_node[p] = site.pod[POD_NODE, work[POD, j] + p]
            row.pod_gpus[p] = site.pod[POD_GPUS, work[POD, j] + p]
        row.state, row.left_s, row.started_s = RUNNING, rules.restore_s, now_s
        if row.has_started == 0 and measured:
            wait_s = max(now_s - row.arrival_s, WAIT_LOW_S)
            totals[b].job_wait[min(int(math.log(wait_s / WAIT_LOW_S) * _BINS_PER_LOG), WAIT_BINS - 1)] += 1.0
        row.has_started = 1
    elif work[STATE, j] == RUNNING and work[EVICTED, j] != 0:
        row.state, row.left_s = LEAVING, rules.leave_s


@kernel
def _use_nodes(b, rules, node_static, node, job, site):
    """Write each node's busy share, which sets its draw: every GPU counts for what its jobs compute."""
    for n in range(len(node_static)):
        if node_static[n].service == rules.service:
            node[b, n].util_frac = 0.0
            node[b, n].batch = 0.0
    for j in range(job.shape[1]):
        row = job[b, j]
        if row.state == RUNNING or row.state == LEAVING:
            is_quiet = row.state == LEAVING or row.left_s > 0.0
            busy = QUIET_FRAC if is_quiet else rules.busy_frac
            for p in range(row.pods):
                n = row.pod_node[p]
                node[b, n].util_frac = min(node[b, n].util_frac + busy * row.share / (100.0 * node_static[n].gpus), 1.0)
