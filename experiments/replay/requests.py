"""Requests one by one for the replay, and the same requests as the plant takes them: counts and means per tick."""

from dataclasses import dataclass

import numpy as np

from ...envs.load import Load


@dataclass(frozen=True)
class Requests:
    """Requests in order of arrival.

    Attributes:
        t_s: Arrival times, shape (R,).
        prompt_tok: Prompt lengths.
        output_tok: Output lengths, at least 1.
        ca2: Squared CV of inter-arrival times that they were drawn with.
        cs2: Squared CV of prompt lengths.
        seconds: Length of the episode.
    """

    t_s: np.ndarray
    prompt_tok: np.ndarray
    output_tok: np.ndarray
    ca2: float
    cs2: float
    seconds: float

    def load(self, tick_s: float) -> Load:
        """As the plant's load: shape (1, T, 1)."""
        ticks = round(self.seconds / tick_s)
        index = np.minimum((self.t_s / tick_s).astype(np.int64), ticks - 1)
        count = np.bincount(index, minlength=ticks).astype(float)
        safe = np.maximum(count, 1.0)

        def mean(values: np.ndarray) -> np.ndarray:
            sums = np.bincount(index, values, ticks)
            return np.where(count > 0, sums / safe, values.mean())[None, :, None]

        return Load(
            count[None, :, None],
            mean(self.prompt_tok),
            mean(self.output_tok),
            np.full((1, 1), self.ca2),
            np.full((1, 1), self.cs2),
            tick_s,
            "replay",
            1.0,
        )


def _lognormal(rng: np.random.Generator, mean: float, cv: float, n: int) -> np.ndarray:
    sigma2 = np.log1p(cv * cv)
    return np.maximum(np.rint(rng.lognormal(np.log(mean) - 0.5 * sigma2, np.sqrt(sigma2), n)), 1.0)


def draw_requests(
    rng: np.random.Generator,
    rate_rps: float,
    seconds: float,
    arrival_cv: float = 1.0,
    prompt: tuple[float, float] = (1155.0, 0.96),
    output: tuple[float, float] = (211.0, 0.77),
) -> Requests:
    """A renewal process with Gamma gaps (exponential with CV 1) and lognormal lengths.

    Args:
        rng: Source of chance.
        rate_rps: Mean arrivals per second.
        seconds: Length of the episode.
        arrival_cv: CV of the gaps.
        prompt: Mean and CV of prompt lengths; by default those of `envs.load` (Azure conversation trace).
        output: The same of outputs.
    """
    shape = 1.0 / arrival_cv**2
    expected = rate_rps * seconds
    gaps = rng.gamma(shape, 1.0 / (rate_rps * shape), int(expected + 6 * arrival_cv * np.sqrt(expected) + 20))
    t_s = np.cumsum(gaps)
    t_s = t_s[t_s < seconds]
    n = len(t_s)
    return Requests(
        t_s, _lognormal(rng, *prompt, n), _lognormal(rng, *output, n), arrival_cv**2, prompt[1] ** 2, seconds
    )
