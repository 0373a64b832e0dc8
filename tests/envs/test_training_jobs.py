"""Training gangs: pace, checkpoints, what is lost, tasks that wait, and what a policy gains by them."""

import numpy as np
import pytest

from flyball.envs.scenario import load_scenario
from flyball.envs.training_jobs import RUNNING, training_gpus
from flyball.fleet.errors import ScenarioError

NAME = "training-ballast"
SHORT = ("seconds=600", "warmup_s=0", "events=[]", "load.burst_height=1")
ENDLESS = "training=[{service='pretrain', checkpoint_s=60, restore_s=20, write_s=4}]"


def run(core, count):
    for _ in range(count):
        core.plant.step(core.base, ticks=1)
    return core


def gang(core):
    """Rows of the pretrain gang in environment 0, first the leader."""
    rows = core.plant.node[0]
    members = np.flatnonzero((rows["is_training"] == 1) & (core.fleet.node_static["service"] == 1))
    assert (rows["gang"][members] == members[0]).all()
    return members


def test_a_gang_steps_at_the_pace_of_its_slowest_clock(make_core):
    """Slowing one of four nodes slows the gang as much as slowing all of them."""
    made = []
    for slowed in (0, 1, 4):
        core = make_core(NAME, batch=1, overrides=(*SHORT, ENDLESS))
        members = gang(core)
        for _ in range(200):
            core.plant.node["phi"][0, members] = 1.0
            core.plant.node["phi"][0, members[:slowed]] = 0.4
            run(core, 1)
        lead = core.plant.node[0, members[0]]
        made.append(float(lead["job_done_s"] + lead["job_since_s"]))
    assert made[1] == pytest.approx(made[2], rel=1e-9) and made[1] < 0.8 * made[0]


def test_work_since_the_last_checkpoint_is_lost_with_a_member(make_core):
    """The tokens are taken back, the gang restores, and what was written stays."""
    core = make_core(NAME, batch=1, overrides=(*SHORT, ENDLESS))
    members = gang(core)
    lead = core.plant.node[0, members[0]]
    while not 30 < lead["job_since_s"] < 50:
        run(core, 1)
    written_s, since_s, tokens = (
        float(lead["job_done_s"]),
        float(lead["job_since_s"]),
        core.plant.totals["trained_tok"][0],
    )
    core.plant.fail(int(members[2]), 95, 30.0)
    run(core, 1)
    assert lead["job_done_s"] == written_s and lead["job_since_s"] == 0 and lead["job_state"] != RUNNING
    assert core.plant.totals["trained_tok"][0] < tokens
    assert core.plant.kpis(0)["lost_work_node_s"] == pytest.approx(4 * since_s, rel=0.1)
    run(core, 150)
    assert lead["job_state"] == RUNNING


def test_a_drain_lets_a_gang_write_its_checkpoint_first(make_core):
    """A drained member stops the gang without loss."""
    core = make_core(NAME, batch=1, overrides=(*SHORT, ENDLESS))
    members = gang(core)
    run(core, 20)
    core.base.node[0, members[1], 0] = 1.0
    run(core, 10)
    lead = core.plant.node[0, members[0]]
    assert core.plant.node["is_drained"][0, members[1]] == 1
    assert lead["job_state"] != RUNNING and core.plant.kpis(0)["lost_work_node_s"] == 0


def test_draw_swings_between_computing_and_communicating(make_core):
    """Within seconds a gang's draw rises and falls by a third or more, with dips at checkpoints."""
    core = make_core(NAME, policy="uniform", batch=1, overrides=(*SHORT, ENDLESS))
    members = gang(core)
    watts = []
    for _ in range(120):
        run(core, 1)
        watts.append(core.plant.node["gpu_w"][0, members].sum())
    low, high = np.percentile(watts, [10, 90])
    assert low < 0.67 * high and min(watts) < low
    assert core.plant.kpis(0)["checkpoints"] >= 1


