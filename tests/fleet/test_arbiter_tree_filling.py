"""The filling of a whole tree against filling every domain, children first."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flyball.fleet.arbiter.scratch import AVAILABLE, BOUND, CAP_MAX, END, HI, LO, PARENT, RESERVE, START, scratch_of
from flyball.fleet.arbiter.tree_filling import fill_tree
from flyball.fleet.arbiter.water_filling import charge_of, fill_domain


def random_tree(rng):
    """Parent, first and last node of domains in preorder; nodes also hang below inner domains."""
    rows, nodes = [], 0

    def grow(parent, depth):
        nonlocal nodes
        me = len(rows)
        rows.append([parent, nodes, 0])
        if depth > 0:
            for _ in range(int(rng.integers(1, 4))):
                grow(me, depth - 1)
        nodes += int(rng.integers(0 if depth else 1, 6))
        rows[me][2] = nodes

    grow(-1, int(rng.integers(0, 4)))
    return np.array(rows, np.int64), nodes


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), has_reserve=st.booleans(), is_equal=st.booleans(), guess=st.floats(0.0, 3.0))
def test_filling_a_tree_equals_filling_each_domain(seed, has_reserve, is_equal, guess):
    """Caps are those of filling every domain bottom-up, wherever the search starts, and every domain fits."""
    rng = np.random.default_rng(seed)
    rows, n = random_tree(rng)
    domains = len(rows)
    scratch = scratch_of(n, domains, 2)
    node, tree, domain = scratch.node, scratch.tree, scratch.domain
    tree[PARENT], tree[START], tree[END] = rows.T
    node[LO] = rng.integers(100, 2000, n)
    node[HI] = node[LO] + rng.integers(0, 4000, n) * (rng.random(n) < 0.9)
    node[CAP_MAX] = node[HI] + rng.integers(0, 500, n)
    node[BOUND] = -1
    weight = np.full(n, 3000.0) if is_equal else rng.uniform(1.0, 9000.0, n)
    domain[RESERVE] = np.minimum(rng.integers(0, 3, domains), rows[:, 2] - rows[:, 1]) if has_reserve else 0
    span = [slice(start, end) for _, start, end in rows]
    for d, s in enumerate(span):
        ends = [charge_of(node[row, s], node[CAP_MAX, s], domain[RESERVE, d], scratch.top) for row in (LO, HI)]
        domain[AVAILABLE, d] = int(ends[0] + rng.uniform(0.0, 1.2) * (ends[1] - ends[0]))
    expected = node[HI].copy()
    for d in reversed(range(domains)):
        s, spare = span[d], np.empty(n, np.int64)
        fill_domain(
            d, domain[AVAILABLE, d], 0.0, weight[s], node[LO, s], expected[s], node[CAP_MAX, s], spare[s],
            domain[RESERVE, d], scratch,
        )  # fmt: skip
    top = node[HI].copy()
    fill_tree(np.full(domains, guess), weight, node[LO], node[HI], node[BOUND], scratch.level, scratch)
    assert node[HI].tolist() == expected.tolist()
    assert (node[BOUND] >= 0).tolist() == (expected < top).tolist()
    for d, s in enumerate(span):
        assert charge_of(node[HI, s], node[CAP_MAX, s], domain[RESERVE, d], scratch.top) <= domain[AVAILABLE, d]
