"""Advise and shadow mode: what the loop must believe of a plan that nobody applies."""

from dataclasses import replace

import numpy as np

from ..fleet.arbiter import ArbiterState
from ..fleet.snapshot import Snapshot
from ..fleet.tables import PARKED


def obedient(heard: Snapshot, state: ArbiterState) -> Snapshot:
    """What would have been heard had every answering node obeyed the last plan's caps.

    In shadow and advise mode nobody applies the plan, and an arbiter that waits for acknowledgements would
    propose nothing. Power, demand and latency stay as measured under the incumbent's caps.
    """
    node = heard.node.copy()
    answers = node["is_silent"] == 0
    node["cap_w"] = np.where(answers, state.node["cap_cmd_w"], node["cap_w"])
    node["ack_seq"] = np.where(answers, state.node["seq"], node["ack_seq"])
    return replace(heard, node=node)


def unmoved(state: ArbiterState, heard: Snapshot) -> ArbiterState:
    """The state after a proposed stage move that nobody made: proposals are logged, then taken back."""
    node = state.node.copy()
    answers = heard.node["is_silent"] == 0
    node["stage_cmd"] = np.where(answers, heard.node["stage"], node["stage_cmd"])
    node["is_parked"] = np.where(answers, heard.node["stage"] == PARKED, node["is_parked"])
    node["shed_from"] = np.where(answers, 0, node["shed_from"])
    return replace(state, node=node)


def unmetered(snapshot: Snapshot) -> Snapshot:
    """The snapshot without its domains' meters: they tell of the incumbent's caps, not of the plan's.

    An arbiter that believed them would take watts back, again and again, from caps that nobody applied.
    """
    domain = snapshot.domain.copy()
    domain["meter_w"] = np.nan
    return replace(snapshot, domain=domain)
