"""The plant and its views. Importing this registers the `flyball/...-v0` ids with Gymnasium.

`gym.make("flyball.envs:flyball/Power-v0", obs="flat")` imports this package first (Gymnasium has no entry points for
third parties since 1.0).
"""

import gymnasium as gym

IDS = ("Power-v0", "Stages-v0", "Placement-v0", "Remediation-v0", "Factory-v0", "PowerRaw-v0")
"""Environments by what the agent owns (`envs.core.CHANNELS`)."""

for _id in IDS:
    # the registry of the face builds them: it knows the policies that play what the agent does not own
    gym.register(
        id=f"flyball/{_id}",
        entry_point="flyball.registry:make_env",
        vector_entry_point="flyball.registry:make_vector_env",
        kwargs={"env_id": _id},
    )
