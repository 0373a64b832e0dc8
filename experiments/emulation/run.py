"""`flyball emulate`: one service and one emulated fleet, until their time is over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ...envs.scenario import Scenario
from ...fleet.errors import BadInput
from ...serving.auth import read_secrets
from ..processes import ServiceProcess
from .emulation import Emulation
from .second import DRAINED, FALLEN, Second

LEFTOVERS = ("flyball.db", "flyball.db-wal", "flyball.db-shm", "service.log")


def emulate_site(
    scenario: Scenario,
    out: Path,
    policy: str,
    mode: str,
    port: int,
    seed: int,
    load: str | None,
    say: Callable[[str], None],
    status: TextIO,
) -> dict[str, Any]:
    """Run a whole fleet until its time is over or Ctrl-C; what `flyball emulate` calls.

    Args:
        say: Called with lines for people.
        status: Where the line that is written over and over goes.

    Returns:
        {"site", "scenario", "policy", "mode", "load", "load_scale", "seed", "url", "db", "seconds", "kpis"}.
    """
    out = fresh_folder(out)
    service = ServiceProcess(str(scenario.site), out, policy, mode, port)
    done_s, url = 0.0, ""
    try:
        service.start()
        url = service.url
        with Emulation(scenario, out, url, read_secrets(service.tokens), seed, load) as emulation:
            say(f"dashboard: {url}/   (database {service.db}, logs in {out})")
            is_ready = emulation.has_leases if mode == "enforce" else emulation.has_answers
            try:
                emulation.wait_for_agents(is_ready)
                agents, nodes = len(emulation.nodes.agents), len(emulation.nodes.gpus)
                say(f"{agents} agents on {nodes} nodes; Ctrl-C stops everything")
                for second in emulation.run(scenario.seconds):
                    done_s = second.t_s
                    _show(status, second, service.is_running)
            except KeyboardInterrupt:
                say("\nstopping")
            result = {
                "site": scenario.fleet.name,
                "scenario": scenario.name,
                "policy": policy,
                "mode": mode,
                "load": emulation.load_source,
                "load_scale": emulation.load_scale,
                "seed": seed,
                "url": url,
                "db": service.db,
                "seconds": done_s,
                "kpis": emulation.kpis(),
            }
    finally:
        service.stop()
    return result


def fresh_folder(out: Path) -> Path:
    """A folder for one run: state of agents and of a service that were there before would be taken up.

    Raises:
        BadInput: if it cannot be made.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (*(out / name for name in LEFTOVERS), *(out / "nodes").glob("*"), *(out / "state").glob("*")):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{out}: {error.strerror}; choose another --out") from None
    return out


def _show(status: TextIO, second: Second, is_served: bool) -> None:
    """One line, written over the last one on a terminal."""
    drained, fallen = int((second.status == DRAINED).sum()), int((second.status == FALLEN).sum())
    line = (
        f"{second.t_s:6.0f} s  {second.power_w[0] / 1e3:6.1f} kW drawn, {second.bound_w[0] / 1e3:6.1f} kW possible, "
        f"limit {second.in_force_w[0] / 1e3:6.1f} kW"
    )
    line += f", {drained} drained" if drained else ""
    line += f", {fallen} at their fallback" if fallen else ""
    line += "" if is_served else ", NO SERVICE"
    if status.isatty():
        status.write(f"\r\x1b[K{line}")
    elif round(second.t_s) % 10 == 0:
        status.write(f"{line}\n")
    status.flush()
