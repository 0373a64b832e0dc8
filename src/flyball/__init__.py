"""Flyball: the governor of GPU fleets under a power budget.

Policies bid, the arbiter settles: everything from a Snapshot to a Plan is the same code in training,
evaluation, shadow and live operation.
"""

__version__ = "0.1.0"
