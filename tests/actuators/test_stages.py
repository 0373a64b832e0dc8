"""What stage runs on a node, and who says so."""

import json

import pytest

from flyball.actuators.stages import PARKED, RunningStage, StageLink
from flyball.actuators.telemetry import Reply
from flyball.fleet import tables


def test_parked_is_the_same_everywhere():
    """The agent's number for a parked node is the fleet's."""
    assert PARKED == tables.PARKED


def test_with_nobody_to_ask_a_node_is_never_said_to_be_parked():
    """A commanded stage is said back, but parking only counts when somebody saw it."""
    link = StageLink()
    assert link.read() == RunningStage(None)
    link.command(Reply(None, stage=1))
    assert link.read() == RunningStage(1)
    link.command(Reply(None, stage=PARKED))
    assert link.read() == RunningStage(1)


def test_who_runs_the_stages_has_the_word(tmp_path):
    """The file's stage and the seconds until it serves are reported, parked included."""
    link = StageLink(tmp_path / "stage.json")
    link.command(Reply(None, stage=0))
    assert link.read() == RunningStage(None)
    (tmp_path / "stage.json").write_text(json.dumps({"stage": 2, "moving_s": 12.5}))
    assert link.read() == RunningStage(PARKED, 12.5)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"stage": 7}', '{"stage": "decode"}', '{"stage": 1, "moving_s": NaN}']
)
def test_a_stage_that_makes_no_sense_is_unknown(tmp_path, text):
    """A damaged file is nobody's word."""
    (tmp_path / "stage.json").write_text(text)
    assert StageLink(tmp_path / "stage.json").read() == RunningStage(None)


def test_commands_are_passed_on_in_one_step(tmp_path):
    """The command file always holds one whole command, and a folder that is gone does not stop the agent."""
    link = StageLink(None, tmp_path / "command.json")
    link.command(Reply(None, stage=2, drained=True))
    assert json.loads((tmp_path / "command.json").read_text()) == {
        "stage": 2,
        "cordoned": False,
        "drained": True,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["command.json"]
    StageLink(None, tmp_path / "gone" / "command.json").command(Reply(None, stage=1))


def test_a_node_is_told_to_park_without_the_service(tmp_path):
    """A lease that parks leaves the command for whoever runs the stages; the next answer takes it back."""
    link = StageLink(None, tmp_path / "command.json")
    link.command(Reply(None, stage=1, drained=True))
    link.park()
    assert json.loads((tmp_path / "command.json").read_text()) == {"stage": PARKED, "cordoned": False, "drained": True}
    assert link.read().stage == 1, "nobody has seen it parked"
    link.command(Reply(None, stage=1))
    assert json.loads((tmp_path / "command.json").read_text())["stage"] == 1
