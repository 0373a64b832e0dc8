"""Step times of the plant for the replay: one service on one GPU product, at the clocks that the plant ran.

The replay asks the plant's own laws for every step, so that what it checks is the *queueing* of the closed forms, never
the service times.
"""

from dataclasses import dataclass

import numpy as np

from ...envs import physics

TRANSFER_EFFICIENCY = 0.8
MESSAGE_S = 1e-5
"""KV transfer as in `envs.serving_dynamics` (MODEL.md section 6)."""


@dataclass(frozen=True)
class Laws:
    """Service times of one replica.

    Attributes:
        prof: One row of `envs.hardware.PROFILE`.
        prefill_phi: Clock fraction of the prefill nodes.
        decode_phi: Clock fraction of the decode nodes.
        phi_mem: Clock fraction below which memory-bound work slows down.
    """

    prof: np.record
    prefill_phi: float
    decode_phi: float
    phi_mem: float

    def prompt_s(self, prompt_tok: float) -> float:
        """Prefill of one prompt."""
        law = getattr(physics, "prompt_s", None)
        if law is not None:
            return float(law(self.prof, prompt_tok)) / self.prefill_phi
        return prompt_tok / (float(self.prof.prefill_tok_s) * float(self.prof.tp) * self.prefill_phi)

    def step_s(self, batch: int, context_tok: float) -> float:
        """One decode step of `batch` requests of this mean context."""
        law = getattr(physics, "decode_step_s", None)
        if law is not None:
            full_s = float(law(self.prof, float(batch), context_tok))
        else:
            a_s, slope_s = physics.decode_coefficients(self.prof, context_tok)
            full_s = a_s + slope_s * batch
        return full_s / physics.relative_rate(self.decode_phi, physics.compute_share(float(batch)), self.phi_mem)

    def transfer_s(self, prompt_tok: float) -> float:
        """KV transfer of one prompt."""
        link = float(self.prof.link) * float(self.prof.tp)
        return MESSAGE_S + prompt_tok * float(self.prof.kv_bytes_token) / (TRANSFER_EFFICIENCY * link)

    @property
    def kv_tokens(self) -> float:
        """Tokens of context whose KV fits one replica."""
        return float(physics.kv_batch(self.prof, 1.0))


def row(profiles: np.ndarray, service: int, sku: int) -> np.record:
    """A profile row that answers by attribute, in Python and in kernels alike."""
    return profiles.view(np.recarray)[service, sku]
