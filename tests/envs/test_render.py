"""Pictures: deterministic, of the right size, and about what happened."""

import gymnasium as gym
import numpy as np
import pytest

import flyball.envs  # noqa: F401 (registers the ids)
from flyball.envs.record import WINDOW_S
from flyball.registry import make_env, make_vector_env


def frames(scenario, steps, seed=3, **kwargs):
    """An environment played by its background with a picture per step."""
    env = make_env(scenario=scenario, render_mode="rgb_array", **kwargs)
    env.reset(seed=seed)
    out = []
    for _ in range(steps):
        env.step(env.base_action())
        out.append(env.render())
    return env, out


def test_pictures_are_equal_for_equal_episodes():
    """The same episode gives the same pictures, and every step another one."""
    _, one = frames("curtailment", 4)
    _, two = frames("curtailment", 4)
    assert one[0].shape == (720, 1200, 3) and one[0].dtype == np.uint8
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert len({f.tobytes() for f in one}) == 4


def test_events_are_kept_with_their_times():
    """An announced cut is noted when announced, when it starts and when it ends, at the exact second."""
    over = ("events.0.t_min_s=103", "events.0.t_max_s=103", "events.0.notice_s=40", "events.0.until_s=60")
    env, _ = frames("curtailment", 40, overrides=over)
    moments = [m for m in env._recorder.history.moments if m.kind in ("limit", "notice")]
    assert [(m.kind, m.time_s) for m in moments] == [("notice", 65.0), ("limit", 103.0), ("limit", 163.0)]
    assert "−15% from 1:43" in moments[0].text


def test_faults_are_named():
    """A node that breaks is named with its XID."""
    env = make_env(scenario="steady", render_mode="rgb_array")
    env.reset(seed=1)
    env.core.plant.fail(3, 79, 600.0)
    env.step(env.base_action())
    assert f"{env.core.fleet.nodes[3].name} down (XID 79)" in [m.text for m in env._recorder.history.moments]
    assert env.render().any()


def test_history_is_bounded_and_forgotten_by_reset():
    """No more than the window is kept, and nothing of the last episode."""
    env, _ = frames("small", 3)
    for _ in range(100):
        env.step(env.base_action())
    assert len(env._recorder.history.rows) == WINDOW_S / env.core.fleet.timing.control_s + 1
    env.reset(seed=1)
    assert not env._recorder.history.rows and not env._recorder.history.moments
    assert env.render().shape == (720, 1200, 3)


@pytest.mark.parametrize("scenario", ["faults", "multi-service", "small", "thermal"])
def test_every_kind_of_site_can_be_drawn(scenario):
    """Sites of one server and of several services are drawn without a warning."""
    _, pictures = frames(scenario, 2)
    assert 20 < pictures[-1].mean() < 254


def test_recording_a_video_needs_nothing_of_ours():
    """gymnasium's own frame collector works, as `RecordVideo` uses it."""
    env = gym.make("flyball.envs:flyball/Power-v0", scenario="small", render_mode="rgb_array")
    env = gym.wrappers.RenderCollection(env, pop_frames=False)
    env.reset(seed=1)
    for _ in range(3):
        env.step(env.action_space.sample())
    assert [f.shape for f in env.render()] == [(720, 1200, 3)] * 4


def test_the_vector_environment_draws_each_of_its_own():
    """One picture per environment: row b's is that of its single environment."""
    vector = make_vector_env(num_envs=2, scenario="small", render_mode="rgb_array")
    vector.reset(seed=4)
    vector.step(np.zeros(vector.action_space.shape, np.float32))
    single = make_env(scenario="small", render_mode="rgb_array")
    single.reset(seed=5)
    single.step(np.zeros(single.action_space.shape, np.float32))
    assert np.array_equal(vector.render()[1], single.render())
    with pytest.raises(ValueError, match="rgb_array"):
        make_vector_env(num_envs=1, render_mode="human")
    with pytest.raises(ValueError, match="ansi"):
        make_env(render_mode="human")


def test_ansi_is_one_line():
    """The text form says time, power and limit."""
    env = make_env(scenario="small", render_mode="ansi")
    env.reset(seed=1)
    assert "kW" in env.render() and "\n" not in env.render()