def test_tasks_wait_for_a_gang_and_count_when_they_are_done(make_core):
    """More tasks than two servers can do: they complete one after the other, and the queue's wait grows."""
    many = "training=[{service='finetune', gang_nodes=1, work_s=40, restore_s=5, jobs_per_hour=360, deadline_s=60}]"
    core = run(make_core(NAME, policy="uniform", batch=1, overrides=(*SHORT, many)), 590)
    kpis = core.plant.kpis(0)
    assert 10 <= kpis["jobs_completed"] <= 26 and kpis["queue_wait_p95_s"] > 60 and kpis["late_jobs"] > 0
    few = "training=[{service='finetune', gang_nodes=1, work_s=40, restore_s=5, jobs_per_hour=60}]"
    kpis = run(make_core(NAME, policy="uniform", batch=1, overrides=(*SHORT, few)), 590).plant.kpis(0)
    assert 7 <= kpis["jobs_completed"] <= 11 and kpis["queue_wait_p95_s"] == 0.0


def test_training_is_shed_before_inference(make_core):
    """A cut below the floors parks the lowest priority first, and chat keeps its nodes."""
    core = make_core(NAME, batch=1, overrides=("seconds=600", "warmup_s=0", "events=[{t_s=60, limit_frac=0.66}]"))
    run(core, 90)
    stage = core.plant.node["stage"][0]
    service = core.fleet.node_static["service"]
    assert (stage[service == 1] == 2).sum() >= 2 and (stage[service == 0] < 2).all()


def test_training_nodes_train_or_are_parked_under_any_bids(make_core):
    """No bid makes a training node prefill, and random bids cost trained work but break nothing."""
    core = make_core(NAME, policy="random", batch=2)
    training = core.plant.node["is_training"][0] == 1
    for _ in range(core.plant.ticks // core.plant.control_ticks):
        core.step(core.base)
        assert (core.plant.node["stage"][:, training] != 0).all()
    assert core.plant.kpis(0)["budget_violation_ws"] == 0


def test_training_earns_its_weight_and_is_no_goodput(make_core):
    """The reward's training term is the weight times the share of full speed; goodput counts requests alone."""
    terms = {}
    for weight in (0.0, 0.5):
        core = make_core(NAME, policy="uniform", batch=1, overrides=(*SHORT, ENDLESS, f"training_weight={weight}"))
        infos = [core.step(core.base)[3] for _ in range(60)]
        terms[weight] = sum(float(i["reward_training"][0]) for i in infos)
        goodput = core.plant.kpis(0)["goodput_tok_s_per_mw"]
    share = core.plant.totals["trained_gpu_s"][0] / (training_gpus(core.fleet) * 300)
    assert 0.3 < share < 1 and terms[0.0] == 0.0 and terms[0.5] == pytest.approx(0.5 * share * 60, rel=1e-6)
    assert goodput == pytest.approx(core.plant.totals["good_tok"][0] / 300 / (core.plant.params["nominal_w"][0] / 1e6))


def test_a_fleet_without_training_has_no_such_reward(make_core):
    """Inference alone: no term, no tokens, no jobs."""
    core = make_core("steady", batch=1, overrides=("seconds=240", "warmup_s=0"))
    info = core.step(core.base)[3]
    assert "reward_training" not in info
    kpis = core.plant.kpis(0)
    assert kpis["training_tok_s"] == 0 and kpis["jobs_completed"] == 0 and np.isnan(kpis["queue_wait_p95_s"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training=[{service='chat'}]", "no training service 'chat'; it has pretrain, finetune"),
        ("training=[{service='pretrain', gang_nodes=3}]", "4 nodes do not split into gangs of 3; use a divisor"),
        ("training=[{service='pretrain'}, {service='pretrain'}]", "given twice; merge"),
        ("training=[{service='pretrain', deadline_s=5}]", "work_s: jobs that arrive or have a deadline"),
        ("load.service=[{name='pretrain'}]", "trains and takes no requests; set 0 or remove"),
    ],
)
def test_bad_jobs_are_refused_with_what_to_change(override, message):
    """One line that names the key and the fix."""
    with pytest.raises(ScenarioError, match=message):
        load_scenario(NAME, [override])
    with pytest.raises(ScenarioError, match="no training service; remove it"):
        load_scenario("steady", ["training_weight=1"])
