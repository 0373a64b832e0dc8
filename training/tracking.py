"""MLflow, offline and quiet: SQLite by default, a server by URL, batched metrics.

Telemetry is switched off before MLflow is imported, and nothing here imports it at module level: it takes 1.2 s.
"""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..fleet.errors import BadInput
from .champion import SQLITE, Registered, register, signature

EXPERIMENT = "flyball"


def _mlflow():
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        import mlflow
    except ImportError:
        raise BadInput("training needs the [train] extra; install it with: pip install 'flyball[train]'") from None
    return mlflow


def git_revision() -> str:
    """Revision of the checkout this package runs from, empty outside one."""
    here = Path(__file__).resolve().parent
    try:
        out = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return out.stdout.strip() if out.returncode == 0 else ""


class Run:
    """One tracked run: parameters at once, metrics in batches, artifacts by path."""

    def __init__(self, client, run_id: str, store: str):
        self._client, self.run_id, self._store = client, run_id, store
        self._pending: list[Any] = []

    def params(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        # MLflow's limit: 100 parameters a batch, 500 characters each
        rows = [Param(k, str(v)[:500]) for k, v in values.items()]
        for i in range(0, len(rows), 100):
            self._client.log_batch(self.run_id, params=rows[i : i + 100])

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Queue metrics; NaN are left out, since a store may refuse them."""
        import math
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._pending += [Metric(k, float(v), now_ms, step) for k, v in values.items() if math.isfinite(v)]
        if len(self._pending) >= 500:
            self.flush()

    def flush(self) -> None:
        """Write queued metrics."""
        for i in range(0, len(self._pending), 1000):
            self._client.log_batch(self.run_id, metrics=self._pending[i : i + 1000])
        self._pending.clear()

    def artifact(self, path: Path) -> None:
        self._client.log_artifact(self.run_id, str(path))

    def onnx_model(self, path: Path) -> Any:
        """Log the policy with its signature as an MLflow model under `model`; what MLflow says of it."""
        import importlib
        import logging

        import onnx

        mlflow = _mlflow()
        log_model = importlib.import_module("mlflow.onnx").log_model
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        graph = onnx.load(str(path))
        with mlflow.start_run(run_id=self.run_id):
            # one file: weights beside the graph would be left behind by whoever copies it
            return log_model(graph, name="model", signature=signature(graph), save_as_external_data=False)

    def register(self, model: Any, name: str, gain: float, judged: str) -> Registered:
        """Put a policy that passed its gate into the registry, as `champion.register` says.

        Raises:
            BadInput: if the store has no registry that can be written.
        """
        try:
            return register(self._client, self._store, self.run_id, model, name, gain, judged)
        except Exception as e:
            raise BadInput(f"MLflow store {self._store} cannot register {name}: {_reason(e)}; use another") from None


def store_of(out: Path, uri: str | None = None) -> str:
    """URI of the store: the one given, else the environment's, else SQLite in `out`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{out.resolve() / 'mlflow.db'}"


def prepare(out: Path, store: str) -> None:
    """Make the store's tables and its experiment before several runs would make them at once.

    Raises:
        BadInput: if MLflow is missing or the store cannot be reached.
    """
    _open(out, store)


def _open(out: Path, store: str):
    """A client of the store and the experiment's id, made in `out` where it is missing."""
    import logging

    mlflow = _mlflow()
    for quiet in ("alembic", "mlflow"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    # a server that is not there must be said at once, not after minutes of retries
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        client = mlflow.MlflowClient(store)
        found = client.get_experiment_by_name(EXPERIMENT)
        location = (out.resolve() / "mlflow-artifacts").as_uri() if store.startswith("sqlite") else None
        return client, found.experiment_id if found else client.create_experiment(EXPERIMENT, location)
    except Exception as e:
        raise BadInput(f"MLflow store {store} cannot be used: {_reason(e)}; start it or leave out --mlflow") from None


def _reason(error: Exception) -> str:
    """First line of an error, its class where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


@contextmanager
def track(out: Path, name: str, uri: str | None = None):
    """A run in the store at `uri`, by default SQLite in `out`; failed runs are marked so.

    Yields:
        A `Run`.

    Raises:
        BadInput: if MLflow is missing or the store cannot be reached.
    """
    store = store_of(out, uri)
    client, experiment = _open(out, store)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        _mlflow().set_tracking_uri(store)
        run_id = client.create_run(experiment, run_name=name).info.run_id
    except Exception as e:
        raise BadInput(f"MLflow store {store} cannot be used: {_reason(e)}; start it or leave out --mlflow") from None
    run = Run(client, run_id, store)
    try:
        yield run
    except BaseException:
        run.flush()
        client.set_terminated(run_id, "FAILED")
        raise
    else:
        run.flush()
        client.set_terminated(run_id, "FINISHED")
    finally:
        # MLflow keeps the store in the environment: a later run of this process must not inherit it
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
