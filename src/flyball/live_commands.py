"""The verbs of the live loop: serve, agent, emulate, explain, shadow. Each imports what it needs when it runs."""

import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from .cli import emit, json_option, load_option
from .fleet.errors import BadInput

DEFAULT_SITE = "demo-16"
LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"

policy_option = click.option(
    "--policy",
    default="best-baseline",
    show_default=True,
    help="A baseline's name, champion, best-baseline or FILE.onnx.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["shadow", "advise", "enforce"]),
    default="enforce",
    show_default=True,
    help="Command; show what it would command; or only log it.",
)
db_option = click.option("--db", default="flyball.db", show_default=True, help="A path (SQLite) or a database URL.")


def register_live(main: click.Group) -> None:
    """Attach the live verbs to the group."""
    for command in (serve, agent, emulate, explain, shadow):
        main.add_command(command)


def _log(level: int = logging.INFO) -> None:
    logging.basicConfig(level=level, format=LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _needs(extra: str, error: ImportError) -> BadInput:
    return BadInput(f"this needs the [{extra}] extra ({error.name} is missing); pip install 'flyball[{extra}]'")


@click.command()
@click.option(
    "--site", default=DEFAULT_SITE, show_default=True, help="Site file (.toml) or the name of a packaged one."
)
@policy_option
@mode_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8470, show_default=True, type=int, help="Port to listen on; 0 takes a free one.")
@db_option
@click.option(
    "--tokens",
    type=click.Path(path_type=Path),
    default=None,
    help="Token file; without it one is made beside the database.",
)
@json_option
def serve(site: str, policy: str, mode: str, host: str, port: int, db: str, tokens: Path | None, as_json: bool) -> None:
    """Run the decision service: telemetry in, leases out, dashboard on /.

    \b
    Examples:
      flyball serve --site mysite.toml --mode shadow
      flyball serve --site mysite.toml --policy policy.onnx --db postgresql+psycopg://…

    With --json the object says where it listens and is printed once it does.
    """
    from . import registry
    from .experiments.site_scenario import site_scenario

    try:
        from .serving.server import ServeConfig, run_service
    except ImportError as e:
        raise _needs("serve", e) from None
    _log(logging.WARNING)
    scenario = site_scenario(site)
    fallback = registry.policy("best-baseline", scenario)
    chosen = registry.live_policy(policy, scenario)
    config = ServeConfig(scenario.fleet, chosen, mode, host, port, db, tokens, fallback)

    def ready(where: Any) -> None:
        if as_json:
            emit({"url": where.url, "epoch": where.epoch, "mode": mode, "site": scenario.fleet.name,
                  "policy": chosen.name, "tokens": where.token_file, "db": db})  # fmt: skip
        else:
            click.echo(f"dashboard: {where.url}/   (epoch {where.epoch}, {mode}, policy {chosen.name})")
        sys.stdout.flush()

    run_service(config, ready)


@click.command()
@click.option("--server", required=True, help="URL of the service.")
@click.option("--node", default=None, help="This node's name in the site file; the host's name by default.")
@click.option(
    "--nvml",
    type=click.Choice(["emulated", "real"]),
    default="real",
    show_default=True,
    help="Emulated GPUs are those of the file that FLYBALL_NVML_STATE names.",
)
@click.option("--dry-run", is_flag=True, help="Watch and report; never set anything.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="File that holds this node's token alone; FLYBALL_TOKEN by default.",
)
@click.option("--state-dir", type=click.Path(path_type=Path), default=None, help="Where ownership of caps is kept.")
@click.option("--stage-file", type=click.Path(path_type=Path), default=None, help="Says which stage runs here.")
@click.option("--command-file", type=click.Path(path_type=Path), default=None, help="Is told which stage is to run.")
@json_option
def agent(
    server: str,
    node: str | None,
    nvml: str,
    dry_run: bool,
    token_file: Path | None,
    state_dir: Path | None,
    stage_file: Path | None,
    command_file: Path | None,
    as_json: bool,
) -> None:
    """Govern this node's GPUs: obey leases, and fall back without one.

    \b
    Examples:
      FLYBALL_TOKEN=… flyball agent --server http://governor:8470
      flyball agent --server http://governor:8470 --node rack1-node0 --dry-run

    A service that is not there yet is tried again, with longer and longer pauses. With --json the object is printed
    at the end.
    """
    try:
        from .actuators.agent import AgentConfig, run_agent
    except ImportError as e:
        raise _needs("agent", e) from None
    _log()
    given: dict[str, Any] = {
        "node": node,
        "state_dir": state_dir,
        "stage_file": stage_file,
        "command_file": command_file,
        "token": _token(token_file),
    }
    config = AgentConfig(server, nvml=nvml, is_dry_run=dry_run, **{k: v for k, v in given.items() if v is not None})
    began_s = time.monotonic()
    run_agent(config)
    if as_json:
        emit({"node": config.node, "server": server, "dry_run": dry_run, "seconds": time.monotonic() - began_s})


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise BadInput(f"--token-file {path}: {error.strerror}") from None


