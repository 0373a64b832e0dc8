"""What a node may be running: the short way that nearly every node takes says what the whole rules say."""

import numpy as np
import pytest

from flyball.fleet.arbiter.compiled import kernel
from flyball.fleet.arbiter.possible import acknowledge, acknowledge_usual
from flyball.fleet.tables import NODE_SNAPSHOT, NODE_STATE, NODE_STATIC, PARKED

TICK_S, LEASE_TTL_S = 1.0, 5.0


@kernel
def both_ways(lag_s, static, sn, st, st_short):
    """The rules on `st`, the short way on `st_short`."""
    for i in range(len(st)):
        acknowledge(static[i], sn[i], st[i], True, TICK_S, lag_s, LEASE_TTL_S)
        acknowledge_usual(sn[i], st_short[i], TICK_S, lag_s)


@pytest.mark.parametrize("lag_s", [0.0, 0.5, 1.0, 2.5])
def test_the_short_way_of_an_obeying_node_is_what_the_rules_say(lag_s):
    """For fresh nodes that serve and read back the newest command both ways leave the same record, bit for bit."""
    rng = np.random.default_rng(7)
    n = 5000
    static, sn, st = np.zeros(n, NODE_STATIC), np.zeros(n, NODE_SNAPSHOT), np.zeros(n, NODE_STATE)
    static["cap_max_w"], static["parked_max_w"] = 5600, 600
    watts = ("cap_cmd_w", "cap_possible_w", "wait_w", "since_w", "settling_w")
    watts += ("fallback_w", "fallback_possible_w", "wait_fallback_w", "since_fallback_w")
    for name in watts:  # few values, so that all orders and ties occur
        st[name] = rng.integers(1, 6, n) * 1000
    st["seq"] = rng.integers(1, 9, n)
    st["wait_seq"] = st["seq"] - rng.integers(0, 2, n)
    st["hold_s"] = rng.choice([0.0, 0.4, 1.0, 1.6], n)
    st["unacked_s"] = rng.choice([0.0, 3.0, 9.0], n)
    st["silent_w"] = rng.choice([0, 2000], n)
    sn["cap_w"], sn["ack_seq"] = st["cap_cmd_w"], st["seq"]
    short, before = st.copy(), st.copy()
    both_ways(lag_s, static, sn, st, short)
    assert short.tobytes() == st.tobytes()
    assert st.tobytes() != before.tobytes() and not (st["stage_cmd"] == PARKED).any()
