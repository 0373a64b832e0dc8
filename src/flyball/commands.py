"""The verbs. Each imports what it needs when it runs."""

from pathlib import Path
from typing import Any

import click

from .calibrate_commands import register_calibrate
from .cli import WholeNumber, emit, json_option, load_option, set_option
from .console import progress_bar
from .env_commands import register_env
from .leaderboard_commands import register_leaderboard
from .live_commands import register_live
from .plan_commands import register_plan
from .plant_commands import register_plant
from .sweep_commands import sweep


def register(main: click.Group) -> None:
    """Attach every verb to the group, in the order in which help lists them."""
    for command in (demo, scenarios, simulate, evaluate, tune, train, sweep, export, bench):
        main.add_command(command)
    register_plan(main)
    register_env(main)
    register_live(main)
    register_leaderboard(main)
    register_plant(main)
    register_calibrate(main)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for the report.",
)
@click.option("--quick", is_flag=True, help="About 90 seconds: the packaged policy instead of training one.")
@load_option
@json_option
def demo(out: Path, quick: bool, load: str | None, as_json: bool) -> None:
    """Train, judge, export and replay a policy, and write one report.

    \b
    Examples:
      flyball demo
      flyball demo --quick
      flyball demo --load AzureLLMInferenceTrace_conv.csv --out out/azure
    """
    from .experiments.demo import run_demo

    with progress_bar("demo", as_json) as bar:
        result = run_demo(out, quick, load, bar)
    if as_json:
        emit(result)
        return
    from .console import show_demo

    show_demo(result)


@click.command()
@json_option
def scenarios(as_json: bool) -> None:
    """List what can happen to a fleet."""
    from .envs.scenario import list_scenarios, load_scenario

    rows = []
    for name in list_scenarios():
        s = load_scenario(name)
        rows.append(
            {
                "scenario": name,
                "family": s.family,
                "site": s.fleet.name,
                "nodes": len(s.fleet.nodes),
                "seconds": s.seconds,
                "hash": s.hash,
                "summary": s.summary,
            }
        )
    if as_json:
        emit({"scenarios": rows})
        return
    from .console import table

    table("Scenarios", ["scenario", "family", "nodes", "seconds", "summary"], rows)


@click.command()
@click.argument("scenario")
@click.option(
    "--policy",
    default="best-baseline",
    show_default=True,
    help="A baseline's name, champion, best-baseline or FILE.onnx.",
)
@load_option
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of load, faults and parameters."
)
@click.option("--seconds", type=float, default=None, help="Length of the episode; the scenario's by default.")
@set_option
@json_option
def simulate(
    scenario: str, policy: str, load: str | None, seed: int, seconds: float | None, overrides, as_json: bool
) -> None:
    """Run one policy through one episode and print its KPIs.

    \b
    Examples:
      flyball simulate bursty --policy greedy
      flyball simulate curtailment --policy champion --seconds 300 --json
      flyball simulate steady --load trace.csv --set load.scale=1
    """
    from .experiments.simulate import simulate as run

    if seconds is not None:
        overrides = (*overrides, f"seconds={seconds!r}")
    with progress_bar(f"{scenario} / {policy}", as_json) as bar:
        result = run(scenario, policy, load, seed, overrides, lambda share: bar("", share))
    if as_json:
        emit(result)
        return
    from .console import show_kpis

    show_kpis(result)


