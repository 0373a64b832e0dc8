"""`flyball demo`: train, judge, export and replay a policy, and tell it in one report.

Stages run in order and hand each other plain values; a further one adds its result to `Story.extra` and its section
to `report.SECTIONS`. A demo that was cut off goes on where that is cheap: training from its checkpoint, evaluation
from the windows it has. A finished one, or one of another configuration, starts afresh.
"""

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__, registry
from ..envs.core import Core
from ..envs.episode_start import EVENT_STREAM
from ..envs.episodes import read_file, run_episodes
from ..envs.events import event_times
from ..envs.scenario import Scenario, load_scenario
from ..fleet.errors import BadInput
from ..fleet.schema import schema_hash
from .evaluate import SUITES, TEST_SEED, EvaluateConfig, evaluate
from .machine import machine, versions
from .story import BEST, LEARNED, STATIC, Cut, Replay, Site, Story, save_story, write_whole

if TYPE_CHECKING:
    from .live.script import LiveScript

Progress = Callable[[str, float], None]

BLOCK = "test"
"""Third of a file, or stream of the generator, that nothing is tuned or trained on."""

STORY = "story.json"


TRAINING = {"minutes": 3.0, "algo": "es", "profile": "power-roles"}
"""Where watts bind, role moves are worth what they add in variance: compare with `flyball sweep bursty
curtailment --profile power --profile power-roles --cpu-seconds 200`."""


@dataclass(frozen=True)
class DemoConfig:
    """What a demo does.

    Attributes:
        scenario: What is replayed.
        scenarios: What policies are compared on.
        policies: Baselines they are compared with.
        seeds: Windows per scenario and policy.
        training: Arguments of `training.config.TrainConfig` beside scenarios and folder; None trains nothing and shows
            the packaged policy.
        overrides: `--set` of every scenario.
    """

    scenario: str = "demo"
    scenarios: tuple[str, ...] = SUITES["demo"]
    policies: tuple[str, ...] = ("uniform", "static", "proportional", "greedy")
    seeds: int = 40
    training: dict[str, Any] | None = field(default_factory=lambda: dict(TRAINING))
    overrides: tuple[str, ...] = ()


FULL = DemoConfig()
QUICK = DemoConfig(seeds=16, training=None)


def run_demo(out: Path, quick: bool, load: str | None, progress: Progress) -> dict[str, Any]:
    """Tell the whole story of one policy; what `flyball demo` calls.

    Args:
        out: Folder for the report, the policy file and everything behind them.
        quick: Show the packaged policy instead of training one.
        load: Trace or rate table that all of it runs on; generated load if None.
        progress: Called with a label and the share done.

    Returns:
        {"scenario", "policy", "load", "load_scale", "seed", "kpis", "events", "explanations"} of the live part,
        "replay" (the same keys up to "kpis" of the replayed episode), "report", "picture", "evaluation", "training",
        and "seconds".

    Raises:
        BadInput: a load file that cannot be read or is too short, an extra that is missing, or no C compiler for the
            emulated GPUs.
    """
    command = ["flyball", "demo", "--out", str(out)]
    command += ["--quick"] if quick else []
    command += ["--load", load] if load else []
    script = _live_script(quick)
    return tell(QUICK if quick else FULL, Path(out), load, progress, shlex.join(command), script)


LIVE_SHARE = 0.35
"""Of a demo's progress that its live part takes."""


