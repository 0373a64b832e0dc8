"""Scenarios: one TOML file says what happens, and its name is all that every other part takes."""

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

from ..fleet.errors import BadInput, ScenarioError
from ..fleet.site_file import load_site
from ..fleet.toml_file import find_file, names_in, number, parse, read_toml
from ..fleet.topology import Fleet
from .batch_jobs import BatchSpec, QueueSpec, check_batch
from .events import BUDGET, LIMIT_KINDS, MAX_PLANT_EVENTS, Event, check_event, check_keys
from .load import LoadSpec, ServiceLoad
from .training_jobs import TrainingSpec, check_training, training_services
from .weather import WeatherSpec, read_epw

SCENARIOS = Path(__file__).parent / "scenarios"
"""The scenarios that ship with the package."""

BudgetEvent = Event
"""An event of the kind that changes a limit by decision, as programs build them."""

PROSE = ("site", "source", "summary", "hard", "good_controller")
"""Fields that change nothing that happens: not part of a scenario's hash."""


@dataclass(frozen=True)
class PlantRanges:
    """[plant]: what the arbiter is not told, drawn per environment between two bounds.

    Defaults are MODEL.md's ranges. It reads like a mapping: `ranges["v_min"]`, `ranges.items()`.

    Attributes:
        v_min: Lowest voltage / nominal (section 2).
        phi_knee: Clock fraction below which voltage no longer falls (section 2).
        kappa: Share of the memory's power that does not scale with voltage (section 4).
        phi_mem: Clock fraction below which memory-bound work slows too (section 3).
        power_scale: True / modelled dynamic power: published coefficients transfer with 12 % mean error, and
            half of that is taken as common to a whole fleet (section 4; assumption).
        non_gpu_frac: True / declared non-GPU draw. What is declared is an upper bound that also covers the firmware's
            overshoot: 3 % of it are 1 % of the caps of a node of 8 H100.
        cap_latency_low_s: Shortest time from a cap's write to its effect, in band (section 8).
        cap_latency_high_s: Longest.
        lost_write_frac: Share of writes that are lost (section 8: 0.5 % out of band).
        meter_bias_frac: Meters' systematic error, class 1 of IEC 62053-21.
        role_move_s: Time to load another stage's model; weights are in host memory (assumption).
        inlet_c: Inlet air; 20 to 35 covers ASHRAE's class A2.
        firmware_overshoot_frac: Mean draw above the cap in force (assumption).
        dropout_frac: Share of telemetry samples that are lost (assumption).
        rise_scale: True / modelled rise of GPUs above their inlet (section 8's resistances are assumptions).
        hot_spot_c: Spread of the air that reaches single nodes above the room's, half-normal (assumption).
    """

    v_min: tuple[float, float] = number((0.62, 0.80), low=0.4, high=1)
    phi_knee: tuple[float, float] = number((0.55, 0.75), low=0.2, high=0.99)
    kappa: tuple[float, float] = number((0.35, 0.65), low=0, high=1)
    phi_mem: tuple[float, float] = number((0.45, 0.70), low=0.1, high=1)
    power_scale: tuple[float, float] = number((0.94, 1.06), low=0.5, high=1.5)
    non_gpu_frac: tuple[float, float] = number((0.8, 0.97), low=0.1, high=1)
    cap_latency_low_s: tuple[float, float] = number((0.05, 0.05), low=0, high=60)
    cap_latency_high_s: tuple[float, float] = number((0.5, 0.5), low=0, high=60)
    lost_write_frac: tuple[float, float] = number((0.0, 0.005), low=0, high=0.5)
    meter_bias_frac: tuple[float, float] = number((-0.01, 0.01), low=-0.2, high=0.2)
    role_move_s: tuple[float, float] = number((30.0, 60.0), low=0, high=3600)
    inlet_c: tuple[float, float] = number((20.0, 35.0), low=0, high=60)
    firmware_overshoot_frac: tuple[float, float] = number((0.0, 0.01), low=0, high=0.2)
    dropout_frac: tuple[float, float] = number((0.0, 0.01), low=0, high=1)
    rise_scale: tuple[float, float] = number((0.9, 1.1), low=0.3, high=3)
    hot_spot_c: tuple[float, float] = number((0.0, 2.0), low=0, high=20)

    def __getitem__(self, name: str) -> tuple[float, float]:
        return dict(self.items())[name]

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self))

    def items(self) -> list[tuple[str, tuple[float, float]]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]