@click.command()
@click.argument("more", metavar="[SCENARIO]...", nargs=-1)
@click.option("--suite", default=None, help="A named list of scenarios: standard, demo, smoke.")
@click.option("--scenario", "names", multiple=True, help="A scenario; repeat for several.")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    help="A policy, or `baselines` for all that can run live, which is the default; repeat for several. The best tuned "
    "baseline always takes part.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="NAME=GLOB",
    help="Policy files that are training seeds of one policy: their windows are pooled; repeat for several.",
)
@load_option
@click.option(
    "--seeds", default=None, type=int, help="Windows per scenario and policy; 40 in the standard suite, else 8."
)
@click.option("--jobs", default=None, type=int, help="Processes; by default 1, and 2 for long runs.")
@click.option(
    "--headroom",
    is_flag=True,
    help="Also run the clairvoyant, and state the recovered headroom. It is 150 to 400 times as slow as a baseline: 2 "
    "to 5 CPU seconds per 15-minute window of 16 nodes. The standard suite does it unasked where --out keeps them all.",
)
@click.option("--sizes", default=None, metavar="N,N...", help="Generated sites of so many nodes instead of the own.")
@click.option("--ablate", is_flag=True, help="Also run policy files with each bid channel given back to their base.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Keep windows here; a run that was cut off, or asks for more of them, goes on.",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write a results page (FILE.md) with its rows and figure in the folder FILE.",
)
@set_option
@json_option
def evaluate(
    more, suite, names, policies, groups, load, seeds, jobs, headroom, sizes, ablate, out, page, overrides, as_json
) -> None:
    """Compare policies on the same windows, with paired differences, intervals and verdicts.

    \b
    Examples:
      flyball evaluate --suite standard --policy champion
      flyball evaluate --scenario bursty --policy greedy --policy static --seeds 40
      flyball evaluate --suite standard --policy baselines --group mine='runs/*.onnx' --headroom --page results.md
      flyball evaluate --scenario bursty --policy champion --sizes 16,64,512
      flyball evaluate --scenario curtailment --policy champion --ablate
    """
    from .experiments.contenders import read_groups
    from .experiments.evaluate import DEFAULT_POLICIES, SUITES, EvaluateConfig, default_seeds
    from .experiments.evaluate import evaluate as run
    from .fleet.errors import BadInput

    names = (*names, *more)  # `--scenario a b` reads as `--scenario a --scenario b`
    if suite is not None and names:
        raise BadInput("give --suite or --scenario, not both")
    if suite is not None and suite not in SUITES:
        raise BadInput(f"no suite {suite!r}; use {', '.join(SUITES)}")
    suite = suite or (None if names else "standard")
    if page is not None and page.suffix != ".md":
        raise BadInput(f"--page {page}: name a Markdown file, e.g. --page results.md")
    gathered = read_groups(groups)
    config = EvaluateConfig(
        scenarios=names or SUITES[suite],
        policies=policies or (() if gathered else DEFAULT_POLICIES),
        suite=suite,
        load=load,
        seeds=default_seeds(suite) if seeds is None else seeds,
        out=out,
        overrides=tuple(overrides),
        groups=gathered,
        jobs=jobs,
        has_headroom=headroom,
        sizes=_sizes(sizes),
        is_ablated=ablate,
    )
    with progress_bar("evaluate", as_json) as bar:
        result = run(config, bar)
    if page is not None:
        from .experiments.results.page import write_page

        result["page"] = str(write_page(result, page))
    if as_json:
        emit(result)
        return
    from .console import show_evaluation

    show_evaluation(result)


def _sizes(text: str | None) -> tuple[int, ...]:
    """Numbers of nodes from "16,64"."""
    from .fleet.errors import BadInput

    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise BadInput(f"--sizes {text}: give numbers of nodes with commas, e.g. --sizes 16,64,512") from None


@click.command()
@click.argument("baseline")
@click.argument("scenario")
@click.option("--cpu-seconds", default=60.0, show_default=True, type=float, help="Budget of the search.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the search.")
@click.option("--save", is_flag=True, help="Enter the result into this checkout's table of tuned constants.")
@json_option
def tune(baseline: str, scenario: str, cpu_seconds: float, seed: int, save: bool, as_json: bool) -> None:
    """Search a baseline's constants with a stated CPU budget.

    \b
    Example:
      flyball tune greedy curtailment --cpu-seconds 60
    """
    import json
    from dataclasses import asdict

    from . import registry
    from .experiments.tune import record
    from .experiments.tune import tune as run

    with progress_bar(f"tune {baseline} on {scenario}", as_json) as bar:
        result = run(baseline, scenario, cpu_seconds, seed, lambda share: bar("", share))
    if save:
        table = json.loads(registry.TUNED.read_text()) if registry.TUNED.exists() else {}
        record(result, table)
        registry.TUNED.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    if as_json:
        emit(asdict(result))
        return
    gain = result.score / result.default_score - 1
    click.echo(
        f"{baseline} on {scenario}: {result.score:,.0f} tok/s per MW on validation, {gain:+.1%} over its defaults "
        f"({result.candidates} candidates, {result.cpu_s:.0f} CPU s)"
    )
    for name, value in result.params.items():
        click.echo(f"  {name} = {value}")


