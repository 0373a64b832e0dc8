"""Batch jobs: they queue, run whole, finish, leave and break; placement bids steer them and open nothing."""

import numpy as np
import pytest

from flyball.envs.batch_jobs import SHARES, SIZES, draw_jobs
from flyball.envs.core import CHANNELS
from flyball.envs.scenario import load_scenario
from flyball.envs.state import restore, save
from flyball.fleet.bids import Bids
from flyball.fleet.errors import ScenarioError
from flyball.fleet.placement import WorkState
from flyball.fleet.tables import NEVER_S

NAME = "placement"
CALM = ("fault_scale=0", "events=[]", "warmup_s=0", "seconds=900")
ONE_QUEUE = "queues=[{name='q', quota=64}]"


def calm(jobs: str, **batch) -> tuple[str, ...]:
    """Overrides for one queue with these jobs alone."""
    rest = "".join(f", {k}={v}" for k, v in batch.items())
    return (*CALM, ONE_QUEUE, f"batch={{service='batch', before_s=0, jobs=[{{queue='q', {jobs}}}]{rest}}}")


def jobs_of(core, env=0):
    """Rows of the jobs that have arrived."""
    rows = core.plant.batch_jobs.job[env]
    return rows[rows["arrival_s"] <= core.plant.time_s[env]]


def in_use(rows, nodes, gpus=8):
    """Hundredths taken of every GPU."""
    taken = np.zeros((nodes, gpus), int)
    for row in rows[np.isin(rows["state"], (WorkState.RUNNING, WorkState.LEAVING))]:
        for n, mask in zip(row["pod_node"][: row["pods"]], row["pod_gpus"][: row["pods"]], strict=True):
            for g in range(gpus):
                taken[n, g] += min(row["share"], 100) * (int(mask) >> g & 1)
    return taken


def random_bids(core, rng) -> Bids:
    """The background's bids with noise for every node."""
    base = core.base
    return Bids(base.pool, rng.uniform(-1, 1, base.node.shape).astype(np.float32) * [0.4, 1], base.fleet)


def as_bids(bids) -> Bids:
    return Bids(*(np.ascontiguousarray(a, np.float32) for a in (bids.pool, bids.node, bids.fleet)))


def test_gangs_run_whole_on_free_gpus_of_one_rack_under_any_bids(make_core):
    """At every step: no GPU above 100 hundredths, batch nodes only, gangs whole and where their stream requires."""
    core, rng = make_core(NAME, batch=2, overrides=("seconds=900",)), np.random.default_rng(3)
    static, rack = core.fleet.node_static, core.fleet.node_static["domain"]
    for _ in range(170):
        core.step(as_bids(random_bids(core, rng)))
        for env in range(2):
            rows = jobs_of(core, env)
            taken = in_use(rows, len(static))
            assert taken.max() <= 100 and taken[static["service"] == 0].sum() == 0
            held = rows[np.isin(rows["state"], (WorkState.RUNNING, WorkState.LEAVING))]
            assert taken.sum() == (held["pods"] * held["share"]).sum()
            for gang in held[held["require"] == 2]:
                assert len(set(rack[gang["pod_node"][: gang["pods"]]])) == 1
    assert core.kpis(0)["jobs_completed"] > 10


def test_kpis_are_of_the_jobs(make_core):
    """Completed jobs, the wait of those that started, and Jain's index of GPU-time held over deserved."""
    core = make_core(NAME, batch=1, overrides=("seconds=900", "warmup_s=0", "events=[]"))
    while core.plant.ticks_left[0] > 0:
        core.step(core.base)
    kpis, rows = core.kpis(0), jobs_of(core)
    assert kpis["jobs_completed"] == (rows["state"] == WorkState.OVER).sum() > 20
    started = rows[rows["has_started"] == 1]
    waits_s = started["started_s"] - started["arrival_s"]
    assert kpis["queue_wait_p95_s"] == pytest.approx(np.quantile(waits_s, 0.95), rel=0.4)
    share = core.plant.batch_jobs.fairness(0)
    assert len(share) == 3 and kpis["fairness_jain"] == pytest.approx(share.sum() ** 2 / (3 * (share**2).sum()))


def test_a_job_takes_its_work_and_no_gpu_computes_for_free(make_core):
    """One job on an idle, uncapped fleet: restoring, then its work at the clock, then its GPU is free."""
    overrides = calm("jobs_per_hour=400, work_median_s=100, work_log_sd=0, gang_frac=0")
    core = make_core(NAME, batch=1, overrides=(*overrides, "load.target_util=0.05"))
    while core.plant.ticks_left[0] > 0:
        core.step(core.base)
    rows = jobs_of(core)
    over = rows[rows["state"] == WorkState.OVER]
    assert len(over) > 20 and (over["since_s"] + over["done_s"] == pytest.approx(100.0))
    held_s = core.plant.batch_jobs.account["held"][0, 0] / 100
    gpu_s = core.plant.totals["trained_gpu_s"][0]
    assert 0.7 * held_s < gpu_s < held_s  # restores hold GPUs too


