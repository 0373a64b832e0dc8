"""Tasks on a Ray cluster: the same work as in the local pool, where Ray's own retries stand for its restarts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..fleet.errors import BadInput
from .pool import RESTARTS, Outcome, Watch, Work


def run_ray(work: Work, tasks: Sequence[tuple[Any, Path]], address: str, watch: Watch) -> list[Outcome]:
    """Do tasks on the cluster at an address, as many at a time as it has cores.

    Args:
        work: What is done; importable by name on every node.
        tasks: Each with its folder, which every node must see under the same path.
        address: As `ray.init` takes it: "auto", "host:6379", "ray://host:10001", or "local" for one of its own.
        watch: Told when each is done: nothing is heard from a task on its way.

    Raises:
        BadInput: if Ray is not installed or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise BadInput("--ray needs Ray, which is not installed; pip install ray, or leave out --ray") from None
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise BadInput(f"--ray {address}: {reason}; start it with: ray start --head") from None
    try:
        # what a task raises is retried like the death of its process; a refusal comes back as its value
        remote = ray.remote(num_cpus=1, max_retries=RESTARTS, retry_exceptions=True)(_attempt)
        refs = {remote.remote(work, task): index for index, (task, _) in enumerate(tasks)}
        outcomes: dict[int, Outcome] = {}
        pending = list(refs)
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            for ref in done:
                try:
                    outcome = Outcome(ray.get(ref), None)
                except Exception as e:
                    reason = (str(e).strip().splitlines() or [type(e).__name__])[-1][:160]
                    outcome = Outcome(f"Ray gave it up after {RESTARTS} retries: {reason}", None)
                outcomes[refs[ref]] = outcome
                watch(refs[ref], "", 1.0)
    finally:
        ray.shutdown()
    return [outcomes[index] for index in range(len(tasks))]


def _attempt(work: Work, task: Any) -> str | None:
    """One attempt on a node; why it was refused, if it was."""
    try:
        work(task, lambda label, share: None)
    except BadInput as e:
        return str(e)
    return None
