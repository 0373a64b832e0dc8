"""Requests through prefill, KV transfer and decode, one environment and one physics step at a time.

A fluid of requests with their tokens: queue -> prefill -> ready -> decode -> done. Whatever leaves one store enters
the next or is counted as rejected or lost, so tokens are conserved by construction. Waiting beyond the fluid backlog
is Allen-Cunneen (MODEL.md section 7), cut off where early rejection turns requests away, so that overload fills
capacity. Output lengths are exponential within a service, as their CV of about 1 says.
"""

import math

from ..fleet.tables import DECODE, PREFILL
from .compiled import kernel
from .physics import (
    compute_share,
    decode_batch_within,
    decode_step_s,
    kv_batch,
    queue_wait,
    relative_rate,
)
from .plant_tables import HISTOGRAM_BINS, HISTOGRAM_HIGH_S, HISTOGRAM_LOW_S
from .thermal import HBM_HOT_C, HBM_HOT_RATE

ITL_SPREAD = 0.06
"""Relative spread of mean ITL over requests: ln(1.15) / 2.33, as p99 = 1.15 x mean (MODEL.md section 7)."""

BACKLOG_SHARE = 0.7
"""Share of the TTFT target that queued work may fill before early rejection sets in (RL.md, physics traps)."""

TIMEOUT_TARGETS = 20.0
"""Without early rejection a client gives up after this many TTFT targets."""

_LOG_LOW = math.log(HISTOGRAM_LOW_S)
_BINS_PER_LOG = HISTOGRAM_BINS / (math.log(HISTOGRAM_HIGH_S) - math.log(HISTOGRAM_LOW_S))


@kernel(inline=True)
def histogram_bin(value_s):
    """Index of the logarithmic bin that holds a latency."""
    if value_s <= HISTOGRAM_LOW_S:
        return 0
    return min(int((math.log(value_s) - _LOG_LOW) * _BINS_PER_LOG), HISTOGRAM_BINS - 1)


@kernel(inline=True)
def _add_wait(histogram, base_s, wait_frac, wait_s, longest_s, requests):
    """Add `requests` whose TTFT is base_s plus, with probability wait_frac, an exponential wait of mean wait_s.

    Waits beyond `longest_s` do not occur: the exponential is truncated there.
    """
    histogram[histogram_bin(base_s)] += requests * (1.0 - wait_frac)
    # what is left of the exponential below the longest wait, as a factor on its quantiles' probabilities
    share = 1.0 - math.exp(-longest_s / wait_s) if wait_s > 0.0 else 1.0
    # six equal-probability slices plus the last percent, at their conditional medians
    for k in range(7):
        mass = 0.165 if k < 6 else 0.01
        below = (k + 0.5) * 0.165 if k < 6 else 0.995
        wait = -wait_s * math.log(1.0 - below * share)
        histogram[histogram_bin(base_s + wait)] += requests * wait_frac * mass