def test_a_node_that_fails_takes_the_work_since_the_checkpoint(make_core):
    """Its jobs go back to their queue with what was written, and start again elsewhere."""
    core = make_core(NAME, batch=1, overrides=calm("jobs_per_hour=300, work_median_s=800, gang_frac=0.1"))
    for _ in range(60):
        core.step(core.base)
    rows = core.plant.batch_jobs.job[0]
    gang = np.flatnonzero((rows["pods"] == 2) & (rows["state"] == WorkState.RUNNING))[0]
    node, written_s, since_s = int(rows[gang]["pod_node"][1]), rows[gang]["done_s"], rows[gang]["since_s"]
    assert since_s > 0
    core.plant.fail(node, 79, 3600.0)
    core.step(core.base)
    assert rows[gang]["state"] == WorkState.RUNNING  # what happens in an interval is seen at the next
    core.step(core.base)
    assert rows[gang]["done_s"] == pytest.approx(written_s) and rows[gang]["since_s"] == 0
    assert core.kpis(0)["lost_work_node_s"] == pytest.approx(2 * (since_s + 0), rel=0.2)
    for _ in range(30):
        core.step(core.base)
        assert in_use(jobs_of(core), 16)[node].sum() == 0


def test_a_drained_node_is_left_without_loss(make_core):
    """A drain gives notice: jobs write a checkpoint and leave, and nothing new comes."""
    core = make_core(NAME, batch=1, overrides=calm("jobs_per_hour=300, work_median_s=800"))
    for _ in range(60):
        core.step(core.base)
    node = int(np.flatnonzero(in_use(jobs_of(core), 16).sum(1) > 0)[0])
    drain = Bids.neutral(1, core.fleet.pools, 16)
    drain.pool[:] = core.base.pool
    drain.node[0, node, 0] = 1.0
    for _ in range(20):
        core.step(drain)
    assert in_use(jobs_of(core), 16)[node].sum() == 0 and core.kpis(0)["lost_work_node_s"] == 0
    assert core.plant.plan.node["is_drained"][0, node] == 1


@pytest.mark.parametrize("rack", ["rack-1", "rack-2"])
def test_bids_to_receive_steer_jobs(make_core, rack):
    """With room everywhere, jobs go where the bid is highest."""
    overrides = calm("jobs_per_hour=60, work_median_s=600, work_log_sd=0")
    core = make_core(NAME, batch=1, overrides=overrides, channels=CHANNELS["Placement-v0"])
    wish = np.array([[1.0 if n.domain == rack else -1.0 for n in core.fleet.nodes]])
    assert core.action_size == 16
    for _ in range(40):
        core.step(core.bids(wish))
    busy = in_use(jobs_of(core), 16).sum(1) > 0
    assert busy.any() and {core.fleet.nodes[n].domain for n in np.flatnonzero(busy)} == {rack}


def test_jobs_draw_watts(make_core):
    """A node whose GPUs are in use draws more than one that idles, and the fleet stays within its limits."""
    core = make_core(NAME, batch=1, overrides=calm("jobs_per_hour=100, work_median_s=3000, work_log_sd=0"))
    for _ in range(100):
        core.step(core.base)
    taken = in_use(jobs_of(core), 16).sum(1)
    batch = core.fleet.node_static["service"] == 1
    drawn = core.plant.node["gpu_w"][0]
    assert drawn[batch & (taken > 600)].min() > 1.5 * drawn[batch & (taken == 0)].max()
    assert core.kpis(0)["budget_violation_ws"] == 0


def test_a_gang_waits_where_the_watts_are_not_there(make_core):
    """When the limit leaves nothing above the floors, nothing new starts, whatever GPUs idle."""
    cut = "events=[{t_s=0, limit_frac=0.67, until_s=900}]"
    core = make_core(NAME, batch=1, overrides=(*calm("jobs_per_hour=300, work_median_s=800"), cut))
    for _ in range(60):
        core.step(core.base)
    full = make_core(NAME, batch=1, overrides=calm("jobs_per_hour=300, work_median_s=800"))
    for _ in range(60):
        full.step(full.base)
    assert in_use(jobs_of(core), 16).sum() < in_use(jobs_of(full), 16).sum()


def test_a_batch_equals_its_rows_and_a_saved_state_goes_on_alike(make_core):
    """Jobs of environment i do not depend on the others, and save and restore keep them."""
    both, alone = make_core(NAME, batch=2), make_core(NAME, batch=1, seeds=[1])
    for core in (both, alone):
        for _ in range(40):
            core.step(core.base)
    assert both.plant.batch_jobs.job[1].tobytes() == alone.plant.batch_jobs.job[0].tobytes()
    saved = save(alone)
    ends = []
    for _ in range(2):
        restore(alone, saved)
        for _ in range(20):
            alone.step(alone.base)
        ends.append((alone.plant.batch_jobs.job.tobytes(), alone.plant.node.tobytes()))
    assert ends[0] == ends[1]
    copy = both.plant.branch(1, 1)
    assert copy.batch_jobs.job[0].tobytes() == both.plant.batch_jobs.job[1].tobytes()


