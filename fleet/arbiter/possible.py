"""What a node may be running: every cap that was commanded and not yet superseded by an acknowledgement.

`cap_possible_w` is the largest cap that a node may be running. A command joins it when it is
sent. When the agent reads back a sequence at or above `wait_seq`, every older command is dead: after the
firmware's lag the node may run the cap that was read back or any command sent after `wait_seq` (`since_w`), and
nothing else; while it reads back `wait_seq` itself, a renewal of that command which is still on its way may also
raise it from its fallback to that cap again (`wait_w`). `wait_seq` then moves to the newest sequence, so a node
whose command changes at every tick is released as fast as one whose command stands still. A node that reads back
more than the very command that it acknowledges cannot obey (a GPU that nobody reaches any more): it counts at its
read-back until it does. A node that was silent may have rebooted: its maximum is possible until it is heard again.
What was possible for it before (`silent_w`) is kept: the reserve covers the difference, and is not handed out.
"""

import numpy as np

from ..tables import PARKED, UNKNOWN_W
from .compiled import kernel


@kernel
def acknowledge(static, sn, st, is_fresh, hold_step_s, firmware_lag_s, lease_ttl_s):
    """Advance one node's record of what it may be running by what its telemetry says."""
    is_silent = sn.is_silent != 0
    if is_silent:
        if st.silent_w == 0:
            st.silent_w = static.parked_max_w if st.is_parked != 0 else max(st.cap_possible_w, st.cap_cmd_w)
        st.cap_possible_w = max(st.cap_possible_w, static.cap_max_w)
        st.hold_s = 0.0
        st.is_parked = 0
        st.unacked_s = 0.0
        return
    st.silent_w = 0
    if st.hold_s > 0.0:
        st.hold_s -= hold_step_s
        if not st.hold_s > 0.0:
            st.hold_s = 0.0
            st.cap_possible_w = st.settling_w
    if not is_fresh:
        return
    if st.stage_cmd == PARKED and sn.stage == PARKED and not sn.moving_s > 0.0 and sn.ack_seq >= st.seq:
        st.is_parked = 1
    elif sn.stage != PARKED:
        st.is_parked = 0
    has_answered = sn.ack_seq >= st.wait_seq
    if sn.ack_seq >= st.seq and sn.cap_w > st.cap_cmd_w:
        st.unacked_s = max(st.unacked_s, lease_ttl_s + hold_step_s)  # it cannot obey: held from now on
    elif not has_answered:
        st.unacked_s += hold_step_s
    elif st.unacked_s <= lease_ttl_s or sn.cap_w <= st.cap_cmd_w:
        st.unacked_s = 0.0
    if has_answered:
        held_w = max(st.fallback_w, st.since_fallback_w)
        if sn.ack_seq == st.wait_seq:
            held_w = max(held_w, st.wait_fallback_w)
        st.fallback_possible_w = st.fallback_w if sn.ack_seq >= st.seq else held_w
    if sn.cap_w == UNKNOWN_W:  # an inconclusive read changes nothing
        return
    if sn.cap_w > st.cap_possible_w:  # rebooted, or another writer
        st.cap_possible_w = sn.cap_w
        st.hold_s = 0.0
    if st.hold_s > 0.0:
        st.settling_w = max(st.settling_w, sn.cap_w)
        return
    if has_answered:
        possible_w = max(max(sn.cap_w, st.since_w), st.cap_cmd_w)
        if sn.ack_seq == st.wait_seq:
            possible_w = max(possible_w, st.wait_w)
        st.wait_seq = st.seq
        st.wait_w = st.cap_cmd_w
        st.since_w = 0
        st.wait_fallback_w = st.fallback_w
        st.since_fallback_w = 0
        if possible_w < st.cap_possible_w:
            if firmware_lag_s > 0.0:
                st.settling_w = possible_w
                st.hold_s = firmware_lag_s
            else:
                st.cap_possible_w = possible_w


@kernel(inline=True)
def acknowledge_usual(sn, st, hold_step_s, firmware_lag_s):
    """`acknowledge` for a fresh node that serves its stage and reads back the newest command and its very cap.

    Nearly all nodes are like that nearly always, and what is left of the rules then is short.
    """
    # selects, not branches: which caps are on their way down is as good as random. Both sides are read beforehand, as
    # a read that stands within a select makes it a branch
    cap_w, seq, ack_seq = st.cap_cmd_w, st.seq, sn.ack_seq
    possible_w, hold_s, settling_w = st.cap_possible_w, st.hold_s, st.settling_w
    wait_seq, wait_w, since_w, fallback_w = st.wait_seq, st.wait_w, st.since_w, st.fallback_w
    wait_fallback_w, since_fallback_w = st.wait_fallback_w, st.since_fallback_w
    is_waiting = hold_s > 0.0
    hold_s -= hold_step_s
    is_over = is_waiting & (not hold_s > 0.0)
    possible_w = settling_w if is_over else possible_w
    is_waiting = is_waiting & (not is_over) & (cap_w <= possible_w)
    possible_w = max(possible_w, cap_w)
    settling_w = max(settling_w, cap_w) if is_waiting else settling_w
    next_w = max(max(cap_w, since_w), wait_w if ack_seq == wait_seq else cap_w)
    is_lower = (not is_waiting) & (next_w < possible_w)
    has_lag = firmware_lag_s > 0.0
    hold_s = hold_s if is_waiting else 0.0
    st.settling_w = next_w if is_lower & has_lag else settling_w
    st.hold_s = firmware_lag_s if is_lower & has_lag else hold_s
    st.cap_possible_w = next_w if is_lower & (not has_lag) else possible_w
    st.wait_seq = wait_seq if is_waiting else seq
    st.wait_w = wait_w if is_waiting else cap_w
    st.since_w = since_w if is_waiting else 0
    st.wait_fallback_w = wait_fallback_w if is_waiting else fallback_w
    st.since_fallback_w = since_fallback_w if is_waiting else 0
    st.fallback_possible_w = fallback_w
    st.silent_w = 0
    st.is_parked = 0
    st.unacked_s = 0.0


@kernel(inline=True)
def command_cap(st, cap_w, fallback_w, is_changed):
    """Record a command; the sequence rises only when something in it changed."""
    # arithmetic, not branches: whether a cap changes is as good as random, and a wrong guess costs more than the rest
    is_new = np.int64(is_changed) | (cap_w != st.cap_cmd_w) | (fallback_w != st.fallback_w)
    st.seq += is_new
    st.since_w = max(st.since_w, cap_w * is_new)
    st.cap_cmd_w = cap_w
    st.fallback_w = fallback_w
    st.cap_possible_w = max(st.cap_possible_w, cap_w)
    st.fallback_possible_w = max(st.fallback_possible_w, fallback_w)
    st.since_fallback_w = max(st.since_fallback_w, fallback_w * is_new)
    st.settling_w = max(st.settling_w, cap_w if st.hold_s > 0.0 else st.settling_w)
