"""The plant's nominal model, for policies that plan with one: rates at a cap, without an environment's draws.

Implements `policies.base.Model`. Nominal means the middle of MODEL.md's ranges; the plant's truth is drawn around it.
"""

import numpy as np

from ..fleet.topology import Fleet
from .hardware import profile_table
from .physics import busy_power_w, compute_share, decode_step_s, decode_use

NOMINAL = (0.65, 0.60, 0.50, 0.55)
"""v_min, phi_knee, kappa, phi_mem (MODEL.md section 2, section 4)."""

CAP_POINTS = 33
BATCH_GRID = np.array([1.0, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024])
PHI_GRID = np.linspace(0.18, 1.0, 83)


class PlantModel:
    """Rates and latencies of every service on every GPU product, as functions of the cap per GPU.

    Clock fractions are tabled over caps and batches once, and interpolated.

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
        for s in range(services):
            for k in range(skus):
                self._table(s, k, context_tok)

    def _table(self, s: int, k: int, context_tok: float) -> None:
        prof = self.profiles[s, k]
        caps = np.linspace(0.15, 1.0, CAP_POINTS) * float(prof["tdp_w"])
        self.cap_w[s, k] = caps
        draw = [
            busy_power_w.py_func(phi, 1.0, _f(prof, "um_prefill"), _f(prof, "mfu_prefill"), _R(prof), 1.0, *NOMINAL)
            for phi in PHI_GRID
        ]
        self.prefill_phi[s, k] = np.interp(caps, draw, PHI_GRID)
        for i, batch in enumerate(BATCH_GRID):
            step_s = decode_step_s.py_func(_R(prof), batch, context_tok)
            u_m, u_c = decode_use.py_func(_R(prof), batch, context_tok, step_s)
            cb = compute_share.py_func(batch)
            draw = [busy_power_w.py_func(phi, cb, u_m, u_c, _R(prof), 1.0, *NOMINAL) for phi in PHI_GRID]
            self.decode_phi[s, k, i] = np.interp(caps, draw, PHI_GRID)

    def prefill_tok_s(self, service: int, sku: int, cap_w: np.ndarray) -> np.ndarray:
        """Prefill tokens per second and GPU under `cap_w` per GPU, any shape."""
        phi = np.interp(cap_w, self.cap_w[service, sku], self.prefill_phi[service, sku])
        return phi * float(self.profiles[service, sku]["prefill_tok_s"])

    def decode_step_s(
        self, service: int, sku: int, cap_w: np.ndarray, batch: np.ndarray, context_tok: np.ndarray
    ) -> np.ndarray:
        """Decode step time of one replica with `batch` requests under `cap_w` per GPU; arrays broadcast."""
        phi = self._decode_phi(service, sku, cap_w, batch)
        cb = batch / (batch + 300.0)
        rate = 1.0 / (cb / phi + (1.0 - cb) * np.maximum(1.0, NOMINAL[3] / phi))
        return decode_step_s.py_func(_R(self.profiles[service, sku]), batch, np.asarray(context_tok)) / rate

    def decode_slots(
        self, service: int, sku: int, cap_w: np.ndarray, itl_s: float, context_tok: np.ndarray
    ) -> np.ndarray:
        """Requests that one replica decodes within `itl_s` and its KV memory under `cap_w` per GPU."""
        room = np.maximum(self.kv_slots(service, sku, context_tok), 1.0)
        batch = np.clip(self._batch_within(service, sku, itl_s, context_tok), 1.0, room)
        for _ in range(2):  # the clock depends on the batch: two fixed-point steps (MODEL.md section 7)
            phi = self._decode_phi(service, sku, cap_w, batch)
            cb = batch / (batch + 300.0)
            rate = 1.0 / (cb / phi + (1.0 - cb) * np.maximum(1.0, NOMINAL[3] / phi))
            batch = np.clip(self._batch_within(service, sku, itl_s * rate, context_tok), 1.0, room)
        return batch

    def kv_slots(self, service: int, sku: int, context_tok: np.ndarray) -> np.ndarray:
        """Requests whose KV fits one replica."""
        prof = self.profiles[service, sku]
        room = 0.9 * prof["tp"] * prof["hbm"] - prof["weight_bytes"]
        return np.maximum(room / (np.asarray(context_tok) * prof["kv_bytes_token"]), 0.0)

    def replicas(self, service: int, sku: int, gpus: int) -> int:
        """Replicas on a node of `gpus` GPUs."""
        return int(gpus // int(self.profiles[service, sku]["tp"]))

    def capacity_rps(self, service: int, prompt_tok: float, output_tok: float) -> float:
        """Requests per second that the service's nodes carry uncapped, split at best between the stages.

        With n nodes of mean prefill rate p and mean decode rate d the best split gives n p d / (p + d).
        """
        prefill, decode = self.node_rates_rps(service, prompt_tok, output_tok)
        n = len(prefill)
        p, d = float(prefill.mean()), float(decode.mean())
        return n * p * d / (p + d)

    def node_rates_rps(self, service: int, prompt_tok: float, output_tok: float) -> tuple[np.ndarray, np.ndarray]:
        """Uncapped requests per second of each of the service's nodes, as prefill and as decode node."""
        static = self.fleet.node_static
        itl_s = float(self.fleet.service_static["itl_s"][service])
        prefill, decode = [], []
        context = prompt_tok + 0.5 * output_tok
        for row in static[static["service"] == service]:
            k = int(row["sku"])
            gpus = self.replicas(service, k, int(row["gpus"])) * int(self.profiles[service, k]["tp"])
            cap_w = np.array(row["cap_max_w"] / row["gpus"])
            prefill.append(float(self.prefill_tok_s(service, k, cap_w)) * gpus / prompt_tok)
            slots = self.decode_slots(service, k, cap_w, itl_s, np.array(context))
            step_s = self.decode_step_s(service, k, cap_w, slots, np.array(context))
            replicas = self.replicas(service, k, int(row["gpus"]))
            decode.append(float(slots / step_s) * replicas / output_tok)
        return np.array(prefill), np.array(decode)

    def _batch_within(self, service: int, sku: int, itl_s, context_tok) -> np.ndarray:
        """`physics.decode_batch_within` over arrays."""
        prof = _R(self.profiles[service, sku])
        x = np.maximum(np.asarray(itl_s) - prof.step_fixed_s, 0.0)
        slope = prof.step_request_s + prof.step_context_s * np.asarray(context_tok)
        p = slope * prof.experts_half + prof.step_experts_s - x
        return (np.sqrt(p * p + 4.0 * slope * x * prof.experts_half) - p) / (2.0 * slope)

    def _decode_phi(self, service: int, sku: int, cap_w, batch) -> np.ndarray:
        """Bilinear in (log batch, cap)."""
        caps, table = self.cap_w[service, sku], self.decode_phi[service, sku]
        cap_w, batch = np.broadcast_arrays(np.asarray(cap_w, float), np.asarray(batch, float))
        x = np.clip((cap_w - caps[0]) / (caps[1] - caps[0]), 0, CAP_POINTS - 1.000001)
        y = np.clip(
            np.interp(np.log(np.maximum(batch, 1.0)), np.log(BATCH_GRID), np.arange(len(BATCH_GRID))),
            0,
            len(BATCH_GRID) - 1.000001,
        )
        i, j = x.astype(int), y.astype(int)
        fx, fy = x - i, y - j
        low = table[j, i] * (1 - fx) + table[j, i + 1] * fx
        high = table[j + 1, i] * (1 - fx) + table[j + 1, i + 1] * fx
        return low * (1 - fy) + high * fy


class _R:
    """A profile row read by attribute, as the compiled kernels do."""

    def __init__(self, row: np.void):
        self._row = row

    def __getattr__(self, name: str) -> float:
        return float(self._row[name])


def _f(row: np.void, name: str) -> float:
    return float(row[name])
