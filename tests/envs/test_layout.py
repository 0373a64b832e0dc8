"""Every number of a flat box is what its slot says."""

import numpy as np
import pytest

from flyball.envs import IDS
from flyball.registry import make_env


@pytest.fixture(params=[*IDS])
def env(request):
    """An environment of two services with a padded box, a few steps in."""
    env = make_env(request.param, scenario="multi-service", background="greedy", pad_pools=6)
    env.reset(seed=2)
    for _ in range(8):
        env.step(env.base_action())
    return env


def test_every_number_of_an_observation_is_its_slots(env):
    """Slots cover the box in order, and each number is the feature, mask or bid that its slot names."""
    slots, flat = env.observation_slots(), env.core.flat(env.core.observation)[0]
    assert [s.index for s in slots] == list(range(env.observation_space.shape[0]))
    seen, base = env.core.observation, env.core.base
    for slot in slots:
        if slot.token_name == "padding":
            want = 0.0
        elif slot.part == "mask":
            want = float(getattr(seen, f"{slot.kind}_mask")[0, slot.token])
        else:
            table = getattr(seen if slot.part == "feature" else base, slot.kind)[0]
            want = table[slot.column] if slot.kind == "fleet" else table[slot.token, slot.column]
        assert flat[slot.index] == np.float32(want), slot
        assert slot.field.low <= flat[slot.index] <= slot.field.high


def test_every_number_of_an_action_is_its_slots(env):
    """Changing one number changes the one bid that its slot names, and padding changes nothing."""
    slots = env.action_slots()
    assert [s.index for s in slots] == list(range(env.action_space.shape[0]))
    action = env.base_action()
    before = env.core.bids(action[None])
    for slot in slots[:: max(1, len(slots) // 24)]:
        changed = action.copy()
        changed[slot.index] = 0.71 if action[slot.index] < 0 else -0.71
        after = env.core.bids(changed[None])
        moved = {
            k: np.argwhere(getattr(after, k)[0] != getattr(before, k)[0]).tolist() for k in ("pool", "node", "fleet")
        }
        want = {"pool": [], "node": [], "fleet": []}
        if slot.token_name != "padding":
            want[slot.kind] = [[slot.column] if slot.kind == "fleet" else [slot.token, slot.column]]
        assert moved == want


def test_the_base_action_bids_what_the_background_bids(env):
    """Playing `base_action` in either form plays the background's own bids."""
    bids = env.core.bids(env.base_action()[None])
    for kind in ("pool", "node", "fleet"):
        assert np.array_equal(getattr(bids, kind), getattr(env.core.base, kind))


def test_slot_names_say_token_and_field(env):
    """Names are unique but for padding, and read as service/stage.field."""
    names = [s.name for s in (*env.observation_slots(), *env.action_slots()) if s.token_name != "padding"]
    seen = names[: len(names) - sum(s.token_name != "padding" for s in env.action_slots())]
    assert len(set(seen)) == len(seen)
    assert {"chat/prefill.util", "code/decode.base.watts", "fleet.bank"} <= set(seen)
