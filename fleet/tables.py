"""The record tables that cross every seam: one declaration per table, units in the names.

A table is a NumPy structured array, so that one value crosses from Python into a compiled kernel, one
`tobytes()` puts it on the wire, and `table["power_w"]` is a view. Shapes are (B, N) for nodes, (B, D) for
power domains, (B, S) for services, (B, P) for pools and (B,) for the fleet, with B environments in the
simulator and B = 1 in the service. Watts of limits, caps and leases are int64, so that sums are exact.
"""

import numpy as np

PREFILL, DECODE, PARKED = 0, 1, 2
"""Stages of a node. Pools are (service, PREFILL) and (service, DECODE): pool index = 2 * service + stage."""

DECODED_SHARE = 0.8
"""Of their output, what decoding requests hold in their context beside the prompt: (1 + CV^2) / 2, since a look into a
batch meets long answers more often. CV 0.77 is what `envs.load` gives outputs by default."""

STAGES = 2
"""Stages that serve; PARKED serves nothing."""

DISAGGREGATED, AGGREGATED, TRAINING = 0, 1, 2
"""Kinds of service: apart stages for prefill and decode; both on every node; a synchronous training gang. The last
two run on DECODE nodes alone, so that no node moves between stages: it serves or it is parked."""

SERVICE_KINDS = ("disaggregated", "aggregated", "training")
"""Their names in site files, by index."""

UNKNOWN_W = -1
"""A cap that was never read back."""

NEVER_S = 1e18
"""A time that does not come: no announced change, no sample yet."""


def _dtype(*fields: tuple[str, str]) -> np.dtype:
    return np.dtype(list(fields), align=True)


# ── static: what the site file says ─────────────────────────────────────────────────────────────────────
NODE_STATIC = _dtype(
    ("gpus", "i8"),
    ("domain", "i8"),  # index of the power domain that feeds the node
    ("failure_domain", "i8"),
    ("service", "i8"),
    ("stage", "i8"),  # stage at start
    ("sku", "i8"),
    ("cap_min_w", "i8"),  # lowest legal cap of the node: all its GPUs
    ("cap_max_w", "i8"),  # highest legal cap, which is also what a rebooted node may draw
    ("decode_floor_w", "i8"),  # below this decode collapses (RL.md, physics traps); kept except in emergency
    ("non_gpu_max_w", "i8"),  # declared upper bound of fans, CPUs, NICs, conversion loss
    ("parked_max_w", "i8"),  # upper bound of the GPUs' draw with nothing loaded
)
DOMAIN_STATIC = _dtype(
    ("parent", "i8"),  # index of the parent, -1 for the root, which is index 0
    ("depth", "i8"),
    ("node_start", "i8"),  # the domain's descendants are nodes node_start .. node_end - 1
    ("node_end", "i8"),
    ("peak_w", "i8"),
    ("mean_w", "i8"),  # 0: no window
    ("window_s", "f8"),
    ("unmanaged_w", "i8"),  # declared upper bound of loads that no agent governs
    ("non_gpu_max_w", "i8"),  # sum of its nodes' declared non-GPU bounds
    ("unknown_reserve", "i8"),  # nodes that may stop obeying at once and are still covered
)
SERVICE_STATIC = _dtype(
    ("ttft_s", "f8"),
    ("itl_s", "f8"),
    ("min_prefill_nodes", "i8"),
    ("min_decode_nodes", "i8"),
    ("priority", "i8"),  # higher is shed later
    ("kind", "i8"),  # DISAGGREGATED, AGGREGATED or TRAINING
)
FLEET_STATIC = _dtype(
    ("control_s", "f8"),
    ("tick_s", "f8"),
    ("grace_s", "f8"),  # tick + actuation p99 + firmware lag: when an un-noticed cut is in force
    ("firmware_lag_s", "f8"),  # from the read-back of a lower cap to the draw that obeys it
    ("stale_s", "f8"),  # telemetry older than this never gets a raise
    ("lease_ttl_s", "f8"),
    ("dwell_s", "f8"),  # a node keeps its stage at least this long
    ("moves_per_min", "f8"),  # stage moves per service
    ("raise_w_per_s", "f8"),  # ramp on raises, per node
    ("deadband_w", "i8"),  # changes smaller than this are not worth a write
    ("deepest_cut_frac", "f8"),  # fallbacks fit (1 - this) x limit, whatever happens unannounced
    ("max_drain_frac", "f8"),  # of a failure domain's nodes
    ("meters_loosen", "i8"),  # meters may lower what is charged below the declared bounds, after a day of data
)

