"""`flyball calibrate`: refit the plant's parameters from measurements, and take such measurements, safely."""

import socket
import sys
from pathlib import Path
from typing import Any

import click

from .cli import emit, json_option
from .fleet.errors import BadInput


def register_calibrate(main: click.Group) -> None:
    """Attach the verb to the group."""
    main.add_command(calibrate)


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="Refit from measurements: a folder of sweeps (CSV) or of the measured data sets.",
)
@click.option("--gpu", is_flag=True, help="Watch this node's GPUs; nothing is ever set.")
@click.option("--sweep", default=None, metavar="KINDS", help="caps, clocks or caps,clocks of this drained node.")
@click.option("--force", is_flag=True, help="Sweep although the node has work.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=None, help="Of each measurement; 60 in all for --gpu."
)
@click.option("--steps", type=click.IntRange(2, 50), default=7, show_default=True, help="Caps of a sweep.")
@click.option("--node", default=None, help="This node's name in the site file; the host's name by default.")
@click.option("--state-dir", type=click.Path(path_type=Path), default=None, help="Where ownership of caps is kept.")
@click.option(
    "--nvml",
    type=click.Choice(["emulated", "real"]),
    default="real",
    show_default=True,
    help="Emulated GPUs are those of the file that FLYBALL_NVML_STATE names.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out/calibrate"),
    show_default=True,
    help="Folder for fitted TOML and measured CSV files.",
)
@click.option("--write-package", is_flag=True, help="Also replace the package's own profiles with the fitted ones.")
@json_option
def calibrate(
    data: Path | None,
    gpu: bool,
    sweep: str | None,
    force: bool,
    seconds: float | None,
    steps: int,
    node: str | None,
    state_dir: Path | None,
    nvml: str,
    out: Path,
    write_package: bool,
    as_json: bool,
) -> None:
    """Fit the plant to measurements: published ones, your own, or ones taken now on this node.

    \b
    Examples:
      flyball calibrate --data ../shared/data --out out/fit        refit from the measured data sets
      flyball calibrate --gpu                                      watch this node, set nothing
      flyball calibrate --sweep caps,clocks --node rack1-node0     a drained node: step, measure, restore
      flyball calibrate --data out/calibrate                       fit what the sweep wrote

    A sweep lowers caps and locks clocks, and gives every setting back however it ends: an error, SIGTERM or SIGKILL.
    It refuses a node that has work. See docs/calibration.md.
    """
    if sum((data is not None, gpu, sweep is not None)) != 1:
        raise BadInput("calibrate needs exactly one of --data DIR, --gpu and --sweep KINDS")
    say = (lambda line: click.echo(line, err=True)) if as_json else click.echo
    if data is not None:
        result = _refit(data, out, write_package, say)
    elif gpu:
        result = _watch(nvml, 60.0 if seconds is None else seconds, out)
    else:
        result = _sweep(nvml, sweep or "", node, state_dir, force, 5.0 if seconds is None else seconds, steps, out, say)
    if as_json:
        emit(result)
        return
    _show(result)


def _refit(data: Path, out: Path, write_package: bool, say: Any) -> dict[str, Any]:
    try:
        from .experiments.calibrate.refit import refit
    except ImportError as e:
        raise _needs(e) from None
    return refit(data, out, write_package, say)


def _needs(error: ImportError) -> BadInput:
    name = error.name or "a library"
    package = {"pynvml": "'flyball[agent]'"}.get(name, name)
    return BadInput(f"calibrate needs {name}; pip install {package}")


def _load_nvml(kind: str) -> None:
    if kind == "emulated":
        from .actuators.emulator.load import load_emulated

        load_emulated()


def _watch(kind: str, seconds: float, out: Path) -> dict[str, Any]:
    try:
        from .actuators import nvml
        from .experiments.calibrate.gpu_load import IdleLoad, find_load
        from .experiments.calibrate.watch_report import watch_report
    except ImportError as e:
        raise _needs(e) from None
    _load_nvml(kind)
    gpus = nvml.open_gpus()
    try:
        return watch_report(gpus, (find_load() if kind == "real" else None) or IdleLoad(), seconds, out)
    finally:
        nvml.close_gpus()


def _sweep(
    kind: str,
    kinds: str,
    node: str | None,
    state_dir: Path | None,
    force: bool,
    seconds: float,
    steps: int,
    out: Path,
    say: Any,
) -> dict[str, Any]:
    try:
        from .experiments.calibrate.gpu_load import IdleLoad, find_load
        from .experiments.calibrate.sweep import run_sweep, sweep_config, write_sweep
    except ImportError as e:
        raise _needs(e) from None
    names = [k.strip() for k in kinds.split(",") if k.strip()]
    node = node or socket.gethostname()
    config = sweep_config(
        node, state_dir, names, is_forced=force, caps=steps, seconds=seconds, settle_s=min(2.0, seconds)
    )

    def make_load() -> Any:
        if kind == "emulated":
            return IdleLoad()
        load = find_load()
        if load is None:
            raise BadInput("a sweep needs a load: install torch with CUDA on this node (pip install torch)")
        return load

    _load_nvml(kind)
    rows = run_sweep(config, make_load, say)
    path = out / f"sweep-{node.replace('/', '_')}.csv"
    write_sweep(rows, path)
    return {"node": node, "steps": len(rows), "csv": str(path), "restored": True}


def _show(result: dict[str, Any]) -> None:
    from .console import table

    for name in ("findings", "samples"):
        rows = result.get(name)
        if rows:
            skip = ("source", "note") if name == "findings" else ()
            table(name, [k for k in rows[0] if k not in skip], rows)
    for key, value in result.items():
        if key not in ("findings", "samples"):
            click.echo(f"{key}: {value}", file=sys.stdout)
