"""Running the service: sockets, tokens, a graceful stop."""

import socket
import stat
import threading
import time

import httpx
import pytest

from flyball.fleet.errors import BadInput
from flyball.serving.assurance import NeutralPolicy
from flyball.serving.auth import dev_token_file, load_tokens, read_secrets
from flyball.serving.server import ServeConfig, Service, bind
from flyball.serving.store import Store


def test_a_port_in_use_is_bad_input_with_the_fix():
    """The message names the port and the flag."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} .*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(BadInput, match="65535"):
        bind("127.0.0.1", 99_999)
    with pytest.raises(BadInput, match="--host"):
        bind("203.0.113.77", 0)


def test_answers_do_not_wait_for_acknowledgements():
    """The socket names its protocol, which is what makes asyncio turn Nagle's algorithm off on what it accepts."""
    sock = bind("127.0.0.1", 0)
    try:
        assert sock.proto == socket.IPPROTO_TCP
    finally:
        sock.close()


def test_a_service_starts_answers_and_stops(tmp_path, fleet):
    """On a free port, with a generated token file, a ticking engine and a clean end."""
    config = ServeConfig(fleet, NeutralPolicy(fleet), port=0, db_url=f"{tmp_path}/f.db")
    service = Service(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        secrets = read_secrets(service.listening.token_file)
        with httpx.Client(base_url=service.listening.url, timeout=10.0) as client:
            for _ in range(500):
                if client.get("/readyz").status_code == 200:
                    break
                time.sleep(0.02)
            assert client.get("/v1/fleet").json()["epoch"] == 1  # loopback reads freely
            body = {"boot_id": "b", "sent_at": 1.0}
            headers = {"Authorization": f"Bearer {secrets['rack0-node0']}"}
            answer = client.post("/v1/nodes/rack0-node0/telemetry", json=body, headers=headers)
            assert answer.json()["lease"]["cap_w"] == 1600
            assert client.post("/v1/load-targets", json={}).status_code == 403
    finally:
        service.stop()
        thread.join(timeout=20.0)
    assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.listening.url + "/healthz")
    store = Store(f"{tmp_path}/f.db", create=False)
    assert store.tick_span() is not None
    store.close()


def test_generated_tokens_are_private_kept_and_one_per_node(tmp_path):
    """Only the owner can read the file, and a second start keeps the secrets."""
    path = dev_token_file(tmp_path / "t.toml", ["n0", "n1"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secrets = read_secrets(path)
    assert set(secrets) == {"operator", "viewer", "emulation", "n0", "n1"} and len(set(secrets.values())) == 5
    assert read_secrets(dev_token_file(path, ["n0", "n1"])) == secrets
    auth = load_tokens(path)
    agent = auth.identify(f"Bearer {secrets['n0']}")
    assert agent.may_speak_for("n0") and not agent.may_speak_for("n1") and not agent.may_operate
    assert auth.identify(None) is None and load_tokens(path, anonymous_viewer=True).identify(None).may_view


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no \\[\\[token\\]\\]"),
        ("[[token", "token file"),
        ('[[token]]\nname="a"\nrole="king"\nsecret="0123456789abcdef"', "role"),
        ('[[token]]\nname="a"\nrole="viewer"\nsecret="short"', "shorter"),
        ('[[token]]\nname="a"\nrole="viewer"\nsha256="zz"', "64 hex"),
        ('[[token]]\nname="a"\nrole="agent"\nsecret="0123456789abcdef"', "nodes"),
    ],
)
def test_token_files_that_are_wrong_say_what_to_mend(tmp_path, text, says):
    """Bad input names the file and the entry."""
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        load_tokens(path)
    with pytest.raises(BadInput, match="no token file"):
        load_tokens(tmp_path / "absent.toml")