# ── snapshot: what is known at one instant ──────────────────────────────────────────────────────────────
NODE_SNAPSHOT = _dtype(
    ("power_w", "f8"),  # GPU draw of the node, NaN when missing
    ("demand_w", "f8"),  # estimated draw with no cap; NaN when missing
    ("util_frac", "f8"),  # prefill: busy share; decode: running / admissible requests
    ("clock_frac", "f8"),
    ("temp_c", "f8"),
    ("age_s", "f8"),  # of this telemetry; NEVER_S before the first
    ("cap_w", "i8"),  # cap in force as read back, UNKNOWN_W when not
    ("ack_seq", "i8"),  # highest lease sequence applied and read back
    ("stage", "i8"),  # stage running now
    ("moving_s", "f8"),  # until the stage serves; 0 when it does
    ("is_up", "i8"),  # the agent answers and the node can serve
    ("is_silent", "i8"),  # nothing heard for a lease's ttl: it may have rebooted
    ("xid", "i8"),  # last fatal XID, 0 for none
)
DOMAIN_SNAPSHOT = _dtype(
    ("meter_w", "f8"),  # true power by PDU, rack or feed meter; NaN where there is none
    ("meter_age_s", "f8"),
    ("limit_w", "i8"),  # peak limit demanded now
    ("next_limit_w", "i8"),  # announced next limit
    ("next_in_s", "f8"),  # until it starts; NEVER_S when none is announced
)
SERVICE_SNAPSHOT = _dtype(
    ("arrival_rps", "f8"),
    ("prompt_tokens", "f8"),  # mean of the requests of the last interval
    ("output_tokens", "f8"),
    ("backlog_s", "f8"),  # wait that the prefill queue means for a request arriving now
    ("ttft_s", "f8"),  # mean of the last interval
    ("itl_s", "f8"),
    ("active", "f8"),  # requests decoding
    ("kv_frac", "f8"),  # KV memory in use
    ("ttft_ok_frac", "f8"),
    ("itl_ok_frac", "f8"),
    ("reject_frac", "f8"),
    ("age_s", "f8"),
)

