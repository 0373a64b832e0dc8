"""What stage runs on this node, from whoever runs it, and what stage it is to run, for whoever does.

An agent cannot see whether a model server prefills, decodes or sleeps. Two small JSON files connect it to
what does: it reads `{"stage": 0|1|2, "moving_s": seconds}` from one and leaves `{"stage", "cordoned",
"drained"}` in the other, each replaced in one step. Stages are those of `fleet.tables`: 0 prefill, 1 decode,
2 parked.

With nobody to ask, the agent says back the stage that was commanded, but never that a node is parked: the
service would then count on watts that nobody has seen released.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from .telemetry import Reply

PARKED = 2
"""`fleet.tables.PARKED`, which would bring NumPy into every agent."""

LONGEST_MOVE_S = 1e6


@dataclass(frozen=True)
class RunningStage:
    """The stage that runs and the seconds until it serves; None when nobody knows."""

    stage: int | None = None
    moving_s: float = 0.0


class StageLink:
    """The two files of one node.

    Args:
        stage_file: Read at every message; None for a node whose stages nobody reports.
        command_file: Written when the command changes; None for a node whose stages nobody moves.
    """

    def __init__(self, stage_file: Path | None = None, command_file: Path | None = None):
        self._stage_file, self._command_file = stage_file, command_file
        self._served = RunningStage()
        self._written: dict | None = None

    def read(self) -> RunningStage:
        """The stage running now; a file that is missing or makes no sense is nobody's word."""
        if self._stage_file is None:
            return self._served
        try:
            content = json.loads(self._stage_file.read_text())
            stage, moving_s = content["stage"], float(content.get("moving_s", 0.0))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return RunningStage()
        if stage not in (0, 1, PARKED) or not 0.0 <= moving_s <= LONGEST_MOVE_S:
            return RunningStage()
        return RunningStage(int(stage), moving_s)

    def command(self, reply: Reply) -> None:
        """Pass on what the service commands."""
        if reply.stage is not None and 0 <= reply.stage < PARKED:
            self._served = RunningStage(reply.stage)
        self._write({"stage": reply.stage, "cordoned": reply.cordoned, "drained": reply.drained})

    def park(self) -> None:
        """Command parking without the service: the lease expired, and its fallback was to park."""
        self._write({**(self._written or {"cordoned": False, "drained": False}), "stage": PARKED})

    @property
    def command_file(self) -> Path | None:
        """Where commands go; None for a node whose stages nobody moves."""
        return self._command_file

    def _write(self, command: dict) -> None:
        if self._command_file is not None and command != self._written and write_command(self._command_file, command):
            self._written = command


def write_command(path: Path, command: dict) -> bool:
    """Replace a command file in one step; False where it cannot be written, to be tried again."""
    scratch = path.with_suffix(".new")
    try:
        scratch.write_text(json.dumps(command))
        os.replace(scratch, path)
    except OSError:
        return False
    return True