@click.command()
@click.argument("site", default=DEFAULT_SITE)
@click.option("--seconds", type=float, default=None, help="How long; the scenario's length by default.")
@load_option
@click.option("--scenario", default="steady", show_default=True, help="What happens to the site.")
@policy_option
@mode_option
@click.option("--port", default=8470, show_default=True, type=int, help="Of the service; 0 takes a free one.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of load and parameters.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/emulate"),
    show_default=True,
    help="Folder for the database, the tokens, the emulated GPUs and the logs.",
)
@json_option
def emulate(
    site: str,
    seconds: float | None,
    load: str | None,
    scenario: str,
    policy: str,
    mode: str,
    port: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Run a whole fleet on this machine: the service, one real agent per node on emulated GPUs, and the plant.

    \b
    Examples:
      flyball emulate demo-16
      flyball emulate mysite.toml --scenario curtailment --seconds 300

    Ctrl-C stops everything.
    """
    from . import registry

    try:
        from .experiments.emulation.run import emulate_site
        from .experiments.site_scenario import site_scenario
    except ImportError as e:
        raise _needs("serve,agent", e) from None
    changes = {} if seconds is None else {"seconds": seconds, "warmup_s": 0.0}
    chosen = site_scenario(site, scenario, **changes)
    registry.live_policy(policy, chosen)  # refused here, and not in the log of the service
    _log(logging.WARNING)
    # a supervisor's SIGTERM ends it as Ctrl-C does
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    say = (lambda line: click.echo(line, err=True)) if as_json else click.echo
    try:
        result = emulate_site(chosen, out, policy, mode, port, seed, load, say, sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        emit(result)
        return
    from .console import table

    rows = [{"KPI": name, "value": value} for name, value in result["kpis"].items()]
    table(f"{result['site']} / {result['scenario']} / {result['seconds']:.0f} s", ["KPI", "value"], rows)


@click.command()
@click.argument("node")
@click.option("--at", default=None, help="12:03:05, -90s, 2026-01-31T12:03:05 or Unix seconds; now by default.")
@db_option
@json_option
def explain(node: str, at: str | None, db: str, as_json: bool) -> None:
    """Say in one sentence why a node has the cap it has, or had it at some time.

    \b
    Examples:
      flyball explain rack1-node0
      flyball explain rack1-node0 --at -5m --db /var/lib/flyball/flyball.db
    """
    from dataclasses import asdict

    try:
        from .serving.explain import explain as ask
        from .serving.explain import parse_time
        from .serving.store import open_store
    except ImportError as e:
        raise _needs("serve", e) from None
    now_s = time.time()
    with open_store(db) as store:
        answer = ask(store, node, now_s if at is None else parse_time(at, now_s))
    if as_json:
        emit(asdict(answer))
    else:
        click.echo(answer.sentence)


@click.group()
def shadow() -> None:
    """What Flyball would have done beside the incumbent."""


@shadow.command("report")
@db_option
@click.option("--from", "from_", default=None, help="Start: as --at of explain; the first record by default.")
@click.option("--to", default=None, help="End; the last record by default.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@json_option
def shadow_report(db: str, from_: str | None, to: str | None, out: Path, as_json: bool) -> None:
    """Write what was done, what would have been done, and what the difference would have been worth.

    \b
    Example:
      flyball shadow report --db flyball.db --from -14d --out report.html
    """
    try:
        from .experiments.shadow.report import shadow_report as write
        from .serving.explain import parse_time
    except ImportError as e:
        raise _needs("serve", e) from None
    now_s = time.time()
    from_s = None if from_ is None else parse_time(from_, now_s)
    to_s = None if to is None else parse_time(to, now_s)
    result = write(db, out, from_s, to_s)
    if as_json:
        emit(result)
    else:
        click.echo(f"Report: {out}")