def test_futures_do_not_know_the_jobs_to_come(make_core):
    """Copies keep the jobs that have arrived and draw the others anew; clairvoyant ones keep them all."""
    from flyball.envs.simulate import Futures

    core = make_core(NAME, batch=1)
    for _ in range(40):
        core.step(core.base)
    mine, now_s = core.plant.batch_jobs.job[0], core.plant.time_s[0]
    for clairvoyant in (False, True):
        futures = Futures()
        futures.play(core, steps=1, seeds=2, clairvoyant=clairvoyant)
        for rows in futures._copies[1].plant.batch_jobs.job:
            known = [r[r["arrival_s"] <= now_s]["arrival_s"].tolist() for r in (mine, rows)]
            assert known[0] == known[1]
            assert (rows["arrival_s"].tolist() == mine["arrival_s"].tolist()) == clairvoyant


def test_policies_that_roll_out_know_the_jobs_of_now_alone(make_core):
    """The copies that a model-predictive policy plays hold the jobs that have arrived, and no others."""
    from flyball.envs.branch import PlantSimulator

    core = make_core(NAME, batch=1)
    for _ in range(40):
        core.step(core.base)
    simulator = PlantSimulator(core.scenario)
    simulator.follow(core.plant)
    roll = simulator.branch(np.array([0]), 3, 12)
    roll = simulator.branch(np.array([0]), 2, 12)  # in the first rows of the same room
    assert roll._plant.batch_jobs.job[1].tobytes() == core.plant.batch_jobs.job[0].tobytes()
    roll.guess(np.ones((2, 60, 2, 3)), {})
    for env in range(2):
        left = roll._plant.batch_jobs.job[env]["arrival_s"]
        assert sorted(left[left < NEVER_S]) == sorted(jobs_of(core)["arrival_s"])
    roll.step(Bids.neutral(2, core.fleet.pools, 16))


def test_jobs_are_those_of_the_published_cluster():
    """Sizes, shares and run times of many draws are those that the module cites; the load's draws decide them."""
    scenario = load_scenario(NAME, ("batch.jobs.0.jobs_per_hour=36000", "batch.jobs.0.gang_frac=0"))
    names = ["product", "speech", "vision", "research"]
    loads = np.zeros((2, 3))
    rows = draw_jobs(scenario.batch, names, scenario.fleet, 1800.0, 5, loads)
    rows = rows[(rows["queue"] == 3) & (rows["arrival_s"] < NEVER_S)]
    assert len(rows) == pytest.approx(36000 * 2400 / 3600, rel=0.03)
    for cents, chance in SIZES[:1]:
        assert (rows["share"] == cents).mean() == pytest.approx(chance, abs=0.02)
    small = rows[rows["share"] < 100]["share"]
    assert len(small) / len(rows) == pytest.approx(0.436, abs=0.02)
    assert (small == 46).mean() == pytest.approx(dict(SHARES)[46], abs=0.02)
    assert np.median(rows["work_s"]) == pytest.approx(249, rel=0.05)
    assert np.quantile(rows["work_s"], 0.25) == pytest.approx(142, rel=0.4)  # quartiles are not symmetric in logs
    again = draw_jobs(scenario.batch, names, scenario.fleet, 1800.0, 5, loads)
    other = draw_jobs(scenario.batch, names, scenario.fleet, 1800.0, 5, loads + 1)
    assert again["work_s"].tolist() != other["work_s"].tolist()
    assert (
        again["work_s"].tolist()
        == draw_jobs(scenario.batch, names, scenario.fleet, 1800.0, 5, loads)["work_s"].tolist()
    )


def test_scenarios_without_queues_have_no_jobs(make_core):
    """Nothing of all this is there, and their hashes are what they were before queues existed."""
    assert make_core("training-ballast").plant.batch_jobs is None
    assert load_scenario("bursty").hash == "58142723971b2417"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("queues.0.quota=-2", "greater than or equal to -1"),
        ("queues.0.parent='nobody'", "no parent queue 'nobody'"),
        ("queues.3.limit=3", "raise the limit"),
        ("batch.service='chat'", "no training service 'chat'; it has batch"),
        ("batch.jobs.0.queue='product'", "no leaf queue; use research, speech, vision"),
        ("batch.jobs.0.gang_nodes=9", "9 of 8 nodes"),
        ("batch.jobs.0.require=7", "0 to 2"),
        ("batch.jobs=[]", "declare at least one"),
        ("queues=[]", "declare at least one"),
    ],
)
def test_queues_and_jobs_that_cannot_be_run_are_refused(override, says):
    """One line says which key and what to change."""
    with pytest.raises(ScenarioError, match=says) as caught:
        load_scenario(NAME, (override,))
    assert "\n" not in str(caught.value)
