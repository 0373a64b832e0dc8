"""Pools of processes: a death costs one attempt of one task."""

import os
import sys
import types

import pytest

from flyball.fleet.errors import BadInput
from flyball.training.pool import RESTARTS, Outcome, run_local
from flyball.training.ray_pool import run_ray

TASKS = """
import os, pathlib, signal
from flyball.fleet.errors import BadInput

def work(task, say):
    folder, deaths = task
    attempts = pathlib.Path(folder) / "attempts"
    before = int(attempts.read_text()) if attempts.exists() else 0
    attempts.write_text(str(before + 1))
    say(f"attempt {before}", 0.5)
    if deaths is None:
        raise BadInput("not this one")
    if before < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    print("done", flush=True)
    say("done", 1.0)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A task that dies as often as it is told, in a module that a new process can import."""
    (tmp_path / "dying_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import dying_tasks

    yield dying_tasks.work
    del sys.modules["dying_tasks"]


def test_a_task_whose_process_is_killed_is_begun_again_and_no_other_notices(work, tmp_path):
    """A kill restarts its own task, a few times; a refusal is final; the others end as if nothing had been."""
    deaths = [0, 1, RESTARTS + 1, None]
    folders = [tmp_path / str(i) for i in range(len(deaths))]
    heard = []
    tasks = [((str(folder), n), folder) for folder, n in zip(folders, deaths, strict=True)]
    outcomes = run_local(work, tasks, 2, lambda index, label, share: heard.append((index, label)))
    assert outcomes[:2] == [Outcome(None, 0), Outcome(None, 1)]
    assert "ended 4 times, last with -9" in outcomes[2].error and str(folders[2]) in outcomes[2].error
    assert outcomes[3] == Outcome("not this one", 0)
    assert [int((folder / "attempts").read_text()) for folder in folders] == [1, 2, RESTARTS + 1, 1]
    assert [label for index, label in heard if index == 1] == ["attempt 0", "attempt 1", "done"]
    assert (folders[0] / "worker.log").read_text() == "done\n"


@pytest.fixture
def fake_ray(monkeypatch):
    """The five calls of Ray that the pool makes, done here and now."""
    ray = types.ModuleType("ray")
    ray.calls, ray.options = [], {}

    class Remote:
        def __init__(self, function):
            self.function = function

        def remote(self, *args):
            try:
                return self.function(*args), None, object()
            except Exception as e:
                return None, e, object()

    def remote(**options):
        ray.options.update(options)
        return Remote

    def init(address, **_):
        if address == "nowhere:1":
            raise ConnectionError("no cluster there\nand more")
        ray.calls.append(("init", address))

    def get(ref):
        if ref[1] is not None:
            raise ref[1]
        return ref[0]

    ray.remote, ray.init, ray.get = remote, init, get
    ray.wait = lambda refs, num_returns: (refs[-1:], refs[:-1])
    ray.shutdown = lambda: ray.calls.append(("shutdown",))
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def _ray_task(task, say):
    say("", 0.5)
    if task == "refused":
        raise BadInput("not this one")
    if task == "crashed":
        raise RuntimeError("on\nthe node")


def test_ray_does_the_same_tasks_and_keeps_their_order(fake_ray, tmp_path):
    """Outcomes stand in the tasks' order, retries are Ray's, refusals are final, and the cluster is let go."""
    done = []
    tasks = [(name, tmp_path) for name in ("fine", "refused", "crashed")]
    outcomes = run_ray(_ray_task, tasks, "auto", lambda index, label, share: done.append((index, share)))
    assert outcomes[:2] == [Outcome(None, None), Outcome("not this one", None)]
    assert outcomes[2].error.endswith("retries: the node")
    assert sorted(done) == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert fake_ray.options["max_retries"] == RESTARTS and fake_ray.options["retry_exceptions"] is True
    assert fake_ray.calls == [("init", "auto"), ("shutdown",)]


def test_a_cluster_that_is_not_there_is_said_in_one_line(fake_ray, tmp_path):
    """An address that nothing answers at is refused with what Ray says."""
    with pytest.raises(BadInput, match=r"--ray nowhere:1: no cluster there; start it with: ray start --head$"):
        run_ray(_ray_task, [("fine", tmp_path)], "nowhere:1", lambda *_: None)


def test_ray_that_is_not_installed_is_named_with_its_install(monkeypatch, tmp_path):
    """Without Ray the message is one line and says how to get it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match="pip install ray") as caught:
        run_ray(_ray_task, [("fine", tmp_path)], "auto", lambda *_: None)
    assert "\n" not in str(caught.value) and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