def tell(
    config: DemoConfig,
    out: Path,
    load: str | None,
    progress: Progress,
    command: str,
    script: "LiveScript | None" = None,
) -> dict[str, Any]:
    """`run_demo` with every setting in hand; without a script there is no live part, and KPIs are the replay's."""
    from .report import PICTURE, REPORT, write_picture, write_report

    started = time.monotonic()
    everything = progress
    if script is not None:
        progress = _part(everything, 0.0, 1.0 - LIVE_SHARE, "")
    progress("reading the load", 0.0)
    _check(config, load)
    _start_afresh(out)
    trained = 0.8 if config.training is not None else 0.0
    scenario = load_scenario(config.scenario, config.overrides)
    shown = _trained(config, out, _part(progress, 0.02, trained, "training: ")) if trained else _packaged(scenario)
    comparison = EvaluateConfig(
        config.scenarios,
        _unique((*config.policies, shown.name)),
        None,
        load,
        config.seeds,
        out,
        config.overrides,
        BLOCK,
    )
    evaluation = evaluate(comparison, _part(progress, trained + 0.02, 0.94, "judging: "))
    progress("replaying through ONNX Runtime", 0.95)
    replays, source, scale = _replay(scenario, shown, load)
    live, extra = None, {}
    if script is not None:
        from .live.run import run_live

        progress = _part(everything, 1.0 - LIVE_SHARE, 1.0, "live: ")
        live = run_live(out / "live", shown.name, _part(progress, 0.0, 0.9, ""), load, script)
        progress = _part(everything, 1.0 - LIVE_SHARE, 1.0, "")
        extra = {
            "live": live.to_dict(),
            "shadow": _shadow(scenario, shown, out, _part(progress, 0.9, 0.96, "shadow: ")),
        }
    story = Story(
        scenario=scenario.name,
        summary=scenario.summary,
        seconds=scenario.seconds,
        warmup_s=scenario.warmup_s,
        site=_site(scenario),
        cuts=cuts(scenario, TEST_SEED),
        policy=shown.name,
        label="learned policy" if shown.is_learned else f"{shown.name} baseline",
        is_learned=shown.is_learned,
        note=shown.note,
        load=source,
        load_scale=scale,
        seed=TEST_SEED,
        replays=replays,
        evaluation=evaluation,
        training=shown.training,
        card=shown.card,
        made={
            "commands": [command, *shown.commands, _evaluate_command(comparison)],
            "hashes": _hashes(config),
            "versions": versions(is_training=shown.training is not None),
            "machine": machine(),
            "seconds": time.monotonic() - started,
            "quick": config.training is None,
            "is_tuned": scenario.family in registry.tuned()["best"],
        },
        extra=extra,
    )
    progress("writing the report", 0.97)
    write_picture(out / PICTURE, story)
    write_report(out / REPORT, story)
    save_story(story, out / STORY)  # last: it marks the demo as finished
    progress("done", 1.0)
    replay = {
        "scenario": story.scenario,
        "policy": story.policy,
        "load": source,
        "load_scale": scale,
        "seed": story.seed,
        "kpis": story.replay(LEARNED).kpis,
    }
    return {
        **(replay if live is None else live.summary()),
        "replay": replay,
        "report": str(out / REPORT),
        "picture": str(out / PICTURE),
        "evaluation": evaluation,
        "training": story.training,
        "shadow": extra.get("shadow"),
        "seconds": round(time.monotonic() - started, 1),
    }


def _shadow(scenario: Scenario, shown: "Shown", out: Path, progress: Progress) -> dict[str, Any]:
    """Run the policy in shadow beside a static cap table, and keep what the demo's report says of it."""
    from .shadow.demo import make_shadow_demo

    result = make_shadow_demo(out / "shadow", round(scenario.seconds), progress, shown.name)
    change = next(c for c in result["prediction"]["changes"] if c["kpi"] == "goodput_tok_s_per_mw")["change"]
    return {
        "report": str(out / "shadow" / "shadow.html"),
        "link": "shadow/shadow.html",
        "policy": shown.name,
        "seconds": result["range"]["seconds"],
        "differs_frac": result["disagreement"]["differs_frac"],
        "goodput_change": {"mean": change["mean"], "ci95": change["ci95"], "range95": change["range95"]},
        "incumbent": result["incumbent"],
    }


