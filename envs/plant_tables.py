"""The plant's truth as record tables; what the arbiter is told of it is `fleet.tables`.

Shapes as there: (B, N) nodes, (B, D) domains, (B, S) services, (B,) environments. A node's GPUs share one stage,
one cap and one clock.
"""

import numpy as np

from .events import MAX_PLANT_EVENTS
from .training_jobs import WAIT_BINS
from .weather import WEATHER_POINTS

WAIT_POINTS = 8
"""Waits at which the work ahead of a prompt is tabled (waiting.py)."""


def _dtype(*fields: tuple) -> np.dtype:
    return np.dtype(list(fields), align=True)


PLANT_PARAMS = _dtype(
    # uncertain physics, drawn per environment from the scenario's ranges
    ("v_min", "f8"),
    ("phi_knee", "f8"),
    ("kappa", "f8"),
    ("phi_mem", "f8"),
    ("power_scale", "f8"),
    ("non_gpu_frac", "f8"),  # true / declared non-GPU draw
    ("cap_latency_low_s", "f8"),
    ("cap_latency_high_s", "f8"),
    ("lost_write_frac", "f8"),
    ("meter_bias_frac", "f8"),
    ("role_move_s", "f8"),
    ("inlet_c", "f8"),
    ("firmware_overshoot_frac", "f8"),
    ("dropout_frac", "f8"),
    ("fault_scale", "f8"),
    # switches
    ("early_rejection", "i8"),
    ("slo_aware_admission", "i8"),
    # what clients and caches do
    ("prefix_hit_frac", "f8"),  # share of a prompt's tokens whose KV is cached
    ("retry_frac", "f8"),  # share of the rejected that come back, once
    ("retry_after_s", "f8"),
    # draws that the kernels make
    ("fault_seed", "i8"),
    ("parameter_seed", "i8"),
    ("nominal_w", "f8"),  # the site's nominal root limit: the MW of tokens per MW
    ("warmup_s", "f8"),
    ("rise_scale", "f8"),
    # what happens (world.py)
    ("hot_spot_c", "f8"),
    ("weather_step_s", "f8"),  # between two of weather_c; 0: the inlet stays
    ("weather_c", "f8", (WEATHER_POINTS,)),
    ("has_training", "i8"),
    ("event_count", "i8"),
    ("event_kind", "i8", (MAX_PLANT_EVENTS,)),  # an `event_dynamics` code
    ("event_domain", "i8", (MAX_PLANT_EVENTS,)),
    ("event_start", "i8", (MAX_PLANT_EVENTS,)),  # ticks
    ("event_end", "i8", (MAX_PLANT_EVENTS,)),
    ("event_value", "f8", (MAX_PLANT_EVENTS,)),
)
PLANT_NODE = _dtype(
    # singles suffice for what is measured in watts, degrees and seconds; ordered by how often they are touched, so that
    # a tick without faults reads a third of a record, and wide fields first in each group, so that no byte is padding;
    # every tick
    ("pending_seq", "i8"),
    ("ack_seq", "i8"),
    ("down_s", "f8"),  # until repaired; 0: up
    ("cap_w", "i4"),  # in force in the driver
    ("pending_w", "i4"),  # written, not yet in force
    ("pending_s", "f4"),  # until it is; negative: nothing pending
    ("ceiling", "f4"),
    ("stage", "i4"),
    ("agent_down", "i4"),  # the host is gone, not only a GPU
    ("is_drained", "i4"),
    ("xid", "i4"),
    ("mute_frac", "f4"),  # telemetry lost by an event
    ("is_training", "i4"),
    # every step: columns of tiles.py within it
    ("part_down_s", "f8"),
    ("gpus_down", "i8"),  # GPUs in reset while the node serves on with the tensor-parallel groups that are left
    ("moving_s", "f4"),
    ("phi", "f4"),
    ("temp_c", "f4"),
    ("hbm_c", "f4"),  # memory: above thermal.HBM_HOT_C it is slower
    ("batch", "f4"),  # decoding requests on the node
    ("util_frac", "f4"),
    ("gpu_w", "f4"),  # draw of all its GPUs
    ("demand_w", "f4"),
    ("non_gpu_w", "f4"),
    ("heat_c_per_w", "f4"),  # per watt of the node's GPUs
    ("cool_frac", "f4"),  # of the way to balance in one tick
    ("hot_spot_c", "f4"),
    ("wear_c", "f4"),  # extra degrees of a GPU that is about to fail
    ("fault_xid", "i4"),  # last fault's code, whether the arbiter is told of it or not
    # faults (faults.py)
    ("fault_margin", "f8"),  # unit exponential left before the next fault that heat hastens
    ("fault_rate", "f8"),  # per second: lemons are worse
    ("fault_cold_margin", "f8"),  # and before the next of those that heat does not
    ("fault_cold_rate", "f8"),
    ("fault_next", "i4"),  # class of the next hot fault
    ("has_shadow", "i4"),  # it can be seen coming
    ("ecc_count", "f4"),  # corrected memory errors since reset
    ("fabric", "i4"),  # nodes of one rack-scale NVLink domain share a number; 0: none
    # training (training_dynamics.py); jobs are on the first node of their gang
    ("gang", "i4"),  # index of its first node; -1: none
    ("gang_end", "i4"),  # one past its last
    ("job_state", "i4"),
    ("job_tok_s", "f4"),
    ("job_gpus", "f4"),
    ("job_pos_s", "f4"),  # within a step
    ("job_since_s", "f4"),  # work since the last checkpoint
    ("job_done_s", "f4"),  # work within checkpoints
    ("job_left_s", "f4"),  # of a write or a restore
    ("job_due_s", "f4"),
)
PLANT_SERVICE = _dtype(
    ("queue_req", "f8"),  # waiting for prefill
    ("queue_tok", "f8"),
    ("queue_ok", "f8"),  # of them, expected to meet TTFT
    ("queue_out_tok", "f8"),
    ("ready_req", "f8"),  # prefilled, waiting for a decode slot
    ("ready_tok", "f8"),
    ("ready_ok", "f8"),
    ("ready_out_tok", "f8"),
    ("active", "f8"),  # decoding
    ("active_tok", "f8"),
    ("active_ok", "f8"),
    ("active_out_tok", "f8"),
    ("retry_req", "f8"),  # rejected once, will come back
    ("retry_tok", "f8"),
    ("retry_out_tok", "f8"),
    ("itl_request_s", "f8"),  # mean ITL over the life of the requests that complete now
    ("decode_req_s", "f8"),  # completions per second, a few seconds' mean
    ("context", "f8"),  # mean context of decoding requests
    # load as waiting.SMOOTHING_S smooths it: sums that forget
    ("load_s", "f8"),
    ("load_req", "f8"),
    ("load_tok", "f8"),
    # where this tick's TTFT samples lie (waiting.py), and working memory
    ("length_place", "f8"),
    ("wait_place", "f8"),
    ("wait_log", "f8", (WAIT_POINTS,)),
    # sums of this tick, for telemetry
    ("tick_req", "f8"),
    ("tick_prompt_tok", "f8"),
    ("tick_out_tok", "f8"),
    ("tick_rejected", "f8"),
    ("tick_ttft_ok", "f8"),
    ("tick_ttft_s", "f8"),
    ("tick_itl_ok", "f8"),
    ("tick_itl_s", "f8"),
    ("tick_tok", "f8"),
    ("backlog_s", "f8"),
    ("kv_frac", "f8"),
    # conservation, since reset: offered = served + rejected + lost + queued + ready + active + waiting to retry
    ("offered_tok", "f8"),
    ("served_tok", "f8"),
    ("late_tok", "f8"),  # of the served, those that missed a target
    ("rejected_tok", "f8"),
    ("lost_tok", "f8"),
    # a training service's jobs (training_jobs.TrainingSpec)
    ("job_step_s", "f8"),
    ("job_compute_s", "f8"),
    ("job_comm_power_frac", "f8"),
    ("job_checkpoint_s", "f8"),
    ("job_write_s", "f8"),
    ("job_restore_s", "f8"),
    ("job_work_s", "f8"),
    ("job_deadline_s", "f8"),
    ("job_interval_s", "f8"),
    ("job_next", "i8"),
)
PLANT_DOMAIN = _dtype(
    ("power_w", "f8"),  # mean of the last physics step
    ("peak_w", "f8"),  # no instant of that step was above this
    ("meter_ws", "f8"),
    ("heat", "f8"),
    ("is_tripped", "i8"),
    ("dark_s", "f8"),  # until a person has reset the breaker that tripped above it; 0: it has power
    ("rating_w", "f8"),  # 0: no breaker
    ("constant_s", "f8"),
    ("full_rating_w", "f8"),  # with all its feeds
    ("meter_state", "i8"),  # an `event_dynamics` code
    ("meter_bias", "f8"),
)
TOTALS = _dtype(
    # since the end of the warm-up
    ("seconds", "f8"),
    ("offered_req", "f8"),
    ("good_req", "f8"),
    ("late_req", "f8"),
    ("rejected_req", "f8"),
    ("lost_req", "f8"),
    ("retried_req", "f8"),  # came back after a rejection; offered counts them once
    ("preempted_req", "f8"),  # lost their place in decode to want of KV memory, and were prefilled again
    ("good_tok", "f8"),
    ("late_tok", "f8"),
    ("rejected_tok", "f8"),
    ("lost_tok", "f8"),
    ("offered_tok", "f8"),
    ("energy_j", "f8"),
    ("violation_ws", "f8"),
    ("overshoot_ws", "f8"),
    ("breaker_trips", "f8"),
    ("cap_changes", "f8"),
    ("interventions", "f8"),
    ("correction", "f8"),
    ("drained_node_s", "f8"),
    ("down_node_s", "f8"),
    ("repairs", "f8"),
    ("peak_frac", "f8"),  # largest root power / limit in force
    ("trained_tok", "f8"),
    ("trained_gpu_s", "f8"),  # in seconds of a GPU at full clock
    ("lost_work_node_s", "f8"),  # trained since a checkpoint and lost
    ("checkpoints", "f8"),
    ("jobs_completed", "f8"),
    ("late_jobs", "f8"),
    ("job_wait", "f8", (WAIT_BINS,)),  # histogram
)

HISTOGRAM_BINS = 160
HISTOGRAM_LOW_S = 1e-3
HISTOGRAM_HIGH_S = 1e3
"""TTFT and ITL histograms: logarithmic bins of 9 % from 1 ms to 1,000 s."""
