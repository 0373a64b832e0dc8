"""Requests through prefill, KV transfer and decode, one environment and one physics step at a time.

A fluid of requests with their tokens: queue -> prefill -> ready -> decode -> done. Whatever leaves one store enters
the next or is counted as rejected or lost, so tokens are conserved by construction. Waiting beyond the fluid backlog
is Allen-Cunneen (MODEL.md section 7), cut off where early rejection turns requests away, so that overload fills
capacity. Output lengths are exponential within a service, as their CV of about 1 says.
"""

import math

from ..fleet.tables import AGGREGATED, DECODE
from .compiled import kernel
from .node_loops import decode_and_draw, offer_capacity
from .physics import queue_wait
from .plant_tables import HISTOGRAM_BINS, HISTOGRAM_HIGH_S, HISTOGRAM_LOW_S
from .tiles import KV_ROOM, PREFILL_RATE, PREFILL_REPLICAS, SLOTS, TOKENS, lane_sum

ITL_P99, ITL_SPREAD = 1.15, 0.06
"""99th percentile of ITL over its mean with stages apart (MODEL.md section 7), and the relative spread of mean ITL
over requests that follows: ln(1.15) / 2.33. Where a node does both, 1 + 0.35 log2(1 + b / 8) by the batch b."""

BACKLOG_SHARE = 0.7
"""Share of the TTFT target that queued work may fill before early rejection sets in (RL.md, physics traps)."""

TIMEOUT_TARGETS = 20.0
"""Without early rejection a client gives up after this many TTFT targets."""

CARRIED_STEPS = 4
"""Steps of the search for the carried load."""

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


@kernel(inline=True)
def _turned(load, servers, service_s, ca2, cs2, longest_s):
    """(share that would wait longer than longest_s, share that waits, mean wait of those, share of those beyond)."""
    wait_frac, wait_s = queue_wait(load, servers, service_s, ca2, cs2)
    beyond = math.exp(-longest_s / max(wait_s, 1e-9))
    return wait_frac * beyond, wait_frac, wait_s, beyond


@kernel
def _carried(load, servers, service_s, ca2, cs2, longest_s):
    """`_turned` of the load that is left once those who would wait too long are turned away.

    What is turned away does not queue, so that overload fills capacity: the carried load x solves
    x = load (1 - turned(x)). Regula falsi, since the right side falls with x.
    """
    high = min(load, 0.98)
    found = _turned(high, servers, service_s, ca2, cs2, longest_s)
    if found[0] < 1e-3:
        return found
    over = high - load * (1.0 - found[0])
    low = max(high - over, 0.0)
    found = _turned(low, servers, service_s, ca2, cs2, longest_s)
    under = load * (1.0 - found[0]) - low
    for _ in range(CARRIED_STEPS):
        if under < 1e-3:
            break
        x = low + (high - low) * under / (under + over)
        found = _turned(x, servers, service_s, ca2, cs2, longest_s)
        gap = load * (1.0 - found[0]) - x
        if gap > 0.0:
            low, under = x, gap
            over *= 0.5  # Illinois: the other end must not stand still
        else:
            high, over = x, -gap
            under *= 0.5
    return found


@kernel(inline=True)
def _come_back(sv, dt_s, after_s):
    """Requests that try again in this step: `after_s` after their rejection in the mean, exponentially."""
    if sv.retry_req <= 1e-9:
        return 0.0
    return sv.retry_req * (1.0 - math.exp(-dt_s / max(after_s, 1e-3)))


@kernel(inline=True)
def _preempt(sv, kv_room):
    """Send back to prefill what decodes beyond the KV memory there is: contexts grew, or nodes left.

    Their KV is dropped and computed again, as vLLM does.
    """
    excess = sv.active - kv_room
    if excess <= 1e-9:
        return 0.0
    share = excess / sv.active
    sv.queue_req += excess
    sv.queue_tok += share * sv.active_tok
    sv.queue_ok += share * sv.active_ok
    sv.queue_out_tok += share * sv.active_out_tok
    keep = 1.0 - share
    sv.active *= keep
    sv.active_tok *= keep
    sv.active_ok *= keep
    sv.active_out_tok *= keep
    return excess


