"""Training gangs, one tick at a time: steps, checkpoints, restores, and work that is lost with a member."""

import math

from ..fleet.tables import DECODE
from .compiled import kernel
from .physics import hash_uniform, relative_rate
from .training_jobs import IDLE, RESTORING, RUNNING, WAIT_BINS, WAIT_HIGH_S, WAIT_LOW_S

STREAM_ARRIVAL = 10

TRAINING_COMPUTE_SHARE = 0.8
"""Compute-bound share of a training step's kernels (A): rates of .98 at 90 % and .70 at 50 % of a V100's power, as
Zeus measured (MODEL.md section 5), lie within what the drawn clocks and voltages then give."""

QUIET_FRAC = 0.1
"""Busy share while a gang writes or reads a checkpoint: the dip that meters see (A)."""

_BINS_PER_LOG = WAIT_BINS / math.log(WAIT_HIGH_S / WAIT_LOW_S)


@kernel
def train_tick(b, tick_s, time_s, measured, node_static, params, node, service, totals):
    """Advance every gang of environment `b` by one tick at the clocks of the last one."""
    pr = params[b]
    if pr.has_training == 0:
        return
    for n in range(node.shape[1]):
        if node[b, n].gang != n:
            continue
        lead = node[b, n]
        s = node_static[n].service
        sv = service[b, s]
        is_whole, is_leaving, phi, size = _members(b, n, node)
        if lead.job_state == IDLE:
            _start(b, s, time_s, is_whole and not is_leaving, measured, pr, lead, sv, totals)
        elif lead.job_state == RUNNING and not is_whole:
            # what was not written is gone
            _book(b, -lead.job_since_s, measured, lead, totals)
            if measured:
                totals[b].lost_work_node_s += lead.job_since_s * size
            lead.job_since_s = 0.0
            lead.job_state, lead.job_left_s = RESTORING, sv.job_restore_s
        elif lead.job_state == RUNNING and is_leaving:
            # a drain gives notice: the gang writes a checkpoint and waits
            lead.job_done_s += lead.job_since_s
            lead.job_since_s = 0.0
            lead.job_state, lead.job_left_s = RESTORING, sv.job_restore_s
        busy = 0.0
        if lead.job_state == RESTORING and is_whole and not is_leaving:
            busy = QUIET_FRAC
            lead.job_left_s -= tick_s
            if lead.job_left_s <= 0.0:
                lead.job_state, lead.job_left_s = RUNNING, 0.0
        elif lead.job_state == RUNNING:
            busy = _advance(b, tick_s, time_s, relative_rate(phi, TRAINING_COMPUTE_SHARE, pr.phi_mem), measured, lead,
                            sv, totals)  # fmt: skip
        for m in range(n, lead.gang_end):
            if node[b, m].gang == n:
                node[b, m].util_frac = busy
                node[b, m].batch = 0.0


@kernel(inline=True)
def _members(b, n, node):
    """Whether all of gang `n` serves, whether one is to leave, their slowest clock, and how many they are."""
    is_whole, is_leaving, phi, size = True, False, 1.0, 0
    for m in range(n, node[b, n].gang_end):
        nd = node[b, m]
        if nd.gang != n:
            continue
        size += 1
        phi = min(phi, nd.phi)
        if nd.down_s > 0.0 or nd.moving_s > 0.0 or nd.stage != DECODE or nd.gpus_down > 0:
            is_whole = False
        if nd.is_drained == 1:
            is_leaving = True
    return is_whole, is_leaving, phi, size


@kernel(inline=True)
def _start(b, s, time_s, is_ready, measured, pr, lead, sv, totals):
    """Give an idle gang the next job of its service, where one has arrived."""
    arrived_s = time_s
    if sv.job_interval_s > 0.0:
        # one arrival per interval, anywhere within it: in order, and no list of them to keep
        k = int(sv.job_next)
        arrived_s = (k + hash_uniform(pr.parameter_seed, k, s, STREAM_ARRIVAL)) * sv.job_interval_s
    if not is_ready or arrived_s > time_s:
        return
    sv.job_next += 1
    lead.job_state, lead.job_left_s = RESTORING, sv.job_restore_s
    lead.job_done_s = lead.job_since_s = 0.0
    lead.job_due_s = arrived_s + sv.job_deadline_s
    if measured and sv.job_interval_s > 0.0:
        wait_s = max(time_s - arrived_s, WAIT_LOW_S)
        totals[b].job_wait[min(int(math.log(wait_s / WAIT_LOW_S) * _BINS_PER_LOG), WAIT_BINS - 1)] += 1.0


@kernel(inline=True)
def _advance(b, tick_s, time_s, rate, measured, lead, sv, totals):
    """One tick of a running gang.

    Returns:
        Its busy share, which sets its draw: a square wave of computing and communicating, with dips.
    """
    if lead.job_left_s > 0.0:  # writing a checkpoint
        lead.job_left_s -= tick_s
        if lead.job_left_s <= 0.0:
            lead.job_left_s = 0.0
            _commit(b, measured, lead, totals)
        return QUIET_FRAC
    is_computing = lead.job_pos_s < sv.job_compute_s
    work_s = tick_s * rate if is_computing else tick_s  # links do not wait for the clock
    pos_s = lead.job_pos_s + work_s
    lead.job_pos_s = pos_s - sv.job_step_s * math.floor(pos_s / sv.job_step_s)
    lead.job_since_s += work_s
    _book(b, work_s, measured, lead, totals)
    if 0.0 < sv.job_work_s <= lead.job_done_s + lead.job_since_s:
        lead.job_done_s += lead.job_since_s
        lead.job_since_s, lead.job_state = 0.0, IDLE
        if measured:
            totals[b].jobs_completed += 1.0
            if sv.job_deadline_s > 0.0 and time_s > lead.job_due_s:
                totals[b].late_jobs += 1.0
    elif lead.job_since_s >= sv.job_checkpoint_s:
        lead.job_left_s = sv.job_write_s
        if lead.job_left_s <= 0.0:
            _commit(b, measured, lead, totals)
    return 1.0 if is_computing else sv.job_comm_power_frac


@kernel(inline=True)
def _commit(b, measured, lead, totals):
    """The checkpoint is written: nothing before it can be lost."""
    lead.job_done_s += lead.job_since_s
    lead.job_since_s = 0.0
    if measured:
        totals[b].checkpoints += 1.0


@kernel(inline=True)
def _book(b, work_s, measured, lead, totals):
    """Count what was trained; what is lost is taken back."""
    if measured:
        totals[b].trained_tok += work_s * lead.job_tok_s
        totals[b].trained_gpu_s += work_s * lead.job_gpus
