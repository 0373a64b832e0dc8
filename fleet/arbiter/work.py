"""What the greedy baseline reads and writes around its model, compiled.

Beside a plant that sweeps the caches every call of NumPy runs cold: a bid for 64 environments right after their step
took 0.21 ms with the arithmetic around the model in NumPy, and takes 0.14 with it in these two kernels.
"""

from ..tables import DECODE, DECODED_SHARE, PREFILL, STAGES
from .compiled import kernel
from .pools import write_split_bids, write_watt_bids
from .sums import finite_or


@kernel(inline=True)
def _lengths(requests, prompt_tok, output_tok, shortest_tok):
    """Mean prompt length and mean context of decoding requests of one average."""
    rate = max(requests, 1e-6)
    prompt = prompt_tok / rate
    return max(prompt, shortest_tok), max(prompt + DECODED_SHARE * output_tok / rate, shortest_tok)


@kernel
def ask_of_pools(
    sn_domain, sn_service, fixed_w, soon_s, gpus, cap_range_w, memory, shortest_tok, prefill_margin, horizon_s,
    decode_value, budget_w, asked, value, active, prompt, context, slow_prompt, slow_context, mean_caps_w,
):  # fmt: skip
    """Turn averages of the work into what the model is asked.

    Args:
        sn_domain: `tables.DOMAIN_SNAPSHOT`, shape (B, D).
        sn_service: `tables.SERVICE_SNAPSHOT`, shape (B, S).
        fixed_w: What the root's limit must cover beside GPUs.
        soon_s, shortest_tok: `policies.pools.SOON_S`, `policies.work.SHORTEST_TOK`.
        gpus: GPUs of the site.
        cap_range_w: Lowest cap worth setting and highest legal one per GPU, shape (P, 2).
        memory: Fast and slow averages of `policies.work`, shape (B, S, 6).
        prefill_margin, horizon_s, decode_value: As in `policies.baselines.greedy.Greedy`.
        budget_w: To be written, as all that follow: watts for GPUs, shape (B,).
        asked: Tokens/s asked of each pool, shape (B, P).
        value: Utility of full cover, shape (B, P).
        active: Requests decoding, shape (B, S).
        prompt, context: Mean lengths by the fast averages, shape (B, S).
        slow_prompt, slow_context: The same by the slow ones.
        mean_caps_w: The budget spread evenly, within each service's range for decode; shape (B, P).
    """
    for b in range(len(memory)):
        root = sn_domain[b, 0]
        limit_w = min(root.limit_w, root.next_limit_w) if root.next_in_s <= soon_s else root.limit_w
        budget_w[b] = max(limit_w - fixed_w, 0.0)
        mean_w = budget_w[b] / gpus
        for s in range(memory.shape[1]):
            work, heard = memory[b, s], sn_service[b, s]
            p, d = STAGES * s + PREFILL, STAGES * s + DECODE
            prompt[b, s], context[b, s] = _lengths(work[0], work[1], work[2], shortest_tok)
            slow_prompt[b, s], slow_context[b, s] = _lengths(work[3], work[4], work[5], shortest_tok)
            backlog_s = max(finite_or(heard.backlog_s, 0.0), 0.0)
            asked[b, p] = max(work[1], 1e-3) * (prefill_margin * (1.0 + backlog_s / horizon_s))
            asked[b, d] = max(work[2], 1e-3)
            value[b, p] = work[1] + work[2]
            value[b, d] = value[b, p] * decode_value
            active[b, s] = finite_or(heard.active, 0.0)
            mean_caps_w[b, p] = mean_caps_w[b, d] = min(max(mean_w, cap_range_w[d, 0]), cap_range_w[d, 1])


@kernel(inline=True)
def _put(bids, channel, pool):
    for b in range(bids.shape[0]):
        for p in range(bids.shape[1]):
            pool[b, p, channel] = bids[b, p]


@kernel
def write_bids(
    service_static, gpus_per_node, nodes, coming, demand_w, memory, rates, prefill_margin, gain, deadband_nodes,
    caps_w, share, out, pool,
):  # fmt: skip
    """Turn caps and rates into bids.

    Args:
        service_static: `tables.SERVICE_STATIC`, shape (S,).
        gpus_per_node: Mean GPUs of the pool's nodes, shape (P,).
        nodes, coming, demand_w: As in `policies.pools.PoolView`, shape (B, P).
        memory: As in `ask_of_pools`; nodes follow its slow averages.
        rates: Tokens/s of one node of every pool at the mean cap, shape (B, P).
        prefill_margin, gain, deadband_nodes: As in `Greedy`; a gain of 0 never asks for a move.
        caps_w: Caps per GPU, shape (B, P); left as caps per node.
        share: Working memory, shape (B, S).
        out: Working memory, shape (B, P).
        pool: float32 bids to be written: watts first, then nodes; shape (B, P, >= 2).
    """
    for b in range(caps_w.shape[0]):
        for p in range(caps_w.shape[1]):
            caps_w[b, p] *= gpus_per_node[p]
    write_watt_bids(caps_w, demand_w, out)
    _put(out, 0, pool)
    if gain <= 0.0:
        return
    for b in range(share.shape[0]):
        for s in range(share.shape[1]):
            p, d = STAGES * s + PREFILL, STAGES * s + DECODE
            prefill = prefill_margin * (memory[b, s, 4] / max(rates[b, p], 1e-9))  # nodes
            share[b, s] = prefill / max(prefill + memory[b, s, 5] / max(rates[b, d], 1e-9), 1e-9)
    write_split_bids(service_static, nodes, coming, share, gain, deadband_nodes, out)
    _put(out, 1, pool)
