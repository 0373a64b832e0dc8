"""The verb that says how many GPUs fit. It imports what it needs when it runs."""

import click

from .cli import emit, json_option, load_option
from .console import progress_bar


def register_plan(main: click.Group) -> None:
    """Attach the verb to the group."""
    main.add_command(plan)


@click.command()
@click.argument("site")
@click.option(
    "--policy", "policies", multiple=True, default=("uniform", "static", "greedy", "reactive"), show_default=True,
    help="A baseline's name, champion, best-baseline or FILE.onnx; of several, each count takes the best.",
)  # fmt: skip
@load_option
@click.option("--scenario", default="steady", show_default=True, help="Whose load and plant it is.")
@click.option(
    "--attainment", default=0.95, show_default=True, help="Share of requests that must meet the site's TTFT and ITL."
)
@click.option("--seeds", default=4, show_default=True, help="Windows per simulation.")
@click.option("--seconds", default=600.0, show_default=True, help="Length of a window.")
@json_option
def plan(
    site: str, policies: tuple[str, ...], load: str | None, scenario: str, attainment: float, seeds: int,
    seconds: float, as_json: bool,
) -> None:  # fmt: skip
    """Say how many GPUs fit a site's power at its latency targets.

    \b
    SITE is a site file or the name of a packaged one. Its own kinds of nodes are scaled in proportion on
    the same power tree, from what nameplate provisioning buys to what smallest caps fit. For each count
    bisection finds the requests/s that it sustains in the simulated plant, with its best split of prefill
    and decode. Windows are few and short by default (4 of 600 s): raise --seeds for a decision. 16 nodes
    take about 25 CPU seconds; it grows with nodes, policies, seeds and seconds.
    Examples:
      flyball plan demo-16
      flyball plan mysite.toml --load trace.csv --attainment 0.9 --seeds 16
      flyball plan demo-16 --scenario bursty --policy champion --json
    """
    from .experiments.plan import PlanConfig
    from .experiments.plan import plan as run

    config = PlanConfig(site, policies, load, scenario, attainment, seeds, seconds)
    with progress_bar(f"plan {site}", as_json) as bar:
        result = run(config, bar)
    if as_json:
        emit(result)
        return
    _show(result)


def _show(result) -> None:
    """The answer in a sentence, the candidates, and what rules of provisioning would have bought."""
    from .console import table

    click.echo(result["sentence"] + "\n")
    rows = [
        {
            "": "->" if c["nodes"] == result["recommended"]["nodes"] else "",
            "nodes": c["nodes"],
            "prefill": c["prefill_nodes"],
            "GPUs": c["gpus"],
            "policy": c["policy"],
            "x nameplate": c["oversubscription"],
            "requests/s": c["requests_per_s"],
            "tokens/s/MW": c["goodput_tok_s_per_mw"],
            "SLO met": c["attainment"],
            "peak power": c["peak_power_frac"],
            "over W s": c["violation_ws"],
            "saturated tokens/s/MW": c["saturated_tok_s_per_mw"],
            "SLO met then": c["saturated_attainment"],
        }
        for c in result["candidates"]
    ]
    windows = result["windows"]
    table(
        f"At the largest load sustained; {windows['seeds']} windows of {windows['seconds']:g} s, load {result['load']}",
        list(rows[0]),
        rows,
    )
    rules = [
        {
            "provisioning": name,
            "GPUs": p["gpus"],
            "requests/s": p["requests_per_s"],
            "GPUs x": p["gpus_ratio"],
            "requests x": p["requests_ratio"],
            "a node counts as": p["meaning"],
        }
        for name, p in result["provisioning"].items()
    ]
    click.echo()
    table("Against rules of provisioning, every GPU uncapped as all of them fit", list(rules[0]), rules)