@kernel
def serve_step(
    b,
    s,
    dt_s,
    arrivals,
    prompt_tok,
    output_tok,
    ca2,
    cs2,
    measured,
    node_static,
    service_static,
    profiles,
    params,
    node,
    service,
    totals,
    ttft_histogram,
    itl_histogram,
):
    """Advance service `s` of environment `b` by `dt_s`.

    `arrivals` requests of `prompt_tok` and `output_tok` mean tokens come in. Reads each node's clock, writes its
    batch and utilisation.
    """
    sv = service[b, s]
    st = service_static[s]
    pr = params[b]
    tot = totals[b]
    n_nodes = node.shape[1]

    # capacity at the clocks of now
    prefill_tok_s = 0.0
    prefill_replicas = 0.0
    decode_weight = 0.0
    admissible = 0.0
    kv_room = 0.0
    request_tok_s = 0.0  # rate at which one replica prefills one prompt
    link = 0.0
    context = max(sv.context, 1.0)
    itl_cap = st.itl_s
    for n in range(n_nodes):
        ns = node_static[n]
        if ns.service != s:
            continue
        nd = node[b, n]
        nd.batch = 0.0
        if nd.down_s > 0.0 or nd.moving_s > 0.0 or nd.is_drained == 1:
            nd.util_frac = 0.0
            nd.rate_tok_s = 0.0
            continue
        prof = profiles[s, ns.sku]
        replicas = float((ns.gpus - nd.gpus_down) // int(prof.tp))
        if nd.stage == PREFILL:
            nd.rate_tok_s = prof.prefill_tok_s * nd.phi * replicas * prof.tp
            prefill_tok_s += nd.rate_tok_s
            prefill_replicas += replicas
            request_tok_s += prof.prefill_tok_s * nd.phi * prof.tp * replicas
            link = max(link, prof.link * prof.tp)
        elif nd.stage == DECODE:
            room = kv_batch(prof, context)
            kv_room += room * replicas
            # compute share at the batch the node can admit; it moves slowly with the batch
            rel = relative_rate(
                nd.phi, compute_share(min(room, max(decode_batch_within(prof, context, itl_cap), 1.0))), pr.phi_mem
            )
            slots = room
            if pr.slo_aware_admission == 1:
                slots = min(slots, max(decode_batch_within(prof, context, 0.97 * itl_cap * rel), 1.0))
            nd.admissible = slots * replicas
            admissible += nd.admissible
            decode_weight += nd.admissible
            nd.rate_tok_s = 0.0
    if prefill_replicas > 0.0:
        request_tok_s /= prefill_replicas

    # arrivals and early rejection
    prompt_tok = max(prompt_tok, 1.0)
    output_tok = max(output_tok, 1.0)
    sv.tick_req += arrivals
    sv.tick_prompt_tok += arrivals * prompt_tok
    sv.tick_out_tok += arrivals * output_tok
    offered_tok = arrivals * (prompt_tok + output_tok)
    sv.offered_tok += offered_tok
    service_s = prompt_tok / request_tok_s if request_tok_s > 0.0 else st.ttft_s
    transfer_s = 1e-5
    if link > 0.0:
        transfer_s += prompt_tok * profiles[s, 0].kv_bytes_token / (0.8 * link)
    ready_wait_s = sv.ready_req / max(sv.decode_req_s, 1e-3) if sv.ready_req > 1e-6 else 0.0
    if prefill_tok_s > 0.0:
        backlog_s = sv.queue_tok / prefill_tok_s
    elif sv.queue_tok > 0.0 or arrivals > 0.0:
        backlog_s = TIMEOUT_TARGETS * st.ttft_s
    else:
        backlog_s = 0.0
    base_s = backlog_s + ready_wait_s + service_s + transfer_s
    load = arrivals * prompt_tok / max(prefill_tok_s * dt_s, 1e-9)
    wait_frac, wait_s = queue_wait(load, prefill_replicas, service_s, ca2, cs2)
    admitted = arrivals
    limit_s = BACKLOG_SHARE * st.ttft_s if pr.early_rejection == 1 else TIMEOUT_TARGETS * st.ttft_s
    room_s = limit_s - service_s - transfer_s - ready_wait_s
    # the wait that a request may still meet by chance; whoever would wait longer is turned away at the door
    longest_s = max(room_s - backlog_s, 0.0)
    too_late = wait_frac * math.exp(-longest_s / max(wait_s, 1e-9))
    admitted -= arrivals * too_late
    # what fits behind the queue, counting what this step will prefill; nothing where decode alone is late already
    room_tok = room_s * prefill_tok_s + prefill_tok_s * dt_s - sv.queue_tok if room_s > 0.0 else 0.0
    if admitted * prompt_tok > room_tok:
        admitted = max(room_tok / prompt_tok, 0.0)
    rejected = arrivals - admitted
    rejected_tok = rejected * (prompt_tok + output_tok)
    # of those admitted: who waits at all, how long on average, and who meets the target
    short = 1.0 - math.exp(-longest_s / max(wait_s, 1e-9))
    waiting = wait_frac * short / max(1.0 - wait_frac + wait_frac * short, 1e-9)
    mean_wait_s = wait_s - longest_s * (1.0 - short) / short if short > 1e-9 else 0.0
    ok = 0.0
    if base_s < st.ttft_s:
        in_time = 1.0 - math.exp(-min(st.ttft_s - base_s, longest_s) / max(wait_s, 1e-9))
        ok = 1.0 - waiting * (1.0 - in_time / short) if short > 1e-9 else 1.0 - waiting
    sv.queue_req += admitted
    sv.queue_tok += admitted * prompt_tok
    sv.queue_out_tok += admitted * output_tok
    sv.queue_ok += admitted * ok
    sv.tick_rejected += rejected
    sv.rejected_tok += rejected_tok
    sv.tick_ttft_ok += admitted * ok
    sv.tick_ttft_s += admitted * (base_s + waiting * mean_wait_s)
    sv.backlog_s = backlog_s + ready_wait_s

    # prefill
    work_tok = min(sv.queue_tok, prefill_tok_s * dt_s)
    if sv.queue_tok > 1e-9 and work_tok > 0.0:
        share = work_tok / sv.queue_tok
        sv.ready_req += share * sv.queue_req
        sv.ready_tok += share * sv.queue_tok
        sv.ready_ok += share * sv.queue_ok
        sv.ready_out_tok += share * sv.queue_out_tok
        keep = 1.0 - share
        sv.queue_req *= keep
        sv.queue_tok *= keep
        sv.queue_ok *= keep
        sv.queue_out_tok *= keep
    busy = work_tok / (prefill_tok_s * dt_s) if prefill_tok_s > 0.0 else 0.0

    # admission to decode
    room = max(admissible - sv.active, 0.0)
    take = min(sv.ready_req, room)
    if take > 0.0:
        share = take / sv.ready_req
        total = sv.active + take
        mean_context = (sv.ready_tok + 0.5 * sv.ready_out_tok) / sv.ready_req
        sv.context += (mean_context - sv.context) * (take / total)
        sv.active = total
        sv.active_tok += share * sv.ready_tok
        sv.active_ok += share * sv.ready_ok
        sv.active_out_tok += share * sv.ready_out_tok
        keep = 1.0 - share
        sv.ready_req *= keep
        sv.ready_tok *= keep
        sv.ready_ok *= keep
        sv.ready_out_tok *= keep

    # decode
    tokens = 0.0
    active = sv.active
    for n in range(n_nodes):
        ns = node_static[n]
        if ns.service != s:
            continue
        nd = node[b, n]
        if nd.down_s > 0.0 or nd.moving_s > 0.0 or nd.is_drained == 1:
            continue
        if nd.stage == PREFILL:
            nd.util_frac = busy
        elif nd.stage == DECODE:
            prof = profiles[s, ns.sku]
            replicas = float((ns.gpus - nd.gpus_down) // int(prof.tp))
            if decode_weight > 0.0:
                nd.batch = active * nd.admissible / decode_weight
            per_replica = nd.batch / replicas
            step_s = decode_step_s(prof, per_replica, context)
            if nd.hbm_c > HBM_HOT_C:
                step_s /= HBM_HOT_RATE
            step_s /= relative_rate(nd.phi, compute_share(per_replica), pr.phi_mem)
            nd.rate_tok_s = nd.batch / step_s
            nd.util_frac = nd.batch / nd.admissible if nd.admissible > 0.0 else 0.0
            tokens += nd.rate_tok_s * dt_s
    completed = 0.0
    good = 0.0
    good_tok = 0.0
    late_tok = 0.0
    if tokens > 0.0 and active > 1e-9:
        step_s = active * dt_s / tokens
        mean_out = sv.active_out_tok / active
        completed = min(tokens / mean_out, active)
        share = completed / active
        life_s = mean_out * step_s
        sv.itl_request_s += (step_s - sv.itl_request_s) * (1.0 - math.exp(-2.0 * dt_s / life_s))
        itl_ok = 1.0 / (1.0 + math.exp(-1.7 * math.log(st.itl_s / sv.itl_request_s) / ITL_SPREAD))
        done_tok = share * (sv.active_tok + sv.active_out_tok)
        good_share = itl_ok * sv.active_ok / active
        good = completed * good_share
        good_tok = done_tok * good_share
        late_tok = done_tok - good_tok
        keep = 1.0 - share
        sv.active *= keep
        sv.active_tok *= keep
        sv.active_ok *= keep
        sv.active_out_tok *= keep
        sv.served_tok += done_tok
        sv.late_tok += late_tok
        sv.tick_tok += tokens
        sv.tick_itl_s += tokens * step_s
        sv.tick_itl_ok += tokens * itl_ok
        if measured:
            # mean and p99 of a step of this length
            itl_histogram[b, s, histogram_bin(step_s)] += 0.98 * tokens
            itl_histogram[b, s, histogram_bin(1.15 * step_s)] += 0.02 * tokens
    elif active > 1e-9:
        sv.itl_request_s = min(sv.itl_request_s + dt_s, 10.0)  # nothing decodes: every token in flight waits
    sv.decode_req_s += (completed / dt_s - sv.decode_req_s) * (1.0 - math.exp(-dt_s / 3.0))
    sv.kv_frac = min(sv.active / kv_room, 1.0) if kv_room > 0.0 else 0.0

    if measured:
        tot.offered_req += arrivals
        tot.offered_tok += offered_tok
        tot.rejected_req += rejected
        tot.rejected_tok += rejected_tok
        tot.good_req += good
        tot.late_req += completed - good
        tot.good_tok += good_tok
        tot.late_tok += late_tok
        if admitted > 0.0:
            _add_wait(ttft_histogram[b, s], base_s, waiting, wait_s, longest_s, admitted)


@kernel
def lose_node(b, n, measured, node_static, node, service, totals):
    """Drop the requests that decode on node `n`: its TP groups die with a member."""
    nd = node[b, n]
    sv = service[b, node_static[n].service]
    if nd.stage != DECODE or sv.active <= 1e-9 or nd.batch <= 0.0:
        return
    share = min(nd.batch / sv.active, 1.0)
    lost_tok = share * (sv.active_tok + sv.active_out_tok)
    if measured:
        totals[b].lost_req += share * sv.active
        totals[b].lost_tok += lost_tok
    sv.lost_tok += lost_tok
    keep = 1.0 - share
    sv.active *= keep
    sv.active_tok *= keep
    sv.active_ok *= keep
    sv.active_out_tok *= keep
    nd.batch = 0.0
