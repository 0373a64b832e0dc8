"""What baselines share, compiled: sums over pools, averages of their work, and wishes turned into bids.

A baseline decides for a few pools at a time, so that in NumPy the calls cost more than the arithmetic: 70 us for one
environment's greedy bid, a third of its whole step.
"""

import math

from ..bids import NODES_EXPONENT, WATTS_EXPONENT
from ..tables import DECODE, DISAGGREGATED, PREFILL, STAGES
from .compiled import kernel
from .sums import clip, finite_or

NODES, GPUS, COMING, DEMAND, CAP_MAX = range(5)
"""Columns of the sums: serving nodes, their GPUs, nodes that load the stage, mean demand and largest cap per node."""


@kernel
def sum_pools(node_static, fallback_w, sn_node, sums):
    """Add up what serves every pool.

    Nodes are added in the order of their ids, so that a row's sums do not depend on its batch.

    Args:
        node_static: `tables.NODE_STATIC`, shape (N,).
        fallback_w: Demand and largest cap where no node serves, shape (P,).
        sn_node: `tables.NODE_SNAPSHOT`, shape (B, N).
        sums: Zeros, shape (5, B, P), in the order of the columns above.
    """
    for b in range(len(sn_node)):
        for i in range(len(node_static)):
            sn, static = sn_node[b, i], node_static[i]
            if sn.is_up != 1 or not 0 <= sn.stage < STAGES:
                continue
            p = STAGES * static.service + sn.stage
            if sn.moving_s <= 0.0:
                sums[NODES, b, p] += 1.0
                sums[GPUS, b, p] += static.gpus
                sums[DEMAND, b, p] += sn.demand_w if math.isfinite(sn.demand_w) else static.cap_max_w
                sums[CAP_MAX, b, p] += static.cap_max_w
            else:
                sums[COMING, b, p] += 1.0
        for p in range(sums.shape[2]):
            count = sums[NODES, b, p]
            if count > 0.0:
                sums[DEMAND, b, p] = max(sums[DEMAND, b, p] / count, 1.0)
                sums[CAP_MAX, b, p] /= count
            else:
                sums[DEMAND, b, p] = max(fallback_w[p], 1.0)
                sums[CAP_MAX, b, p] = fallback_w[p]


@kernel
def follow_work(sn_service, fast, slow, memory, out):
    """Move fast and slow averages of every service's work; see `policies.work.follow_work`.

    Args:
        sn_service: `tables.SERVICE_SNAPSHOT`, shape (B, S).
        fast: Share by which the fast averages move.
        slow: The same of the slow ones.
        memory: Requests, prompt tokens and output tokens per second, fast then slow; shape (B, S, 6).
        out: The new averages, same shape.
    """
    for b in range(out.shape[0]):
        for s in range(out.shape[1]):
            heard = sn_service[b, s]
            rate = heard.arrival_rps
            is_known = math.isfinite(rate) and math.isfinite(heard.prompt_tokens)
            for i in range(6):
                now = rate
                if i % 3 == 1:
                    now *= heard.prompt_tokens
                elif i % 3 == 2:
                    now *= finite_or(heard.output_tokens, 0.0)
                old = memory[b, s, i]
                share = (fast if i < 3 else slow) if memory[b, s, i - i % 3] > 0.0 else 1.0
                out[b, s, i] = old + share * (now - old) if is_known else old


@kernel
def write_watt_bids(want_w, demand_w, out):
    """Bids under which the arbiter's weights are in the ratio of `want_w`; shape (B, P) each."""
    for b in range(out.shape[0]):
        low, high = math.inf, -math.inf
        for p in range(out.shape[1]):
            out[b, p] = math.log(max(want_w[b, p], 1.0) / demand_w[b, p]) / WATTS_EXPONENT
            low, high = min(low, out[b, p]), max(high, out[b, p])
        for p in range(out.shape[1]):
            out[b, p] = clip(out[b, p] - 0.5 * (low + high), -1.0, 1.0)


@kernel
def write_split_bids(service_static, nodes, coming, share, gain, deadband_nodes, out):
    """Node bids that move services towards a split; see `policies.pools.split_bids`.

    Args:
        service_static: `tables.SERVICE_STATIC`, shape (S,).
        nodes: Serving nodes, shape (B, P).
        coming: Nodes that load the stage, shape (B, P).
        share: Share of prefill, shape (B, S).
        gain: Share of the distance asked for at once.
        deadband_nodes: Distances below this ask for nothing.
        out: Shape (B, P).
    """
    for b in range(out.shape[0]):
        for s in range(len(service_static)):
            p, d = STAGES * s + PREFILL, STAGES * s + DECODE
            prefill, decode = nodes[b, p] + coming[b, p], nodes[b, d] + coming[b, d]
            total = prefill + decode
            shift = min(max(share[b, s] * total, min(1.0, total)), max(total - 1.0, 0.0)) - prefill
            if service_static[s].kind != DISAGGREGATED or not abs(shift) >= deadband_nodes:
                shift = 0.0
            out[b, p] = _node_bid(prefill, prefill + gain * shift)
            out[b, d] = _node_bid(decode, decode - gain * shift)


@kernel(inline=True)
def _node_bid(have, want):
    return clip(math.log(max(want, 0.5) / max(have, 0.5)) / NODES_EXPONENT, -1.0, 1.0)
