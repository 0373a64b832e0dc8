"""`flyball train`: learn a residual over a baseline, keep it only if it beats the baseline on validation."""

from typing import Any

import numpy as np
import torch

from .config import TrainConfig
from .session import Progress, Session
from .tracking import track


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train, choose the best checkpoint on validation windows, gate it, export it.

    Returns:
        {"run_id", "out", "onnx", "algo", "profile", "role_shrinkage", "passed", "gain", "base", "steps", "seconds",
        "cpu_s", "registered", "validation", "curve"}; registered is what the model registry holds of a policy that
        passed, {"name", "version", "is_champion", "reason"}, else None.

    Raises:
        BadInput: a budget that is not positive, an unknown scenario, baseline or algorithm, a run folder of another
            configuration, an MLflow store that cannot be used, or a run that diverged.
    """
    session = Session(config, progress or (lambda label, share: None))
    torch.manual_seed(config.seed)
    # tensors this small gain nothing from threads, and lose tenfold where the cores are shared
    torch.set_num_threads(1)
    np.random.seed(config.seed % 2**32)  # stable-baselines3 shuffles minibatches with the global generator
    name = f"{config.algo}-{'-'.join(config.scenarios)}-{config.seed}"
    with track(config.out, name, config.mlflow_uri) as session.run:
        session.run.params(session.parameters())
        if config.algo == "es":
            from .es import learn
        elif config.algo == "distill":
            from .distill import learn
        else:
            from .ppo import learn
        return session.finish(learn(session))