# ── arbiter state: everything that has memory ───────────────────────────────────────────────────────────
NODE_STATE = _dtype(
    ("cap_cmd_w", "i8"),  # last commanded cap
    ("cap_possible_w", "i8"),  # largest cap the node may be running
    ("silent_w", "i8"),  # the same for a silent node if it did not reboot; 0 while it is heard
    ("seq", "i8"),  # lease sequence of the last command
    ("wait_seq", "i8"),  # once this sequence is read back, no older command can still be applied
    ("wait_w", "i8"),  # the cap of command wait_seq
    ("since_w", "i8"),  # largest cap commanded after wait_seq
    ("hold_s", "f8"),  # firmware lag still to wait for after the acknowledgement of a lower cap
    ("settling_w", "i8"),  # what cap_possible_w becomes when hold_s is over
    ("unacked_s", "f8"),  # since a command has waited for its acknowledgement
    ("demand_w", "f8"),  # average of the telemetry's: weights must not follow every sample
    ("stage_cmd", "i8"),
    ("dwell_s", "f8"),  # since the last stage move
    ("is_parked", "i8"),  # parking was seen to have happened: the node counts as parked_max_w
    ("is_drained", "i8"),
    ("drained_at_s", "f8"),  # when it was last drained; -NEVER_S when it never was
    ("cordoned_at_s", "f8"),  # the same for drains that a fault called for: the breaker counts them
    ("shed_from", "i8"),  # 0: not parked by shedding; else 1 + the stage that it returns to
    ("fallback_share_w", "i8"),  # its share of what the deepest cut leaves: fallback_w is at most this
    ("fallback_w", "i8"),  # 0: it parks when its lease expires
    ("fallback_possible_w", "i8"),  # largest fallback that an agent may still hold
    ("wait_fallback_w", "i8"),  # the fallback of command wait_seq
    ("since_fallback_w", "i8"),  # largest fallback commanded after wait_seq
    ("order", "i8"),  # a fleet.plan.Order that an operator gave
    ("pin_w", "i8"),  # the cap that a pin or a freeze asks for
)
DOMAIN_STATE = _dtype(
    ("in_force_w", "i8"),  # the limit that guarantee 1 is held to
    ("pending_w", "i8"),  # the lower demanded limit that waits for its grace
    ("cut_at_s", "f8"),  # when pending_w becomes the limit in force; NEVER_S when none
    ("deeper_w", "i8"),  # the same for a deeper cut made while pending_w waits
    ("deeper_at_s", "f8"),
    ("announced_w", "i8"),  # lower limit announced with at least the grace: in force when it starts
    ("bank_ws", "f8"),  # unspent watt-seconds of the window
    ("level", "f8"),  # last water level: where the next search starts, which never changes its result
    ("fallback_available_w", "i8"),  # what fallback_share_w was made for
    ("fallback_limit_w", "i8"),  # the same without the deepest cut: where smallest caps exceed it, nodes park
    ("meter_w", "f8"),  # last reading of its meter
    ("same_s", "f8"),  # since the reading changed: a frozen meter tells nothing
    ("other_w", "f8"),  # short average of what the meter reads beside the GPUs
    ("other_top_w", "f8"),  # its upper quantile; 0 before the first
    ("good_s", "f8"),  # of readings that can be believed, since high_w began
    ("high_w", "f8"),  # highest other_w since then
    ("high_before_w", "f8"),  # highest of the day of readings before; 0 before the first day is full
    ("spare_w", "i8"),  # not charged of the declared bounds, because a day of readings stayed below
    ("own_excess_w", "i8"),  # charged above the declared bounds because of its own meter
    ("excess_w", "i8"),  # the same with what the meters below it say
    ("excursion_w", "i8"),  # taken back because the meter read above the limit although the caps fit
    ("wait_s", "f8"),  # until the last take-back is judged
    ("clear_s", "f8"),  # metered well below the limit for
    ("is_exhausted", "i8"),  # metered above the limit with nothing left to take back: a person must look
    ("breach", "i8"),  # a fleet.plan.Breach
    ("is_critical", "i8"),  # of the breach: it was more than a fifth above the limit
    ("breach_s", "f8"),  # since the breach began
    ("below_s", "f8"),  # of a breach: since the meter last read above the limit
)
POOL_STATE = _dtype(
    ("util_fast", "f8"),
    ("util_slow", "f8"),
    ("rate_fast_tok_s", "f8"),  # tokens per second asked of this stage
    ("rate_slow_tok_s", "f8"),
    ("good_fast_frac", "f8"),  # TTFT met (prefill) or ITL met (decode)
    ("reject_fast_frac", "f8"),
    ("nodes_bid", "f8"),  # average of the bid for nodes: a flicker must not move any
)
SERVICE_STATE = _dtype(
    ("move_credit", "f8"),
)
FLEET_STATE = _dtype(
    ("time_s", "f8"),
    ("ticks", "i8"),
    ("epoch", "i8"),
    ("is_tripped", "i8"),  # the cordon breaker: no node is drained until a person resets it
    ("orders", "i8"),  # nodes under an operator's order
)

# ── plan: what is commanded ─────────────────────────────────────────────────────────────────────────────
NODE_PLAN = _dtype(
    ("cap_w", "i8"),
    ("seq", "i8"),
    ("fallback_w", "i8"),
    ("want_w", "i8"),  # the cap that the bids alone would have given it
    ("clock_frac", "f8"),  # ceiling; 1 is none
    ("stage", "i8"),
    ("is_cordoned", "i8"),
    ("is_drained", "i8"),
    ("reason", "i8"),  # a fleet.plan.Reason
    ("bound_domain", "i8"),  # index of the domain that bound the cap, -1 for none
)
FLEET_PLAN = _dtype(
    ("time_s", "f8"),
    ("interventions", "i8"),  # nodes whose bid was not granted
    ("correction", "f8"),  # mean squared relative distance between caps asked and granted
    ("shed_level", "i8"),  # a fleet.plan.Shed
    ("moves", "i8"),  # stage moves started at this tick
    ("is_tripped", "i8"),  # the cordon breaker stands open
)
DOMAIN_PLAN = _dtype(
    ("level", "f8"),  # cap per weight at which its limit binds; NaN where it does not
    ("price", "f8"),  # worth of one more watt of it: bid-weighted watts of demand that it would serve; 0: none
    ("next_node", "i8"),  # index of the node that would get it, -1 for none
    ("excursion_w", "i8"),  # taken back because its meter read above its limit
    ("excess_w", "i8"),  # charged above its declared bounds because a meter says so
    ("is_exhausted", "i8"),  # an alert: metered above its limit, and nothing is left to take back
    ("breach", "i8"),  # a fleet.plan.Breach
    ("is_critical", "i8"),
    ("breach_s", "f8"),
)