@dataclass(frozen=True)
class Shown:
    """The policy on show and where it came from; fields as those of `Story`.

    Attributes:
        name: A baseline, "champion", or the exported file.
        is_learned: Whether it is a policy file.
        note: What must be said of that choice.
        training: Result of its training, if this demo trained it.
        card: What its file says of itself.
        commands: That made it.
    """

    name: str
    is_learned: bool
    note: str = ""
    training: dict[str, Any] | None = None
    card: dict[str, Any] | None = None
    commands: tuple[str, ...] = ()


def _live_script(quick: bool) -> "LiveScript":
    try:
        from .live.script import FULL, QUICK
    except ImportError as e:
        raise BadInput(
            f"the live part needs the [serve] and [agent] extras ({e.name} is missing); pip install 'flyball[all]'"
        ) from None
    return QUICK if quick else FULL


def cuts(scenario: Scenario, seed: int) -> tuple[Cut, ...]:
    """The lowered limits of the root in the episode of one seed, in order."""
    starts = event_times(scenario.budget_events, np.random.default_rng([seed, EVENT_STREAM]))
    root = scenario.fleet.domains[0].name
    found = []
    for event, start_s in zip(scenario.budget_events, starts, strict=True):
        if event.domain in ("", root) and event.limit_frac < 1.0 and start_s < scenario.seconds:
            end_s = scenario.seconds if event.until_s is None else min(start_s + event.until_s, scenario.seconds)
            found.append(Cut(start_s, end_s, event.notice_s, event.limit_frac))
    return tuple(sorted(found, key=lambda cut: cut.start_s))


def _part(progress: Progress, start: float, end: float, prefix: str) -> Progress:
    """Progress of one stage within the whole."""
    return lambda label, share: progress(prefix + label if label else "", start + (end - start) * share)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _check(config: DemoConfig, load: str | None) -> None:
    """Refuse a load that cannot fill an episode, or a missing extra, before minutes of work."""
    file = read_file(load)
    for name in config.scenarios:
        scenario = load_scenario(name, config.overrides)
        background = registry.policy("uniform", scenario)
        Core(scenario, background, file=file, block=BLOCK).make_load([TEST_SEED])
    if config.training is not None:
        try:
            from ..training import train  # noqa: F401
        except ImportError as e:
            raise BadInput(
                f"training needs the [train] extra ({e.name} is missing); pip install 'flyball[train]', or use --quick"
            ) from None


# ── training and export ─────────────────────────────────────────────────────────────────────────────────
MARKER = "demo.json"
"""In the training folder: what it was made for. A folder without it is somebody else's and is left alone."""


def _start_afresh(out: Path) -> None:
    """Forget what a finished demo left, so that nothing of it is mistaken for this one's."""
    story = out / STORY
    if not story.exists():
        return
    _forget_training(out / "train")
    shutil.rmtree(out / "windows", ignore_errors=True)
    story.unlink()


def _forget_training(run: Path) -> None:
    if not run.exists():
        return
    if any(run.iterdir()) and not (run / MARKER).exists():
        raise BadInput(f"{run}: holds a run that no demo made; use another --out")
    shutil.rmtree(run)