@click.command()
@click.argument("scenario", nargs=-1, required=True)
@click.option(
    "--algo",
    type=click.Choice(["ppo", "es", "distill"]),
    default="ppo",
    show_default=True,
    help="Learning algorithm; distill learns from a planner that sees the future, then searches as es.",
)
@click.option(
    "--profile",
    type=click.Choice(["power", "power-roles", "power-roles-clocks"]),
    default="power-roles",
    show_default=True,
    help="Bids that the policy corrects.",
)
@click.option("--minutes", type=float, default=None, help="Wall-clock budget; 5 by default.")
@click.option("--cpu-seconds", type=float, default=None, help="Budget of CPU time instead of minutes.")
@click.option("--steps", type=int, default=None, help="Environment steps instead of minutes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/train"),
    show_default=True,
    help="Run folder; a run that was cut off goes on.",
)
@click.option(
    "--warm-start",
    "base",
    default="best-baseline",
    show_default=True,
    help="Baseline that the policy corrects.",
)
@click.option("--mlflow", default=None, help="MLflow tracking server; SQLite in the run folder by default.")
@json_option
def train(scenario, algo, profile, minutes, cpu_seconds, steps, seed, out, base, mlflow, as_json: bool) -> None:
    """Learn a residual over a baseline, and keep it only if it beats the baseline on validation.

    \b
    Examples:
      flyball train bursty curtailment --minutes 5 --out out/train
      flyball train bursty curtailment --algo distill --profile power --cpu-seconds 300 --out out/train
      flyball export out/train --out policy.onnx
    """
    from .fleet.errors import BadInput

    try:
        from .training.config import TrainConfig
        from .training.train import train as run
    except ImportError as e:
        raise BadInput(
            f"training needs the [train] extra ({e.name} is missing); pip install 'flyball[train]'"
        ) from None
    config = TrainConfig(
        tuple(scenario),
        out,
        algo=algo,
        profile=profile,
        minutes=5.0 if minutes is None and steps is None and cpu_seconds is None else minutes,
        steps=steps,
        cpu_seconds=cpu_seconds,
        seed=seed,
        base=base,
        mlflow_uri=mlflow,
    )
    with progress_bar(f"train on {', '.join(scenario)}", as_json) as bar:
        result = run(config, bar)
    if as_json:
        emit(result)
        return
    verdict = "beats its baseline: exported" if result["passed"] else "does not beat its baseline: the baseline stays"
    click.echo(f"validation: {result['gain']:+.2%} goodput over {result['base']} ({verdict})")
    click.echo(f"policy: {result['onnx']}")
    if registered := result["registered"]:
        alias = "is now champion" if registered["is_champion"] else "does not become champion"
        click.echo(f"registry: {registered['name']} version {registered['version']} {alias} ({registered['reason']})")


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@json_option
def export(run: str, out: Path, as_json: bool) -> None:
    """Write a trained run as one ONNX file with its card.

    RUN is a run folder of `flyball train` or an MLflow URI (runs:/ID/model, models:/NAME@ALIAS).

    \b
    Example:
      flyball export out/train --out policy.onnx
    """
    from .fleet.errors import BadInput

    try:
        from .training.export import export_run
    except ImportError as e:
        raise BadInput(f"export needs the [train] extra ({e.name} is missing); pip install 'flyball[train]'") from None
    result = export_run(run, out)
    if as_json:
        emit(result)
        return
    parity = "" if result["parity"] is None else f", largest difference to torch {result['parity']:.1e}"
    click.echo(f"wrote {result['onnx']} ({result['bytes']:,} bytes{parity}) and its card {result['card']}")


@click.group()
def bench() -> None:
    """Measure speed and memory on this machine."""


def _bench(name: str, as_json: bool, **kwargs: Any) -> dict[str, Any]:
    from .experiments.bench import run_bench

    with progress_bar(f"bench {name}", as_json) as bar:
        result = run_bench(name, bar, **kwargs)
    if as_json:
        emit(result)
        return result["figures"]
    from .console import show_bench

    show_bench(result)
    return result["figures"]


@bench.command("env")
@json_option
def bench_env(as_json: bool) -> None:
    """Environment steps per second, and memory."""
    _bench("env", as_json)


@bench.command("arbiter")
@json_option
def bench_arbiter(as_json: bool) -> None:
    """Time of one settlement, by fleet size."""
    _bench("arbiter", as_json)


@bench.command("http")
@json_option
def bench_http(as_json: bool) -> None:
    """Latency and throughput of decisions over HTTP on this machine."""
    _bench("http", as_json)


@bench.command("placement")
@json_option
def bench_placement(as_json: bool) -> None:
    """Time of one scheduling cycle, by pending workloads."""
    _bench("placement", as_json)


@bench.command("soak")
@click.option(
    "--node-settlements", type=WholeNumber(), default=10_000_000, show_default=True, help="Settlements times nodes."
)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def bench_soak(node_settlements: int, seed: int, as_json: bool) -> None:
    """Random fleets under hostile bids and networks; counts broken promises."""
    _bench("soak", as_json, node_settlements=node_settlements, seed=seed)


@bench.command("chaos")
@click.option("--events", type=WholeNumber(), default=300_000, show_default=True, help="Troubles, of all kinds.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything.")
@json_option
def bench_chaos(events: int, seed: int, as_json: bool) -> None:
    """Lost, doubled and reordered messages, dead leases, restarts, cuts; counts broken limits, and exits 1 on any.

    \b
    The default takes about 30 CPU seconds.
    Example:
      flyball bench chaos --events 1e5 --json
    """
    if _bench("chaos", as_json, events=events, seed=seed)["limit_breaches"]:
        raise SystemExit(1)


@bench.command("train")
@click.option("--scenario", "scenarios", multiple=True, help="A scenario; repeat for several. bursty and curtailment.")
@click.option("--algo", type=click.Choice(["es", "distill"]), default="es", show_default=True, help="What learns.")
@click.option("--cpu-seconds", default=120.0, show_default=True, type=float, help="Most CPU time of each training.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the training.")
@json_option
def bench_train(scenarios, algo: str, cpu_seconds: float, seed: int, as_json: bool) -> None:
    """CPU seconds of training until a policy passes the best baseline."""
    given = {"scenarios": scenarios} if scenarios else {}
    _bench("train", as_json, algo=algo, cpu_seconds=cpu_seconds, seed=seed, **given)
