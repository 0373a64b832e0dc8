"""Requests through prefill, KV transfer and decode, one environment and one physics step at a time.

A fluid of requests with their tokens: queue -> prefill -> ready -> decode -> done. Whatever leaves one store enters
the next or is counted as rejected or lost, so tokens are conserved by construction. Waiting by chance and early
rejection are those of a diffusion at the smoothed load (`waiting.py`); the fluid backlog counts where it is longer than
chance makes it. Completions are those of exponential output lengths within a service.
"""

import math

from ..fleet.tables import AGGREGATED, DECODE, DECODED_SHARE
from .approximations import exp_of, log_of
from .compiled import kernel
from .node_loops import decode_and_draw, offer_capacity
from .tiles import KV_ROOM, PREFILL_RATE, PREFILL_REPLICAS, SLOTS, TOKENS, lane_sum
from .waiting import LIMITLESS_LOAD, SMOOTHING_S, add_ttft, histogram_bin, normal_cdf, prefill_waiting

ITL_P99, ITL_SPREAD = 1.15, 0.012
"""99th percentile of ITL over its mean with stages apart (MODEL.md section 7), and the relative spread of mean ITL
over requests of one time: 0.008 to 0.011 in a request-level replay, and a step's jitter of ln(1.15) / 2.33 over the
root of some 200 tokens. Where a node does both, 1 + 0.35 log2(1 + b / 8) by the batch b."""

BACKLOG_SHARE = 0.7
"""Share of the TTFT target that queued work may fill before early rejection sets in (RL.md, physics traps)."""

TIMEOUT_TARGETS = 20.0
"""Without early rejection a client gives up after this many TTFT targets."""

CHANCE_SIGMAS = 2.0
"""Backlog up to so many standard deviations of the work that comes within a step is chance, which `waiting` covers."""


@kernel(inline=True)
def _come_back(sv, dt_s, after_s):
    """Requests that try again in this step: `after_s` after their rejection in the mean, exponentially."""
    if sv.retry_req <= 1e-9:
        return 0.0
    return sv.retry_req * (1.0 - exp_of(-dt_s / max(after_s, 1e-3)))


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
        mean_context = (sv.ready_tok + DECODED_SHARE * sv.ready_out_tok) / sv.ready_req
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
    keep = exp_of(-dt_s / SMOOTHING_S)
    sv.load_s = keep * sv.load_s + dt_s
    sv.load_req = keep * sv.load_req + arrivals
    sv.load_tok = keep * sv.load_tok + arrivals * prompt_tok
    # a prompt is prefilled by one replica
    service_s = st.ttft_s
    load = 0.0
    if prefill_tok_s > 0.0 and sv.load_req > 1e-9:
        service_s = sv.load_tok / sv.load_req * prefill_replicas / prefill_tok_s
        load = sv.load_tok / (sv.load_s * prefill_tok_s)
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
    # prefill times differ less than prompts do, for their fixed part, or more, for attention over long ones
    prof = profiles[s, tiles.static[min(tiles.start[s], tiles.static.shape[0] - 1)].sku]
    prompt_s = prof.prompt_fixed_s + prompt_tok * (prof.prompt_token_s + prompt_tok * prof.prompt_token2_s)
    grows_s = prompt_tok * (prof.prompt_token_s + 2.0 * prompt_tok * prof.prompt_token2_s)
    cs2 *= (grows_s / prompt_s) ** 2
    chance_s = CHANCE_SIGMAS * math.sqrt((ca2 + cs2) * service_s * dt_s / max(prefill_replicas, 1.0))
    fixed_s = max(backlog_s - chance_s, 0.0) + ready_wait_s + transfer_s
    limit_s = TIMEOUT_TARGETS * st.ttft_s
    if pr.early_rejection == 1:
        limit_s = BACKLOG_SHARE * st.ttft_s
    else:
        load = min(load, LIMITLESS_LOAD)
    joins, works, in_time, wait_frac, wait_s, range_s = prefill_waiting(
        load,
        prefill_replicas,
        service_s,
        ca2,
        cs2,
        limit_s - fixed_s,
        st.ttft_s - fixed_s,
        sv.wait_log,
        tiles.wait,
    )
    # what fits behind the queue, counting what this step will prefill, and behind decode, counting what completes
    door_s = limit_s - service_s - transfer_s
    room_tok = (max(door_s - ready_wait_s + chance_s, 0.0) + dt_s) * prefill_tok_s
    room_tok = max(room_tok - sv.queue_tok, 0.0)
    room_req = (max(door_s, 0.0) + dt_s) * sv.decode_req_s + max(admissible - sv.active, 0.0)
    room_req = max(room_req - sv.ready_req - sv.queue_req, 0.0)
    admitted = arrivals * joins
    admitted_tok = arrivals * works * prompt_tok
    fits = 1.0
    if admitted > room_req:
        fits = room_req / admitted
    if admitted_tok * fits > room_tok:
        fits = room_tok / admitted_tok
    admitted *= fits
    admitted_tok *= fits
    refused = arrivals - admitted
    refused_tok = arrivals * prompt_tok - admitted_tok  # long prompts are refused first
    # of those refused for the first time some come back; who was refused twice does not
    again = pr.retry_frac * fresh / arrivals if arrivals > 0.0 else 0.0
    sv.retry_req += again * refused
    sv.retry_tok += again * refused_tok
    sv.retry_out_tok += again * refused * output_tok
    rejected = (1.0 - again) * refused
    rejected_tok = (1.0 - again) * (refused_tok + refused * output_tok)
    ok = in_time / joins if joins > 1e-9 else 0.0
    own_s = service_s * works / joins if joins > 1e-9 else service_s
    # completions until a slot is free come as chance has it, and so do those in prefill that are ready before
    slot_s = math.sqrt((1.0 + ca2) * ready_wait_s / max(sv.decode_req_s, 1e-3)) if ready_wait_s > 0.0 else 0.0
    if slot_s > 0.0:
        ok *= normal_cdf((st.ttft_s - fixed_s - own_s - wait_s) / slot_s)
    sv.queue_req += admitted
    sv.queue_tok += admitted_tok
    sv.queue_out_tok += admitted * output_tok
    sv.queue_ok += admitted * ok
    sv.tick_rejected += refused
    sv.rejected_tok += rejected_tok
    sv.tick_ttft_ok += admitted * ok
    sv.tick_ttft_s += admitted * (fixed_s + own_s + wait_s)
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
        spread = max(log_of(tail) / 2.33, 0.01)
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
        sv.itl_request_s += (step_s - sv.itl_request_s) * (1.0 - exp_of(-2.0 * dt_s / life_s))
        itl_ok = 1.0 / (1.0 + exp_of(-1.7 * log_of(st.itl_s / sv.itl_request_s) / spread))
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
    sv.decode_req_s += (completed / dt_s - sv.decode_req_s) * (1.0 - exp_of(-dt_s / 3.0))
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
            if taken > 0.0 and joins > 1e-9:
                add_ttft(
                    ttft_histogram[b, s], fixed_s, slot_s, service_s, cs2, limit_s - fixed_s, wait_frac, range_s,
                    taken / joins, sv, tiles.wait,
                )  # fmt: skip
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
