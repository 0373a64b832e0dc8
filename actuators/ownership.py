"""Which caps Flyball set on this host, on disk by GPU UUID, so that no crash leaves an orphan.

Only a change of epoch is flushed to the disk: a crash of the agent keeps the page cache, and a crash of the
host takes the caps with it.
"""

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..fleet.errors import BadInput

VERSION = 1


@dataclass(frozen=True)
class OwnedGpu:
    """One GPU whose cap is ours.

    Attributes:
        original_cap_w: The cap found before the first write.
        cap_w: The cap last asked for.
        fallback_w: Its share of the node's fallback.
    """

    original_cap_w: int
    cap_w: int
    fallback_w: int


@dataclass(frozen=True)
class Ownership:
    """What the agent of one node has done to its GPUs.

    Attributes:
        boot_id: Of the host when it was written; caps do not survive a reboot.
        epoch: Highest lease epoch obeyed.
        seq: Highest lease sequence obeyed in it.
        fallback_w: Fallback of the node, -1 before the first lease.
        has_clock_ceiling: Whether SM clocks were locked.
        gpus: By UUID.
    """

    node: str
    boot_id: str = ""
    epoch: int = -1
    seq: int = -1
    fallback_w: int = -1
    has_clock_ceiling: bool = False
    gpus: dict[str, OwnedGpu] = field(default_factory=dict)


def read_boot_id() -> str:
    """The kernel's identifier of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class OwnershipFile:
    """The state file of one node, locked for as long as its agent or its agent's guardian lives.

    Args:
        folder: Made if needed.
        node: Name of the node.
        wait_s: How long to wait for the guardian of an agent that just died.

    Raises:
        BadInput: if another agent runs for this node, or the folder cannot be written.
    """

    def __init__(self, folder: Path, node: str, wait_s: float = 2.0):
        self.path = folder / f"{node.replace('/', '_')}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadInput(
                f"agent state cannot be kept in {folder}: {error.strerror}; set state_dir elsewhere"
            ) from None
        until_s = time.monotonic() + wait_s
        while True:
            try:
                # of the open file, not of the process: a forked guardian holds it as well
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    os.close(self._lock)
                    raise BadInput(f"another agent already runs for node {node!r} ({self.path}); stop it") from None
                time.sleep(0.02)
        self.node = node
        self._flushed_epoch: int | None = None

    def load(self) -> Ownership:
        """What the last agent left; an unreadable file counts as nothing left."""
        try:
            content = json.loads(self.path.read_text())
            if content.pop("version") != VERSION:
                return Ownership(self.node)
            gpus = {uuid: OwnedGpu(**owned) for uuid, owned in content.pop("gpus").items()}
            owned = replace(Ownership(self.node, gpus=gpus), **content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return Ownership(self.node)
        self._flushed_epoch = owned.epoch
        return owned

    def store(self, owned: Ownership) -> None:
        """Replace the file in one step."""
        scratch = self.path.with_suffix(".new")
        with open(scratch, "w") as f:
            json.dump({"version": VERSION, **asdict(owned)}, f)
            if owned.epoch != self._flushed_epoch:
                f.flush()
                os.fsync(f.fileno())
        os.replace(scratch, self.path)
        self._flushed_epoch = owned.epoch

    def close(self) -> None:
        os.close(self._lock)
