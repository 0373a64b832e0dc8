"""Leases as a pure state machine."""

from hypothesis import given
from hypothesis import strategies as st

from flyball.actuators.lease import PARKS_W, UNKNOWN_W, Do, Lease, LeaseState, Verdict
from flyball.fleet import tables

leases = st.builds(
    Lease,
    epoch=st.integers(-1, 4),
    seq=st.integers(-1, 6),
    ttl_s=st.floats(-1.0, 10.0) | st.just(float("nan")),
    cap_w=st.integers(-1, 8000),
    fallback_w=st.integers(-1, 8000),
)
# a history: leases with the time at which their request was sent and how long the answer took
histories = st.lists(st.tuples(leases, st.floats(0.0, 3.0), st.floats(0.0, 12.0)), max_size=30)
FIRST = Lease(epoch=2, seq=5, ttl_s=5.0, cap_w=4000, fallback_w=3000)


def play(history):
    state, sent_at_s = LeaseState(), 0.0
    for lease, gap_s, travel_s in history:
        sent_at_s += gap_s
        before = state
        state, verdict = state.accept(lease, sent_at_s, sent_at_s + travel_s)
        yield before, lease, sent_at_s, sent_at_s + travel_s, state, verdict


def test_unknown_is_the_same_everywhere():
    """The agent's mark for an unknown cap is the fleet's."""
    assert UNKNOWN_W == tables.UNKNOWN_W


@given(histories)
def test_epoch_and_sequence_never_go_back(history):
    """Whatever arrives in whatever order, (epoch, seq) only ever grows."""
    for before, _, _, _, after, _ in play(history):
        assert (after.epoch, after.seq) >= (before.epoch, before.seq)


@given(histories)
def test_a_refused_lease_changes_nothing(history):
    """Every verdict but ACCEPTED leaves the state as it was."""
    for before, _, _, _, after, verdict in play(history):
        assert verdict is Verdict.ACCEPTED or after == before


@given(histories)
def test_no_lease_outlives_the_sending_of_its_request_by_more_than_its_ttl(history):
    """However long the answer took, the deadline counts from the sending."""
    for _, lease, sent_at_s, now_s, after, verdict in play(history):
        if verdict is Verdict.ACCEPTED:
            assert now_s < sent_at_s + lease.ttl_s
            assert after.expired(after.sent_at_s + after.lease.ttl_s)


@given(histories, st.integers(0, 8000), st.floats(0.0, 1000.0))
def test_expiry_never_raises_a_cap(history, cap_in_force_w, later_s):
    """After the deadline the node goes to min(cap in force, fallback), whatever came before."""
    state = ([LeaseState()] + [after for *_, after, _ in play(history)])[-1]
    action = state.action(state.deadline_s + later_s, cap_in_force_w)
    if state.lease is None:
        assert action.do is Do.HOLD
    else:
        assert action.do is Do.FALL_BACK
        assert action.cap_w == min(cap_in_force_w, state.lease.fallback_w) <= cap_in_force_w


@given(histories)
def test_a_malformed_lease_is_never_held(history):
    """Negative watts, negative numbers and a time to live that is not positive are refused."""
    for *_, after, _verdict in play(history):
        held = after.lease
        assert held is None or (held.ttl_s > 0 and min(held.cap_w, held.fallback_w, held.epoch, held.seq) >= 0)


def test_a_live_lease_is_applied_and_a_dead_one_falls_back():
    """Before the deadline its cap is in force; from the deadline on its fallback."""
    state, verdict = LeaseState().accept(FIRST, 100.0, 100.2)
    assert verdict is Verdict.ACCEPTED
    assert state.action(104.999, 4000).cap_w == 4000 and state.action(104.999, 4000).do is Do.APPLY
    assert state.action(105.0, 4000).cap_w == 3000 and state.action(105.0, 2000).cap_w == 2000


def test_old_epochs_and_sequences_are_refused():
    """A service that was replaced, and an overtaken command, are refused; a new epoch may start low."""
    state, _ = LeaseState().accept(FIRST, 100.0, 100.0)
    offer = lambda **change: state.accept(Lease(**{**FIRST.__dict__, **change}), 101.0, 101.0)[1]  # noqa: E731
    assert offer(epoch=1, seq=99) is Verdict.OLD_EPOCH
    assert offer(seq=4) is Verdict.OLD_SEQ
    assert offer(seq=5, cap_w=5000) is Verdict.CHANGED_SEQ
    assert offer(epoch=3, seq=0) is Verdict.ACCEPTED
    assert offer(seq=6, cap_w=5000) is Verdict.ACCEPTED
    assert state.accept(Lease(2, 6, 5.0, 4000, 3000), 90.0, 101.0)[1] is Verdict.TOO_LATE


def test_a_renewal_extends_and_an_overtaken_one_does_not_shorten():
    """The same command again moves the deadline forward only."""
    state, _ = LeaseState().accept(FIRST, 100.0, 100.0)
    state, _ = state.accept(FIRST, 102.0, 102.1)
    assert state.deadline_s == 107.0
    state, verdict = state.accept(FIRST, 101.0, 102.2)
    assert verdict is Verdict.ACCEPTED and state.deadline_s == 107.0


def test_a_restarted_agent_remembers_the_epoch_but_takes_the_same_command():
    """With the numbers of its predecessor a new agent refuses older leases and takes the current one."""
    state = LeaseState(epoch=2, seq=5)
    assert state.accept(FIRST, 100.0, 100.0)[1] is Verdict.ACCEPTED
    assert state.accept(Lease(2, 4, 5.0, 4000, 3000), 100.0, 100.0)[1] is Verdict.OLD_SEQ


def test_a_lease_with_a_fallback_of_nothing_parks_at_its_deadline():
    """No product takes a cap of 0 W: that fallback means to park, and only once the lease has expired."""
    state, verdict = LeaseState().accept(Lease(2, 5, 5.0, 4000, PARKS_W), 100.0, 100.0)
    assert verdict is Verdict.ACCEPTED
    assert not state.action(104.0, 4000).parks and state.action(105.0, 4000).parks
    state, _ = state.accept(Lease(2, 6, 5.0, 4000, 1600), 101.0, 101.0)
    assert not state.action(110.0, 4000).parks