@kernel(inline=True)
def _admit(sv, admissible):
    """Let requests that are ready take the free places in decode."""
    take = min(sv.ready_req, max(admissible - sv.active, 0.0))
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


@kernel
def serve_step(
    b, s, dt_s, is_last, arrivals, prompt_tok, output_tok, ca2, cs2, measured, service_static, profiles, params,
    service, totals, ttft_histogram, itl_histogram, tiles,
):  # fmt: skip
    """Advance service `s` of environment `b`, and the nodes that serve it, by `dt_s`.

    `arrivals` requests of `prompt_tok` and `output_tok` mean tokens come in. `is_last` says that this step is the
    tick's last: the histograms take the tick's requests and tokens at once.
    """
    sv = service[b, s]
    st = service_static[s]
    pr = params[b]
    tot = totals[b]
    is_mixed = st.kind == AGGREGATED
    prompt_tok = max(prompt_tok, 1.0)
    output_tok = max(output_tok, 1.0)
    fresh = arrivals
    offered_tok = fresh * (prompt_tok + output_tok)
    sv.offered_tok += offered_tok
    back = _come_back(sv, dt_s, pr.retry_after_s)
    if back > 0.0:
        share = back / sv.retry_req
        arrivals = fresh + back
        prompt_tok = (fresh * prompt_tok + share * sv.retry_tok) / arrivals
        output_tok = (fresh * output_tok + share * sv.retry_out_tok) / arrivals
        sv.retry_req -= back
        sv.retry_tok *= 1.0 - share
        sv.retry_out_tok *= 1.0 - share

    # capacity at the clocks of now
    offer_capacity(
        s, prompt_tok, pr.prefix_hit_frac * prompt_tok, max(sv.context, 1.0), st.itl_s, pr.slo_aware_admission == 1,
        is_mixed, pr.phi_mem, tiles, profiles,
    )  # fmt: skip
    prefill_tok_s = lane_sum(tiles.sums, PREFILL_RATE)
    prefill_replicas = lane_sum(tiles.sums, PREFILL_REPLICAS)
    admissible = lane_sum(tiles.sums, SLOTS)
    kv_room = lane_sum(tiles.sums, KV_ROOM)
    link = 0.0
    preempted = _preempt(sv, kv_room)
    if prefill_replicas > 0.0 and not is_mixed:
        for t in range(tiles.start[s], tiles.start[s + 1]):
            prof = profiles[s, tiles.static[t].sku]
            link = max(link, prof.link * prof.tp)

    # arrivals and early rejection
    sv.tick_req += arrivals
    sv.tick_prompt_tok += arrivals * prompt_tok
    sv.tick_out_tok += arrivals * output_tok
    # a prompt is prefilled by one replica
    service_s = prompt_tok * prefill_replicas / prefill_tok_s if prefill_tok_s > 0.0 else st.ttft_s
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
    limit_s = BACKLOG_SHARE * st.ttft_s if pr.early_rejection == 1 else TIMEOUT_TARGETS * st.ttft_s
    door_s = limit_s - service_s - transfer_s
    room_s = door_s - ready_wait_s
    # the wait that a request may still meet by chance; whoever would wait longer is turned away at the door
    longest_s = max(room_s - backlog_s, 0.0)
    turned, wait_frac, wait_s, beyond = _carried(load, prefill_replicas, service_s, ca2, cs2, longest_s)
    admitted = arrivals * (1.0 - turned)
    # what fits behind the queue, counting what this step will prefill, and behind decode, counting what completes
    room_tok = (max(room_s, 0.0) + dt_s) * prefill_tok_s - sv.queue_tok
    room_req = (max(door_s, 0.0) + dt_s) * sv.decode_req_s + max(admissible - sv.active, 0.0)
    room_req = min(room_tok / prompt_tok, room_req - sv.ready_req - sv.queue_req)
    admitted = min(admitted, max(room_req, 0.0))
    refused = arrivals - admitted
    # of those refused for the first time some come back; who was refused twice does not
    again = refused * pr.retry_frac * fresh / arrivals if arrivals > 0.0 else 0.0
    sv.retry_req += again
    sv.retry_tok += again * prompt_tok
    sv.retry_out_tok += again * output_tok
    rejected = refused - again
    rejected_tok = rejected * (prompt_tok + output_tok)
    # of those admitted: who waits at all, how long on average, and who meets the target
    short = 1.0 - beyond
    waiting = wait_frac * short / max(1.0 - wait_frac + wait_frac * short, 1e-9)
    mean_wait_s = wait_s - longest_s * beyond / short if short > 1e-9 else 0.0
    ok = 0.0
    if base_s < st.ttft_s:
        spare_s = st.ttft_s - base_s
        in_time = short
        if spare_s < longest_s:
            in_time = 1.0 - math.exp(-spare_s / max(wait_s, 1e-9))
        ok = 1.0 - waiting * (1.0 - in_time / short) if short > 1e-9 else 1.0 - waiting
    sv.queue_req += admitted
    sv.queue_tok += admitted * prompt_tok
    sv.queue_out_tok += admitted * output_tok
    sv.queue_ok += admitted * ok
    sv.tick_rejected += refused
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

    _admit(sv, admissible)

    # decode: in the middle of the step half of what completes is gone, as far as nobody waits for its place
    active = sv.active
    leaves = min(sv.decode_req_s * dt_s, active)
    mean_active = active - 0.5 * max(leaves - sv.ready_req, 0.0)
    fill = mean_active / admissible if admissible > 0.0 else 0.0
    decode_and_draw(s, dt_s, fill, busy, max(sv.context, 1.0), pr, tiles, profiles)
    tokens = lane_sum(tiles.sums, TOKENS)
    tail, spread = ITL_P99, ITL_SPREAD
    if is_mixed:
        tail = 1.0 + 0.35 * math.log2(1.0 + mean_active / max(prefill_replicas, 1.0) / 8.0)
        spread = max(math.log(tail) / 2.33, 0.01)
    completed = 0.0
    good = 0.0
    good_tok = 0.0
    late_tok = 0.0
    if tokens > 0.0 and active > 1e-9:
        step_s = mean_active * dt_s / tokens
        mean_out = sv.active_out_tok / active
        completed = min(tokens / mean_out, active)
        share = completed / active
        life_s = mean_out * step_s
        sv.itl_request_s += (step_s - sv.itl_request_s) * (1.0 - math.exp(-2.0 * dt_s / life_s))
        itl_ok = 1.0 / (1.0 + math.exp(-1.7 * math.log(st.itl_s / sv.itl_request_s) / spread))
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
        _admit(sv, admissible)
    elif active > 1e-9:
        sv.itl_request_s = min(sv.itl_request_s + dt_s, 10.0)  # nothing decodes: every token in flight waits
    sv.decode_req_s += (completed / dt_s - sv.decode_req_s) * (1.0 - math.exp(-dt_s / 3.0))
    sv.kv_frac = min(sv.active / kv_room, 1.0) if kv_room > 0.0 else 0.0

    if measured:
        tot.offered_req += fresh
        tot.retried_req += back
        tot.preempted_req += preempted
        tot.offered_tok += offered_tok
        tot.rejected_req += rejected
        tot.rejected_tok += rejected_tok
        tot.good_req += good
        tot.late_req += completed - good
        tot.good_tok += good_tok
        tot.late_tok += late_tok
        if is_last:
            # at the state of the last step: a bin is wider than what changes within a tick
            taken = sv.tick_req - sv.tick_rejected
            if taken > 0.0:
                _add_wait(ttft_histogram[b, s], base_s, waiting, wait_s, longest_s, taken)
            if sv.tick_tok > 0.0:
                # mean and p99 of a step of this length
                step_s = sv.tick_itl_s / sv.tick_tok
                itl_histogram[b, s, histogram_bin(step_s)] += 0.98 * sv.tick_tok
                itl_histogram[b, s, histogram_bin(tail * step_s)] += 0.02 * sv.tick_tok


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
