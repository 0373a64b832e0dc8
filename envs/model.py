"""The plant's nominal model, for policies that plan with one: rates at a cap, without an environment's draws.

Implements `policies.base.Model`. Nominal means the middle of MODEL.md's ranges; the plant's truth is drawn around it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..fleet.tables import DECODE, DECODED_SHARE, STAGES
from ..fleet.topology import Fleet
from .hardware import profile_table
from .model_kernels import (
    POOL_ROW,
    decode_batches,
    decode_draws,
    decode_steps,
    marginal_caps,
    node_rates,
    prefill_draws,
)

NOMINAL = (0.65, 0.60, 0.50, 0.55)
"""v_min, phi_knee, kappa, phi_mem (MODEL.md section 2, section 4)."""

CAP_POINTS = 33
BATCH_GRID = np.array([1.0, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024])
PHI_GRID = np.linspace(0.18, 1.0, 83)

PIECES = 24
"""Pieces of each pool's range of caps between which marginal utilities are compared."""

CONTEXT_GRID = np.geomspace(2.0**4, 2.0**20, 1025)
"""Contexts at which pools are tabled, 64 to the octave: interpolated rates are within 0.002 % of exact ones."""

_CONTEXTS = (float(np.log(CONTEXT_GRID[0])), 1.0 / float(np.log(CONTEXT_GRID[1] / CONTEXT_GRID[0])))


@dataclass(frozen=True)
class _Pools:
    """Every pool on its service's commonest product, tabled over caps (J) and contexts (C).

    Attributes:
        rows: `model_kernels.POOL_ROW`, shape (P,).
        prefill_phi: Clock fraction of a prefilling GPU, shape (P, J).
        slots: Requests that a node decodes within its ITL target and its memory, shape (P, C, J); 0 for prefill.
        rates: Tokens/s of that node, shape (P, C, J).
    """

    rows: np.ndarray
    prefill_phi: np.ndarray
    slots: np.ndarray
    rates: np.ndarray