@dataclass(frozen=True)
class Scenario:
    """What happens to a fleet, and for how long.

    Attributes:
        name: The file's name without .toml.
        family: Scenarios of one family share a best baseline.
        summary: One line for tables.
        site: Name or path of the site file.
        seconds: Length of an episode.
        warmup_s: Excluded from KPIs.
        background: Policy that plays the bid channels which an agent does not own.
        load: What arrives.
        events: What is done to the fleet from outside: limits, feeds, outages, meters, telemetry.
        plant: Ranges of what the arbiter is not told.
        fault_scale: Multiplies MODEL.md's fault rates; 0 is none, thousands are a month in an episode.
        early_rejection: The engine rejects requests whose TTFT target cannot be met.
        slo_aware_admission: The engine admits to decode no more than its ITL target allows.
        weather: How the inlet moves.
        training: Jobs of the site's training services.
        training_weight: Reward of training all the time at full clock, where 1 is serving all that the fleet could.
        queues: Queues that share the batch nodes.
        batch: Jobs that arrive in them.
        hard: Why it is not easy, for its page.
        good_controller: What a good controller does, for its page.
        source: Where it was read from.
    """

    name: str
    family: str
    summary: str
    site: str
    seconds: float = number(900.0, above=0, high=31 * 86400)
    warmup_s: float = number(60.0, low=0, high=86400)
    background: str = "greedy"
    load: LoadSpec = field(default_factory=LoadSpec)
    events: tuple[Event, ...] = ()
    plant: PlantRanges = field(default_factory=PlantRanges)
    fault_scale: float = number(0.0, low=0, high=1e8)
    early_rejection: bool = True
    slo_aware_admission: bool = True
    weather: WeatherSpec = field(default_factory=WeatherSpec)
    training: tuple[TrainingSpec, ...] = ()
    training_weight: float = number(0.0, low=0, high=10)
    queues: tuple[QueueSpec, ...] = ()
    batch: BatchSpec = field(default_factory=BatchSpec)
    hard: str = ""
    good_controller: str = ""
    source: str = dataclasses.field(default="", compare=False, metadata={"is_internal": True})

    @cached_property
    def fleet(self) -> Fleet:
        """The site."""
        return load_site(self.site)

    @property
    def budget_events(self) -> tuple[Event, ...]:
        """The events that change a limit: budgets and lost feeds."""
        return tuple(e for e in self.events if e.kind in LIMIT_KINDS)

    @property
    def plant_events(self) -> tuple[Event, ...]:
        """The events that the plant carries out: all but budgets."""
        return tuple(e for e in self.events if e.kind != BUDGET)

    @cached_property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the content, the site's included, paths and prose not."""
        content = {k: v for k, v in asdict(self).items() if k not in PROSE}
        content["site_hash"] = self.fleet.hash
        if not self.queues:  # as before there were any
            del content["queues"], content["batch"]
        if self.weather.file:
            content["weather"]["file"] = hashlib.sha256(Path(self.weather.file).read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def list_scenarios() -> list[str]:
    """Names of the scenarios that ship with the package, sorted."""
    return names_in(SCENARIOS)


def load_scenario(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario and check it against its site.

    Args:
        name_or_path: The name of a scenario that ships with the package, or a path that ends in .toml.
        overrides: "key=value" with dots between levels and a TOML value, as of `--set`: "load.scale=1",
            "events.0.limit_frac=0.8", "plant.inlet_c=[36, 42]".

    Raises:
        ScenarioError: one line with the file or override, the key and what to change.
        SiteError: if the site it names is at fault.
    """
    path = find_file(name_or_path, SCENARIOS, "scenario", ScenarioError)
    data = read_toml(path, ScenarioError)
    given = {}
    for text in overrides:
        place, value = _read_override(text)
        _apply(data, place, value, text)
        given[place] = text

    def where(place: tuple) -> str:
        for key, text in given.items():
            if place[: len(key)] == key or key[: len(place)] == place:
                return f"--set {text}"
        return str(path)

    scenario = parse(Scenario, data, where, ScenarioError)
    site = scenario.site
    if site.endswith(".toml") and ("site",) not in given:
        site = str(path.parent / site)
    if scenario.weather.file and ("weather", "file") not in given:
        weather_file = str(path.parent / scenario.weather.file)
        scenario = replace(scenario, weather=replace(scenario.weather, file=weather_file))
    scenario = replace(scenario, site=site, source=str(path))
    source = f"{path} with --set {' --set '.join(given.values())}" if given else str(path)
    try:
        for i, event in enumerate(data.get("events", ())):
            check_keys(i, event)
        scenario = _without_requests(scenario)
        check_scenario(scenario)
    except ScenarioError as e:
        raise ScenarioError(f"{source}: {e}") from None
    except BadInput as e:
        raise type(e)(f"{source}: site: {e}") from None
    return scenario


def check_scenario(scenario: Scenario) -> None:
    """Check what only shows against the site, and between keys.

    Raises:
        ScenarioError: one line with the key and what to change.
        SiteError: if the site it names is at fault.
    """
    fleet = scenario.fleet
    if scenario.warmup_s >= scenario.seconds:
        raise ScenarioError(
            f"warmup_s: {scenario.warmup_s:g} s leave nothing to judge of {scenario.seconds:g} s; lower "
            "warmup_s or raise seconds"
        )
    for name, (low, high) in scenario.plant.items():
        if low > high:
            raise ScenarioError(f"plant.{name}: {low:g} is above {high:g}; give [low, high]")
    if scenario.plant.cap_latency_low_s[1] > scenario.plant.cap_latency_high_s[0]:
        raise ScenarioError("plant.cap_latency_low_s: reaches above cap_latency_high_s; keep the two ranges apart")
    known = [s.name for s in fleet.services]
    for i, s in enumerate(scenario.load.service):
        if s.name not in known:
            raise ScenarioError(
                f"load.service[{i}].name: the site has no service {s.name!r}; it has {', '.join(known)}"
            )
        if s.name in [other.name for other in scenario.load.service[:i]]:
            raise ScenarioError(f"load.service[{i}].name: {s.name!r} is given twice; merge the two")
    for i, event in enumerate(scenario.events):
        check_event(i, event, fleet)
    if len(scenario.plant_events) > MAX_PLANT_EVENTS:
        raise ScenarioError(
            f"events: {len(scenario.plant_events)} beside budgets, at most {MAX_PLANT_EVENTS}; remove some"
        )
    check_training(scenario.training, fleet)
    check_batch(scenario.queues, scenario.batch, fleet)
    if scenario.training_weight and not training_services(fleet):
        raise ScenarioError("training_weight: the site has no training service; remove it")
    if scenario.weather.file:
        read_epw(scenario.weather.file)


def _without_requests(scenario: Scenario) -> Scenario:
    """Training services get no requests: a share of 0 each."""
    idle = training_services(scenario.fleet)
    for i, s in enumerate(scenario.load.service):
        if s.name in idle and s.share > 0:
            raise ScenarioError(f"load.service[{i}].share: {s.name!r} trains and takes no requests; set 0 or remove it")
    missing = tuple(ServiceLoad(name, share=0.0) for name in idle if scenario.load.of(name).share > 0)
    if not missing:
        return scenario
    fleet, load = scenario.fleet, replace(scenario.load, service=(*scenario.load.service, *missing))
    scenario = replace(scenario, load=load)
    scenario.__dict__["fleet"] = fleet  # `replace` forgets what was read
    return scenario


def _read_override(text: str) -> tuple[tuple, object]:
    """The key path and the value of "a.b=v"."""
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in parts):
        raise ScenarioError(f"--set {_short(text)}: write it as key.key=value")
    value = value.strip()
    place = tuple(int(part) if part.isdigit() else part for part in parts)
    try:
        content = tomllib.loads(f"value = {value}")
    except (tomllib.TOMLDecodeError, RecursionError):
        # a bare word is a string, so that a shell needs no second pair of quotes
        if re.fullmatch(r"[A-Za-z_./~-][A-Za-z0-9_./~-]*", value):
            return place, value
        raise ScenarioError(
            f"--set {_short(text)}: the value is not TOML; quote strings, write lists as [1, 2]"
        ) from None
    if list(content) != ["value"]:
        raise ScenarioError(f"--set {_short(text)}: give one value")
    return place, content["value"]


def _apply(data: dict, place: tuple, value: object, text: str) -> None:
    """Put `value` at `place`, making tables on the way."""
    inside: dict | list = data
    for i, part in enumerate(place):
        if isinstance(inside, list):
            if not isinstance(part, int) or part >= len(inside):
                raise ScenarioError(f"--set {_short(text)}: the scenario has {len(inside)} of these, counted from 0")
        elif not isinstance(inside, dict):
            raise ScenarioError(f"--set {_short(text)}: {'.'.join(map(str, place[:i]))} is not a table")
        else:
            part = str(part)
        if i == len(place) - 1:
            inside[part] = value  # type: ignore[index,call-overload]
        elif isinstance(inside, dict):
            inside = inside.setdefault(part, {})
        else:
            inside = inside[part]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
