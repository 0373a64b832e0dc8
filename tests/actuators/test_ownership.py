"""Ownership of caps on disk."""

import pytest

from flyball.actuators.ownership import OwnedGpu, Ownership, OwnershipFile
from flyball.fleet.errors import BadInput

OWNED = Ownership("n0", "boot", 3, 9, 3200, False, {"GPU-a": OwnedGpu(700, 500, 400)})


def test_what_was_stored_is_loaded(tmp_path):
    """A round trip through the file changes nothing, and no scratch file stays."""
    files = OwnershipFile(tmp_path, "n0")
    files.store(OWNED)
    assert files.load() == OWNED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n0.json", "n0.lock"]
    files.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1, "gpus": {"a": {"x": 1}}}'])
def test_a_file_that_cannot_be_read_counts_as_nothing(tmp_path, text):
    """A damaged file leads to a fresh start, never to a crash or a made-up cap."""
    (tmp_path / "n0.json").write_text(text)
    files = OwnershipFile(tmp_path, "n0")
    assert files.load() == Ownership("n0")
    files.close()


def test_two_agents_never_own_one_node(tmp_path):
    """A second agent for the same node is refused, one for another node is not."""
    first = OwnershipFile(tmp_path, "n0")
    with pytest.raises(BadInput, match="another agent already runs"):
        OwnershipFile(tmp_path, "n0", wait_s=0.05)
    OwnershipFile(tmp_path, "n1").close()
    first.close()
    OwnershipFile(tmp_path, "n0", wait_s=0.05).close()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    """The message names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="state_dir"):
        OwnershipFile(tmp_path / "file", "n0")