class PlantModel:
    """Rates and latencies of every service on every GPU product, as functions of the cap per GPU.

    Clock fractions are tabled over caps and batches once, and interpolated; pools are tabled over caps and contexts
    when a policy first plans with them.

    Args:
        fleet: The site.
        context_tok: Mean context at which decode draws are tabled; step times use the caller's own context.
    """

    def __init__(self, fleet: Fleet, context_tok: float = 1300.0):
        self.fleet = fleet
        self.profiles = profile_table(fleet)
        services, skus = self.profiles.shape
        self.cap_w = np.zeros((services, skus, CAP_POINTS))
        self.prefill_phi = np.zeros((services, skus, CAP_POINTS))
        self.decode_phi = np.zeros((services, skus, len(BATCH_GRID), CAP_POINTS))
        self._log_batches = np.log(BATCH_GRID)
        self._capacity_rps: dict[tuple[int, float, float], float] = {}
        draw_w = np.zeros(len(PHI_GRID))
        for s in range(services):
            for k in range(skus):
                prof = self._profile(s, k)
                caps = np.linspace(0.15, 1.0, CAP_POINTS) * float(prof["tdp_w"][0])
                self.cap_w[s, k] = caps
                prefill_draws(prof, NOMINAL, PHI_GRID, draw_w)
                self.prefill_phi[s, k] = np.interp(caps, draw_w, PHI_GRID)
                for i, batch in enumerate(BATCH_GRID):
                    decode_draws(prof, NOMINAL, PHI_GRID, batch, context_tok, draw_w)
                    self.decode_phi[s, k, i] = np.interp(caps, draw_w, PHI_GRID)

    # ── one service on one product ───────────────────────────────────────────────────────────────────────
    def prefill_tok_s(self, service: int, sku: int, cap_w: np.ndarray, prompt_tok: float | None = None) -> np.ndarray:
        """Prefill tokens per second and GPU under `cap_w` per GPU, any shape; of long prompts' limit if None."""
        phi = np.interp(cap_w, self.cap_w[service, sku], self.prefill_phi[service, sku])
        if prompt_tok is None:
            return phi * float(self.profiles[service, sku]["prefill_tok_s"])
        prof = self.profiles[service, sku]
        prompt_s = prof["prompt_fixed_s"] + prompt_tok * (prof["prompt_token_s"] + prompt_tok * prof["prompt_token2_s"])
        return phi * float(prompt_tok / (prof["tp"] * prompt_s))

    def decode_step_s(
        self, service: int, sku: int, cap_w: np.ndarray, batch: np.ndarray, context_tok: np.ndarray
    ) -> np.ndarray:
        """Decode step time of one replica with `batch` requests under `cap_w` per GPU; arrays broadcast."""
        shape, (caps, batches, contexts) = _flat(cap_w, batch, context_tok)
        out = np.empty(len(caps))
        decode_steps(*self._tables(service, sku), caps, batches, contexts, out)
        return out.reshape(shape)

    def decode_slots(
        self, service: int, sku: int, cap_w: np.ndarray, itl_s: float, context_tok: np.ndarray
    ) -> np.ndarray:
        """Requests that one replica decodes within `itl_s` and its KV memory under `cap_w` per GPU."""
        shape, (caps, contexts) = _flat(cap_w, context_tok)
        out = np.empty(len(caps))
        decode_batches(*self._tables(service, sku), float(itl_s), caps, contexts, out)
        return out.reshape(shape)

    def replicas(self, service: int, sku: int, gpus: int) -> int:
        """Replicas on a node of `gpus` GPUs."""
        return int(gpus // int(self.profiles[service, sku]["tp"]))

    def _profile(self, service: int, sku: int) -> np.ndarray:
        return self.profiles[service, sku : sku + 1]

    def _tables(self, service: int, sku: int) -> tuple:
        prof, table = self._profile(service, sku), self.decode_phi[service, sku]
        return prof, self.cap_w[service, sku], self._log_batches, table, NOMINAL[3]

    # ── what the fleet carries ───────────────────────────────────────────────────────────────────────────
    def capacity_rps(self, service: int, prompt_tok: float, output_tok: float) -> float:
        """Requests per second that the service's nodes carry uncapped, split at best between the stages.

        With n nodes of mean prefill rate p and mean decode rate d the best split gives n p d / (p + d).
        """
        asked = (service, float(prompt_tok), float(output_tok))
        if asked not in self._capacity_rps:  # every reset asks for the same means
            prefill, decode = self.node_rates_rps(service, prompt_tok, output_tok)
            p, d = float(prefill.mean()), float(decode.mean())
            self._capacity_rps[asked] = len(prefill) * p * d / (p + d)
        return self._capacity_rps[asked]

    def node_rates_rps(self, service: int, prompt_tok: float, output_tok: float) -> tuple[np.ndarray, np.ndarray]:
        """Uncapped requests per second of each of the service's nodes, as prefill and as decode node."""
        static = self.fleet.node_static
        itl_s = float(self.fleet.service_static["itl_s"][service])
        context = np.array(prompt_tok + DECODED_SHARE * output_tok)
        rates: dict[tuple[int, int, int], tuple[float, float]] = {}
        prefill, decode = [], []
        for row in static[static["service"] == service]:
            k, gpus = int(row["sku"]), int(row["gpus"])
            kind = (k, gpus, int(row["cap_max_w"]))
            if kind not in rates:
                cap_w, replicas = np.array(row["cap_max_w"] / gpus), self.replicas(service, k, gpus)
                busy = replicas * int(self.profiles[service, k]["tp"])
                slots = self.decode_slots(service, k, cap_w, itl_s, context)
                step_s = self.decode_step_s(service, k, cap_w, slots, context)
                rates[kind] = (
                    float(self.prefill_tok_s(service, k, cap_w, prompt_tok)) * busy / prompt_tok,
                    float(slots / step_s) * replicas / output_tok,
                )
            prefill.append(rates[kind][0])
            decode.append(rates[kind][1])
        return np.array(prefill), np.array(decode)

    # ── all pools at once, for policies ──────────────────────────────────────────────────────────────────
    @cached_property
    def cap_range_w(self) -> np.ndarray:
        """Lowest cap worth setting and highest legal cap per GPU of every pool, shape (P, 2)."""
        return np.stack([self._pools.rows["low_w"], self._pools.rows["high_w"]], -1)

    def node_tok_s(
        self, cap_w: np.ndarray, prompt_tok: np.ndarray, context_tok: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What one node of every pool does under a cap.

        Args:
            cap_w: Caps per GPU, shape (B, P).
            prompt_tok: Mean prompt length, shape (B, S).
            context_tok: Mean context of decoding requests, shape (B, S).

        Returns:
            Tokens/s (prompt tokens for prefill, output tokens within the ITL target for decode), and requests that
            decode within that target (0 for prefill); shape (B, P) each.
        """
        pools = self._pools
        out, slots = np.empty(cap_w.shape), np.empty(cap_w.shape)
        node_rates(
            self.profiles, pools.rows, _CONTEXTS, pools.prefill_phi, pools.slots, pools.rates, cap_w, context_tok,
            prompt_tok, out, slots,
        )  # fmt: skip
        return out, slots

    def marginal_caps(
        self,
        nodes: np.ndarray,
        gpus: np.ndarray,
        asked_tok_s: np.ndarray,
        value: np.ndarray,
        active: np.ndarray,
        prompt_tok: np.ndarray,
        context_tok: np.ndarray,
        sharpness: float,
        budget_w: np.ndarray,
    ) -> np.ndarray:
        """Caps per GPU that spend a budget where the next watt earns most; see `policies.base.Model`."""
        pools = self._pools
        out = np.empty(nodes.shape)
        marginal_caps(
            self.profiles, pools.rows, _CONTEXTS, pools.prefill_phi, pools.slots, pools.rates, nodes, gpus,
            asked_tok_s, value, active, context_tok, prompt_tok, float(sharpness), budget_w,
            np.empty((nodes.shape[1], 6)), out,
        )  # fmt: skip
        return out

    @cached_property
    def _pools(self) -> _Pools:
        fleet, static = self.fleet, self.fleet.node_static
        pools, caps_n = fleet.pools, PIECES + 1
        rows = np.zeros(pools, POOL_ROW)
        prefill_phi = np.zeros((pools, caps_n))
        slots, rates = (np.zeros((pools, len(CONTEXT_GRID), caps_n)) for _ in range(2))
        for pool in range(pools):
            s = pool // STAGES
            of_service = static[static["service"] == s]
            if not len(of_service):
                continue
            k = int(np.bincount(of_service["sku"]).argmax())
            node = of_service[of_service["sku"] == k][0]
            low = node["decode_floor_w" if pool % STAGES == DECODE else "cap_min_w"] / node["gpus"]
            high, gpus = node["cap_max_w"] / node["gpus"], float(of_service["gpus"].mean())
            rows[pool] = (low, high, gpus, self.replicas(s, k, round(gpus)), k)
            caps = np.linspace(low, high, caps_n)
            if pool % STAGES != DECODE:
                prefill_phi[pool] = np.interp(caps, self.cap_w[s, k], self.prefill_phi[s, k])
                continue
            contexts, itl_s = CONTEXT_GRID[:, None], float(fleet.service_static["itl_s"][s])
            fit = self.decode_slots(s, k, caps[None], itl_s, contexts)
            slots[pool] = rows["replicas"][pool] * fit
            rates[pool] = slots[pool] / self.decode_step_s(s, k, caps[None], fit, contexts)
        return _Pools(rows, prefill_phi, slots, rates)


def _flat(*arrays) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Broadcast, then as flat contiguous float64."""
    full = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arrays))
    return full[0].shape, [np.array(a, np.float64).reshape(-1) for a in full]
