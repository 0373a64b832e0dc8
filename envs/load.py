"""Load: how many requests of what size arrive in each tick, from published statistics or from a file.

Every environment has its own generator, seeded by (seed, stream, block): a batch of B is B single draws.

Where the numbers come from:

* Azure LLM inference trace 2023, conversation (Patel et al., Splitwise, ISCA'24; CC-BY 4.0), 19,366 requests
  in 3,502 s: prompts mean 1155 and p99 4142 tokens, outputs mean 211 and p99 601, squared CV of inter-arrival
  1.20; rate in 10-s bins CV 0.27 (0.23 without the Poisson part, which a fleet's rate averages out) and
  peak/mean 1.77, its correlation falling by a factor e in about 300 s; mean lengths drift between minutes
  with CV 0.17 (prompt) and 0.23 (output), beyond what chance alone gives.
* ServeGen (arXiv 2505.09999; Apache-2.0), 7 days of a model platform: 10-min rate CV 0.28-0.37, 99th
  percentile over mean 1.6-1.9; first harmonic of the day 0.12-0.24; CV of a client's inter-arrival: median
  1.2, upper quartile 2.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..fleet.errors import LoadError, ScenarioError
from ..fleet.toml_file import number
from .slow_noise import ornstein_uhlenbeck
from .traces import RateTable, Requests

LOAD_STREAM = 1
"""Second word of the seed of load, so that faults and parameters drawn from the same seed are independent."""

BLOCKS = ("all", "train", "validation", "test")
"""Time-separated thirds of a trace, and all of it; for generated load, separate streams of seeds."""

Capacity = Callable[[int, float, float], float] | Sequence[float] | np.ndarray
"""Requests/s the fleet can serve: a function of (service, prompt tokens, output tokens), or shape (S,)."""

_MIN_RATE_FACTOR = 0.02  # the gamma approximation below may touch zero; a service is never wholly silent
_MAX_ARRIVALS = 1e12  # per tick: a slipped unit, not a load


@dataclass(frozen=True)
class ServiceLoad:
    """[[load.service]]: what differs from the rest of [load] for one service.

    Attributes:
        name: The service.
        share: Multiplies `target_util`.
        prompt_tokens: Mean prompt length; 0 takes the load's.
        output_tokens: Mean output length; 0 takes the load's.
        phase_frac: Added to the phase of the day and of the mix shift, in periods.
    """

    name: str
    share: float = number(1.0, low=0, high=10)
    prompt_tokens: float = number(0.0, low=0, high=1e7)
    output_tokens: float = number(0.0, low=0, high=1e7)
    phase_frac: float = number(0.0, low=-1, high=1)


@dataclass(frozen=True)
class LoadSpec:
    """[load] of a scenario.

    Attributes:
        target_util: Long-run mean of arrivals / what the fleet could serve of the mean lengths, uncapped.
        scale: Fixed superposition factor of a file (1: the trace as it is); None reaches `target_util`.
        shift_s: Largest time shift between superposed copies of a trace; 0 is the whole block. Short shifts
            keep the trace's bursts common to all copies, long ones average them out.
        prompt_tokens: Mean prompt length of generated load, and of a rate table without lengths.
        output_tokens: Mean output length.
        prompt_cv: Standard deviation / mean of prompt lengths, lognormal.
        output_cv: The same of output lengths.
        ca2: Squared CV of inter-arrival times, at least 1 (Poisson).
        rate_cv: CV of the slowly varying rate (doubly stochastic arrivals).
        rate_corr_s: Time in which that rate's correlation falls by a factor e.
        drift_cv_prompt: CV of the minute-to-minute mean prompt length.
        drift_cv_output: CV of the minute-to-minute mean output length.
        diurnal_amplitude: First harmonic of the day, as a share of the mean.
        diurnal_period_s: Length of the day; shorter than 86400 is a day in time lapse.
        burst_per_hour: Rate of bursts, per service.
        burst_height: Mean height of a burst, as a multiple of the mean rate (1 is none).
        burst_s: Mean time at full height.
        burst_ramp_s: From onset to full height, and back.
        mix_shift_amplitude: Means swing by exp(+-this): prompts up while outputs go down, and back.
        mix_period_s: Period of that swing.
        prefix_hit_frac: Share of a prompt's tokens whose KV a prefix cache holds: they need no prefill.
        retry_frac: Share of rejected requests that come back, once.
        retry_after_s: Mean time until they do.
        service: Exceptions per service.
    """

    target_util: float = number(0.75, above=0, high=10)
    scale: float | None = number(None, above=0, high=1e7)
    shift_s: float = number(0.0, low=0, high=1e8)
    prompt_tokens: float = number(1155.0, low=1, high=1e7)
    output_tokens: float = number(211.0, low=1, high=1e7)
    prompt_cv: float = number(0.96, low=0, high=20)
    output_cv: float = number(0.77, low=0, high=20)
    ca2: float = number(1.2, low=1, high=100)
    rate_cv: float = number(0.23, low=0, high=1)
    rate_corr_s: float = number(300.0, above=0, high=1e6)
    drift_cv_prompt: float = number(0.17, low=0, high=1)
    drift_cv_output: float = number(0.23, low=0, high=1)
    diurnal_amplitude: float = number(0.0, low=0, high=0.95)
    diurnal_period_s: float = number(86400.0, above=0, high=1e7)
    burst_per_hour: float = number(0.0, low=0, high=3600)
    burst_height: float = number(1.0, low=1, high=100)
    burst_s: float = number(60.0, above=0, high=86400)
    burst_ramp_s: float = number(5.0, low=0, high=3600)
    mix_shift_amplitude: float = number(0.0, low=0, high=3)
    mix_period_s: float = number(600.0, above=0, high=1e7)
    prefix_hit_frac: float = number(0.0, low=0, high=0.99)
    retry_frac: float = number(0.0, low=0, high=1)
    retry_after_s: float = number(5.0, above=0, high=3600)
    service: tuple[ServiceLoad, ...] = field(default=())

    def of(self, name: str) -> ServiceLoad:
        """What `[[load.service]]` says of a service, or the defaults."""
        return next((s for s in self.service if s.name == name), ServiceLoad(name))


@dataclass(frozen=True)
class Load:
    """Arrivals of a batch of environments.

    Attributes:
        arrivals: Requests arriving in each tick, shape (B, T, S), float64, whole numbers.
        prompt_tokens: Mean prompt length of that tick's requests, (B, T, S); the last mean in empty ticks.
        output_tokens: The same of outputs.
        ca2: Squared CV of inter-arrival times within a tick or so, (B, S), for Allen-Cunneen.
        cs2: Squared CV of prompt lengths, (B, S), hence of prefill times.
        tick_s: Length of a tick.
        source: "generated", or the file with the first digits of its SHA-256.
        scale: Superposition factor of a file, mean over services (1 for generated load).
    """

    arrivals: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    ca2: np.ndarray
    cs2: np.ndarray
    tick_s: float
    source: str
    scale: float

    @property
    def batch(self) -> int:
        return self.arrivals.shape[0]

    @property
    def ticks(self) -> int:
        return self.arrivals.shape[1]

    @property
    def seconds(self) -> float:
        return self.ticks * self.tick_s

    def env(self, index: int) -> "Load":
        """One environment as a batch of one (a view)."""
        cut = slice(index, index + 1)
        names = ("arrivals", "prompt_tokens", "output_tokens", "ca2", "cs2")
        return replace(self, **{name: getattr(self, name)[cut] for name in names})


def make_load(
    spec: LoadSpec,
    capacity_rps: Capacity,
    seconds: float,
    tick_s: float,
    seeds: Sequence[int],
    services: Sequence[str],
    file: Requests | RateTable | None = None,
    block: str = "all",
) -> Load:
    """Load from `file` where there is one, generated otherwise; arguments as in `generate_load`."""
    if file is None:
        return generate_load(spec, capacity_rps, seconds, tick_s, seeds, services, block)
    return superpose(file, spec, capacity_rps, seconds, tick_s, seeds, services, block)


def generate_load(
    spec: LoadSpec,
    capacity_rps: Capacity,
    seconds: float,
    tick_s: float,
    seeds: Sequence[int],
    services: Sequence[str],
    block: str = "all",
) -> Load:
    """Draw a batch of loads from the embedded generator.

    The expected number of arrivals is `target_util * share * capacity * seconds`, bursts included: arrivals
    of an episode scatter around it with the slow rate, as they do from one quarter of an hour to the next.

    Args:
        spec: What to draw.
        capacity_rps: Requests/s that the fleet can serve.
        seconds: Length of the episode.
        tick_s: Length of a tick.
        seeds: One seed per environment, shape (B,).
        services: Names of the services, in the fleet's order.
        block: One of `BLOCKS`; each is a separate stream of seeds.

    Raises:
        ScenarioError: an unknown block, a service that the fleet does not have, or a seed below 0.
    """
    ticks = _ticks(seconds, tick_s)
    _check_services(spec, services)
    shape = (len(seeds), ticks, len(services))
    own = [spec.of(name) for name in services]
    prompt = np.array([s.prompt_tokens or spec.prompt_tokens for s in own])
    output = np.array([s.output_tokens or spec.output_tokens for s in own])
    phase_frac = np.array([s.phase_frac for s in own])
    share = np.array([s.share for s in own])
    capacity = np.array([_capacity(capacity_rps, i, prompt[i], output[i]) for i in range(len(services))])
    mean_arrivals = spec.target_util * share * capacity * tick_s
    rngs = [_generator(seed, block) for seed in seeds]
    # drawn first and for all kinds of load, so that changing one parameter leaves the other noise as it was
    day_phase = np.array([rng.random() for rng in rngs])[:, None, None]
    mix_phase = np.array([rng.random() for rng in rngs])[:, None, None]
    slow = ornstein_uhlenbeck(rngs, shape, tick_s, spec.rate_corr_s)
    bursts = np.stack([_bursts(spec, rng, ticks, tick_s, len(services)) for rng in rngs])

    t_s = (np.arange(ticks) + 0.5)[None, :, None] * tick_s
    rate = _gamma(slow[..., 0], spec.rate_cv)
    if spec.diurnal_amplitude:
        rate *= 1 + spec.diurnal_amplitude * np.sin(2 * np.pi * (t_s / spec.diurnal_period_s + day_phase + phase_frac))
    burst_mean = spec.burst_per_hour / 3600 * (spec.burst_s + spec.burst_ramp_s) * (spec.burst_height - 1)
    # bursts come on top of the slow rate and add requests of their own; together they have mean 1
    expected = (rate + bursts) / (1 + burst_mean) * mean_arrivals
    _check_size(expected)
    mean_prompt = prompt * _gamma(slow[..., 1], spec.drift_cv_prompt)
    mean_output = output * _gamma(slow[..., 2], spec.drift_cv_output)
    if spec.mix_shift_amplitude:
        swing = spec.mix_shift_amplitude * np.sin(2 * np.pi * (t_s / spec.mix_period_s + mix_phase + phase_frac))
        # the mean of exp(a sin) over a period is I0(a): lengths keep their mean
        level = float(np.i0(spec.mix_shift_amplitude))
        mean_prompt *= np.exp(swing) / level
        mean_output *= np.exp(-swing) / level
    arrivals = np.stack([_counts(rng, e, spec.ca2) for rng, e in zip(rngs, expected, strict=True)])
    noise = np.stack([rng.standard_normal((2, *shape[1:])) for rng in rngs])
    return Load(
        arrivals,
        _carried(arrivals, _sample_mean(noise[:, 0], mean_prompt, spec.prompt_cv, arrivals), prompt),
        _carried(arrivals, _sample_mean(noise[:, 1], mean_output, spec.output_cv, arrivals), output),
        np.full((shape[0], shape[2]), spec.ca2),
        np.full((shape[0], shape[2]), spec.prompt_cv**2),
        tick_s,
        "generated",
        1.0,
    )


def superpose(
    file: Requests | RateTable,
    spec: LoadSpec,
    capacity_rps: Capacity,
    seconds: float,
    tick_s: float,
    seeds: Sequence[int],
    services: Sequence[str],
    block: str = "all",
) -> Load:
    """Lay shifted copies of a file's requests over each other until they reach the target.

    A trace's block is cut, per environment, at a seeded place and read in a circle where the episode is
    longer. A factor of 7.4 is seven whole copies, each shifted by a seeded number of ticks within the block,
    and one in which each request is kept with probability 0.4. `spec.scale` replaces the factor that
    `target_util` asks for; with 1 the trace is neither shifted nor thinned, and an episode of the block's
    length starts at its beginning. Each service draws its own shifts. A rate table's rates are multiplied and
    its counts drawn.

    Args:
        file: Requests or rates.
        spec: `target_util`, `scale`, `shift_s`, shares of services; for rate tables `ca2`, CVs, mean lengths.
        capacity_rps: Requests/s that the fleet can serve of requests as long as the file's.
        seconds: Length of the episode.
        tick_s: Length of a tick.
        seeds: One seed per environment, shape (B,).
        services: Names of the services, in the fleet's order.
        block: Which third of the file, or "all".

    Raises:
        LoadError: a block without requests.
        ScenarioError: an unknown block, a service that the fleet does not have, or a seed below 0.
    """
    ticks = _ticks(seconds, tick_s)
    _check_services(spec, services)
    rngs = [_generator(seed, block) for seed in seeds]
    draw = _superpose_rates if isinstance(file, RateTable) else _superpose_requests
    arrivals, prompt_sum, output_sum, means, ca2, cs2, scale = draw(
        file, spec, capacity_rps, ticks, tick_s, rngs, services, block
    )
    safe = np.maximum(arrivals, 1)
    batch = len(rngs)
    return Load(
        arrivals,
        _carried(arrivals, prompt_sum / safe, np.full(len(services), means[0])),
        _carried(arrivals, output_sum / safe, np.full(len(services), means[1])),
        np.tile(ca2, (batch, 1)),
        np.tile(cs2, (batch, 1)),
        tick_s,
        f"{file.source} {file.digest}",
        scale,
    )


def _superpose_requests(trace, spec, capacity_rps, ticks, tick_s, rngs, services, block):
    t_s, prompt, output, length_s = trace.block(block)
    # the circle is closed at the next whole tick
    bins = max(1, int(np.ceil(length_s / tick_s - 1e-9)))
    index = np.minimum((t_s / tick_s).astype(np.int64), bins - 1)
    # per bin: requests, prompt tokens, output tokens; whole numbers: sums do not depend on their order
    table = np.stack([np.bincount(index, w, bins) for w in (np.ones_like(prompt), prompt, output)])
    means = (float(prompt.mean()), float(output.mean()))
    rate_rps = len(t_s) / (bins * tick_s)
    factors = _factors(spec, capacity_rps, services, means, rate_rps)
    largest_shift = bins if spec.shift_s == 0 else min(bins, int(spec.shift_s / tick_s) + 1)
    sums = np.zeros((len(rngs), 3, ticks, len(services)))
    for env, rng in enumerate(rngs):
        start = int(rng.integers(bins)) if ticks != bins else 0
        window = (start + np.arange(ticks)) % bins
        for s, factor in enumerate(factors):
            whole, rest = int(factor), factor - int(factor)
            moved = np.zeros(whole + 1, np.int64)
            if factor != 1:
                moved = rng.integers(0, largest_shift, whole + 1)
            shift, copies = np.unique(moved[:whole], return_counts=True)
            for k, n in zip(shift, copies, strict=True):
                sums[env, :, :, s] += n * table[:, (window - k) % bins]
            if rest > 1e-9:
                kept = rng.random(len(index)) < rest
                part = [np.bincount(index[kept], w[kept], bins) for w in (np.ones_like(prompt), prompt, output)]
                sums[env, :, :, s] += np.stack(part)[:, (window - moved[whole]) % bins]
    _check_size(sums[:, 0])
    ca2 = np.array([_superposed_ca2(trace.ca2, f, spec.target_util) for f in factors])
    cs2 = np.full(len(services), float((prompt.std() / prompt.mean()) ** 2))
    return sums[:, 0], sums[:, 1], sums[:, 2], means, ca2, cs2, float(np.mean(factors))


def _superpose_rates(table, spec, capacity_rps, ticks, tick_s, rngs, services, block):
    t_s, rate_rps, prompt, output, length_s = table.block(block)
    prompt = np.full(len(t_s), spec.prompt_tokens) if prompt is None else prompt
    output = np.full(len(t_s), spec.output_tokens) if output is None else output
    # each row holds until the next
    weight = np.diff(np.append(t_s, length_s)) * rate_rps
    if weight.sum() <= 0:
        raise LoadError(f"{table.source}: no arrivals in the {block} block; use another block or a longer table")
    means = (float(np.average(prompt, weights=weight)), float(np.average(output, weights=weight)))
    factors = _factors(spec, capacity_rps, services, means, weight.sum() / length_s)
    shape = (len(rngs), ticks, len(services))
    arrivals, prompts, outputs = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for env, rng in enumerate(rngs):
        start_s = 0.0 if ticks * tick_s >= length_s else rng.random() * length_s
        row = np.searchsorted(t_s, (start_s + (np.arange(ticks) + 0.5) * tick_s) % length_s, side="right") - 1
        expected = rate_rps[row][:, None] * np.array(factors) * tick_s
        _check_size(expected)
        n = _counts(rng, expected, spec.ca2)
        noise = rng.standard_normal((2, *expected.shape))
        arrivals[env] = n
        prompts[env] = n * _sample_mean(noise[0], prompt[row][:, None], spec.prompt_cv, n)
        outputs[env] = n * _sample_mean(noise[1], output[row][:, None], spec.output_cv, n)
    ca2, cs2 = np.full(len(services), spec.ca2), np.full(len(services), spec.prompt_cv**2)
    return arrivals, prompts, outputs, means, ca2, cs2, float(np.mean(factors))


def _factors(spec, capacity_rps, services, means, rate_rps) -> list[float]:
    """How many copies of the file each service gets."""
    if spec.scale is not None:
        return [spec.scale * spec.of(name).share for name in services]
    return [
        spec.target_util * spec.of(name).share * _capacity(capacity_rps, i, *means) / rate_rps
        for i, name in enumerate(services)
    ]


def _superposed_ca2(ca2: float, factor: float, util: float) -> float:
    """Squared CV of inter-arrival of `factor` independent copies.

    Whitt, The Queueing Network Analyzer, BSTJ 62(9), 1983, eqs. (29)-(33): w*ca2 + 1 - w with
    w = 1/(1 + 4(1-rho)^2(v-1)), v the number of equal streams: many streams look Poisson to a queue that is
    not nearly full.
    """
    streams = max(factor, 1.0)
    weight = 1 / (1 + 4 * (1 - min(util, 1.0)) ** 2 * (streams - 1))
    return float(max(weight * ca2 + 1 - weight, 0.05))


def _capacity(capacity_rps: Capacity, service: int, prompt: float, output: float) -> float:
    value = capacity_rps(service, prompt, output) if callable(capacity_rps) else capacity_rps[service]
    value = float(value)
    if not 0 < value < np.inf:
        raise ScenarioError(f"service {service}: the fleet's capacity is {value} requests/s; it must be above 0")
    return value


def _generator(seed: int, block: str) -> np.random.Generator:
    if block not in BLOCKS:
        raise ScenarioError(f"no block {block!r}; use one of {', '.join(BLOCKS)}")
    if seed < 0:
        raise ScenarioError(f"seed {seed}: must be 0 or more")
    return np.random.default_rng(np.random.SeedSequence([int(seed), LOAD_STREAM, BLOCKS.index(block)]))


def _ticks(seconds: float, tick_s: float) -> int:
    ticks = round(seconds / tick_s)
    if ticks < 1:
        raise ScenarioError(f"seconds: {seconds:g} s is shorter than one tick of {tick_s:g} s")
    return ticks


def _check_services(spec: LoadSpec, services: Sequence[str]) -> None:
    for s in spec.service:
        if s.name not in services:
            raise ScenarioError(f"load.service: the site has no service {s.name!r}; it has {', '.join(services)}")


def _check_size(arrivals: np.ndarray) -> None:
    if arrivals.size and not arrivals.max() < _MAX_ARRIVALS:
        raise ScenarioError(
            f"load: {arrivals.max():.3g} arrivals in one tick; lower target_util, scale or the file's rates"
        )


def _gamma(z: np.ndarray, cv: float) -> np.ndarray:
    """Standard normals to a gamma of mean 1: its cube root is nearly normal (Wilson, Hilferty, PNAS 1931)."""
    if cv == 0:
        return np.ones_like(z)
    ninth = cv**2 / 9
    root = z * np.sqrt(ninth)
    root += 1 - ninth
    cube = root * root  # a power of 3 calls the C library's pow for every number
    cube *= root
    return np.maximum(cube, _MIN_RATE_FACTOR, out=cube)


def _bursts(spec: LoadSpec, rng: np.random.Generator, ticks: int, tick_s: float, services: int) -> np.ndarray:
    """Requests of bursts over the mean rate, shape (T, S)."""
    out = np.zeros((ticks, services))
    lead_s = 4 * spec.burst_s + 2 * spec.burst_ramp_s  # a burst may have begun before the episode
    span_s = ticks * tick_s + lead_s
    t_s = (np.arange(ticks) + 0.5) * tick_s
    ramp_s = max(spec.burst_ramp_s, 1e-9)
    for s in range(services):
        for _ in range(rng.poisson(spec.burst_per_hour * span_s / 3600)):
            onset_s = rng.random() * span_s - lead_s
            hold_s = spec.burst_s * rng.uniform(0.5, 1.5)
            height = (spec.burst_height - 1) * rng.uniform(0.5, 1.5)
            # from its onset to its end; before and after it the burst adds nothing
            first, last = (int(x / tick_s) for x in (max(onset_s, 0.0), max(onset_s + 2 * ramp_s + hold_s, 0.0)))
            during_s = t_s[first : last + 1] - onset_s
            rise = np.minimum(np.maximum(during_s / ramp_s, 0), 1)
            fall = np.minimum(np.maximum((during_s - ramp_s - hold_s) / ramp_s, 0), 1)
            out[first : last + 1, s] += height * (rise - fall)
    return out


def _counts(rng: np.random.Generator, expected: np.ndarray, ca2: float) -> np.ndarray:
    """Whole numbers of mean `expected` and variance `ca2 * expected`: Poisson, or negative binomial above 1.

    The index of dispersion of counts of a renewal process tends to the squared CV of its inter-arrival times
    (Cox and Lewis 1966).
    """
    if ca2 > 1:
        expected = (ca2 - 1) * rng.standard_gamma(expected / (ca2 - 1))
    return rng.poisson(expected).astype(np.float64)


def _sample_mean(z: np.ndarray, mean, cv: float, count: np.ndarray) -> np.ndarray:
    """Mean of `count` lognormal lengths: a lognormal of the same two moments (Fenton, IRE Trans. CS 1960)."""
    sigma = np.sqrt(np.log1p(cv**2 / np.maximum(count, 1)))
    return np.maximum(mean * np.exp(sigma * z - sigma**2 / 2), 1.0)


def _carried(arrivals: np.ndarray, mean: np.ndarray, start: np.ndarray) -> np.ndarray:
    """`mean` where something arrived, the last such value elsewhere, `start` before the first."""
    if arrivals.size and arrivals.min() > 0:
        return mean
    ticks = np.arange(arrivals.shape[1])[None, :, None]
    last = np.maximum.accumulate(np.where(arrivals > 0, ticks, -1), axis=1)
    return np.where(last >= 0, np.take_along_axis(mean, np.maximum(last, 0), axis=1), start)
