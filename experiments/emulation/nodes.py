"""The nodes of an emulated fleet: their GPUs in files that agents and the plant share, and their agents."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np

from ...actuators.emulator.build import library_path
from ...actuators.emulator.state import EmulatedGpus
from ...actuators.lease import UNKNOWN_W
from ...fleet.errors import BadInput
from ...fleet.tables import PARKED
from ...fleet.topology import Fleet
from ..incumbent import CapTable, write_caps
from ..processes import last_line, spawn, stop_all

FELL_OFF_THE_BUS = 79


class EmulatedNodes:
    """The nodes of a fleet: emulated GPUs that outlive everybody, and one real agent each.

    Args:
        fleet: The site.
        folder: For state files and logs of the agents.
    """

    def __init__(self, fleet: Fleet, folder: Path):
        self.fleet, self.folder = fleet, folder
        self.gpus = [EmulatedGpus.create(self._file(n.name, "gpus"), [n.sku] * n.gpus, n.name) for n in fleet.nodes]
        # what a site runs before Flyball comes: a table of caps that fits its limits
        table_w = CapTable.provision(fleet).caps_w(fleet, fleet.node_static["stage"])
        for gpus, cap_w in zip(self.gpus, table_w, strict=True):
            write_caps(gpus, int(cap_w))
        self.agents: list[subprocess.Popen] = []
        self.commands = [(int(stage), False) for stage in fleet.node_static["stage"]]
        self._told_stage: list[tuple] = [()] * len(self.gpus)

    def _file(self, node: str, kind: str) -> Path:
        return self.folder / "nodes" / f"{node.replace('/', '_')}.{kind}"

    # ── agents ──────────────────────────────────────────────────────────────────────────────────────────
    def start(self, url: str, secrets: dict[str, str]) -> None:
        """Start every agent, each with its own token of a service."""
        library_path()  # once, not by every agent
        self.agents = [self._start_agent(n.name, url, secrets[n.name]) for n in self.fleet.nodes]

    def stop(self) -> None:
        stop_all(self.agents)

    def _start_agent(self, node: str, url: str, secret: str) -> subprocess.Popen:
        arguments = ["agent", "--server", url, "--node", node, "--nvml", "emulated"]
        arguments += ["--state-dir", str(self.folder / "state")]
        arguments += [
            "--stage-file",
            str(self._file(node, "stage")),
            "--command-file",
            str(self._file(node, "command")),
        ]
        env = {"FLYBALL_TOKEN": secret, "FLYBALL_NVML_STATE": str(self._file(node, "gpus"))}
        return spawn(arguments, self._file(node, "log"), env)

    def check(self) -> None:
        """Refuse to go on without an agent.

        Raises:
            BadInput: if one ended, with what it said.
        """
        for n, process in zip(self.fleet.nodes, self.agents, strict=True):
            if process.poll() is not None:
                raise BadInput(f"the agent of {n.name} ended: {last_line(self._file(n.name, 'log'))}")

    # ── what agents did ─────────────────────────────────────────────────────────────────────────────────
    def caps_w(self) -> np.ndarray:
        """Caps in force in the emulated library, shape (N,); a GPU that nobody reaches may draw its maximum."""
        return np.array(
            [int(np.where(g.table["is_lost"] != 0, g.table["cap_max_w"], g.caps_w).sum()) for g in self.gpus], np.int64
        )

    def floors_w(self) -> np.ndarray:
        """The lowest caps that can be read back now, shape (N,)."""
        rows = [g.table for g in self.gpus]
        return np.array(
            [int(np.where(t["is_lost"] != 0, t["cap_max_w"], t["cap_min_w"]).sum()) for t in rows], np.int64
        )

    @property
    def setter_calls(self) -> int:
        """NVML setters called by anybody since the start."""
        return sum(g.setter_calls for g in self.gpus)

    def owned(self) -> tuple[np.ndarray, np.ndarray]:
        """Epoch that each agent obeys (-1 for none) and the caps of its fallback, from its state file."""
        epoch = np.full(len(self.gpus), -1, np.int64)
        fallback_w = np.full(len(self.gpus), UNKNOWN_W, np.int64)
        for i, n in enumerate(self.fleet.nodes):
            path = self.folder / "state" / f"{n.name.replace('/', '_')}.json"
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(path.read_text())
                epoch[i], fallback_w[i] = content["epoch"], content["fallback_w"]
        return epoch, fallback_w

    def ordered(self, node: int) -> tuple[bool, bool]:
        """Whether the service had an agent cordon and drain its node."""
        content = self._command(node)
        return bool(content.get("cordoned")), bool(content.get("drained"))

    def _command(self, node: int) -> dict:
        try:
            content = json.loads(self._file(self.fleet.nodes[node].name, "command").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def read_commands(self) -> tuple[np.ndarray, np.ndarray]:
        """Stage and drain that agents were last told, each of shape (N,)."""
        for i, before in enumerate(self.commands):
            content = self._command(i)
            stage = content.get("stage")
            self.commands[i] = (
                stage if stage in (0, 1, PARKED) else before[0],
                bool(content.get("drained", before[1])),
            )
        stage, drained = (np.array(column) for column in zip(*self.commands, strict=True))
        return stage, drained

    def ceilings(self) -> np.ndarray:
        """Clock ceilings that agents have locked, shape (N,)."""
        locked = [g.table["locked_clock_mhz"].max() for g in self.gpus]
        full = [g.table["sm_clock_max_mhz"].max() for g in self.gpus]
        return np.array([mhz / most if mhz > 0 else 1.0 for mhz, most in zip(locked, full, strict=True)])

    # ── what the driver shows ───────────────────────────────────────────────────────────────────────────
    def raise_xid(self, node: int, gpu: int, xid: int) -> None:
        """Have a GPU's driver report a code; one that fell off the bus is lost."""
        self.gpus[node].raise_xid(gpu, xid, is_lost=xid == FELL_OFF_THE_BUS)

    def repair(self, node: int) -> None:
        """Bring a node's lost GPUs back."""
        self.gpus[node].table["is_lost"] = 0

    def show(self, told: np.ndarray, rows: np.ndarray, tick_s: float) -> None:
        """Power, temperature, clock and utilisation as the driver reports them.

        Args:
            told: What telemetry says of the nodes, shape (N,): means.
            rows: What the plant knows of them, shape (N,): the truth of the moment.
            tick_s: Time that has passed.
        """
        for gpus, mean, truth in zip(self.gpus, told, rows, strict=True):
            table = gpus.table
            is_alive = table["is_lost"] == 0
            alive = max(int(is_alive.sum()), 1)
            table["power_w"] = np.where(is_alive, mean["power_w"] / alive, 0.0)
            table["power_now_w"] = np.where(is_alive, truth["gpu_w"] / alive, 0.0)
            table["temp_c"] = truth["temp_c"]
            table["mem_temp_c"] = truth["temp_c"]
            table["util_frac"] = table["mem_util_frac"] = min(truth["util_frac"], 1.0)
            table["sm_clock_mhz"] = truth["phi"] * table["sm_clock_max_mhz"]
            gpus.elapse(tick_s)

    def show_stages(self, rows: np.ndarray) -> None:
        """Tell agents which stage runs, where that changed; `rows` as the plant knows the nodes, shape (N,)."""
        for i, (n, row) in enumerate(zip(self.fleet.nodes, rows, strict=True)):
            now = (int(row["stage"]), round(float(row["moving_s"]), 1))
            if now != self._told_stage[i]:
                path = self._file(n.name, "stage")
                scratch = path.with_suffix(".new")
                scratch.write_text(json.dumps({"stage": now[0], "moving_s": now[1]}))
                os.replace(scratch, path)
                self._told_stage[i] = now