def _train(config: DemoConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Train on the compared families, or take up what an interrupted demo left."""
    from ..training.config import TrainConfig
    from ..training.train import train

    run = out / "train"
    settings = TrainConfig(config.scenarios, run, **(config.training or {}))
    scenarios = [load_scenario(name) for name in config.scenarios]
    made_for = {
        "settings": settings.identity(),
        "budget": [settings.minutes, settings.steps],
        "scenarios": [s.hash for s in scenarios],
        "schema": [schema_hash("pool"), schema_hash("fleet")],
        "base": registry.base_of(settings.base, scenarios),
        "version": __version__,
    }
    marker = run / MARKER
    if not marker.exists() or json.loads(marker.read_text()) != json.loads(json.dumps(made_for)):
        _forget_training(run)
        write_whole(marker, json.dumps(made_for))
    finished = run / "run.json"
    if finished.exists():
        return json.loads(finished.read_text())
    return train(settings, progress)


def _trained(config: DemoConfig, out: Path, progress: Progress) -> Shown:
    """Train, export, and check the file against torch."""
    training = _train(config, out, progress)
    progress("exporting to ONNX", 1.0)
    from ..training.export import export_run

    found = export_run(str(out / "train"), out / "policy.onnx")
    card = _card(found["onnx"], load_scenario(config.scenario), found["parity"])
    return Shown(found["onnx"], True, "", training, card, _training_commands(config, out))


def _packaged(scenario: Scenario) -> Shown:
    """The policy that ships with the package, or the best baseline with a note where none does."""
    try:
        return Shown("champion", True, card=_card("champion", scenario, None))
    except BadInput as e:
        return Shown(registry.best_baseline_name(scenario), False, f"No learned policy is shown: {e}")


def _card(name: str, scenario: Scenario, parity: float | None) -> dict[str, Any]:
    """What a policy's file says of itself."""
    path = registry.champion_path() if name == "champion" else Path(name)
    card = registry.policy(name, scenario).card  # type: ignore[attr-defined]
    return {
        "file": name if name != "champion" else path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path.read_bytes()).hexdigest()[:16],
        "parity": parity,
        **asdict(card),
    }


# ── replay ──────────────────────────────────────────────────────────────────────────────────────────────
def _replay(scenario: Scenario, shown: Shown, load: str | None) -> tuple[tuple[Replay, ...], str, float]:
    """The same recorded episode under the policy on show, the best baseline and the static table.

    The seed is the first of the windows that are judged: an example, not a selection.
    """
    best = registry.best_baseline_name(scenario)
    roles = {BEST: best}
    if shown.is_learned:
        roles[LEARNED] = shown.name
    if best != "static":
        roles[STATIC] = "static"
    replays, source, scale = [], "generated", 1.0
    for role, name in roles.items():
        episodes = run_episodes(
            scenario, registry.policy(name, scenario), [TEST_SEED], read_file(load), BLOCK, is_recorded=True
        )
        assert episodes.series is not None
        label = "learned policy" if role == LEARNED else name
        replays.append(Replay(role, label, episodes.kpis[0], episodes.series.columns))
        source, scale = episodes.load_source, episodes.load_scale
    return tuple(replays), source, scale


def _site(scenario: Scenario) -> Site:
    fleet = scenario.fleet
    return Site(
        fleet.name,
        len(fleet.nodes),
        sum(n.gpus for n in fleet.nodes),
        float(fleet.domains[0].peak_w),
        fleet.timing.grace_s,
        fleet.timing.control_s,
        fleet.timing.tick_s,
        tuple({"name": s.name, "ttft_s": s.slo.ttft_s, "itl_s": s.slo.itl_s} for s in fleet.services),
    )


# ── how it was made ─────────────────────────────────────────────────────────────────────────────────────
def _hashes(config: DemoConfig) -> dict[str, str]:
    names = _unique((config.scenario, *config.scenarios))
    out = {f"scenario {name}": load_scenario(name, config.overrides).hash for name in names}
    return {**out, **{f"schema {kind}": schema_hash(kind) for kind in ("pool", "fleet")}}


def _training_commands(config: DemoConfig, out: Path) -> tuple[str, ...]:
    """The stages as commands of their own."""
    settings = config.training or {}
    given = [name for name in ("algo", "profile", "minutes", "steps", "seed") if settings.get(name)]
    flags = [word for name in given for word in (f"--{name}", _word(settings[name]))]
    return (
        shlex.join(["flyball", "train", *config.scenarios, *flags, "--out", str(out / "train")]),
        shlex.join(["flyball", "export", str(out / "train"), "--out", str(out / "policy.onnx")]),
    )


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _evaluate_command(config: EvaluateConfig) -> str:
    words = ["flyball", "evaluate"]
    for flag, values in (("--scenario", config.scenarios), ("--policy", config.policies), ("--set", config.overrides)):
        words += [word for value in values for word in (flag, value)]
    words += ["--load", config.load] if config.load else []
    return shlex.join([*words, "--seeds", str(config.seeds)])
