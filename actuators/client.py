"""The agent's connection to the service, and how long to wait after a failure.

`http.client` on one kept-alive connection: one agent per node runs beside the paying work, and a larger HTTP
library would cost each of them 12 MB and a tenth of a second at start for a single small POST per second.
"""

import http.client
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlsplit

from ..fleet.errors import BadInput, FlyballError
from .errors import AgentRefused
from .telemetry import Reply, Telemetry

MAX_REPLY_BYTES = 1 << 20


class Unanswered(FlyballError):
    """The exchange failed in a way that a later one may not: nothing is known, so nothing changes."""


@dataclass(frozen=True)
class Backoff:
    """Exponential waiting with jitter, so that a fleet does not return in one instant.

    Attributes:
        base_s: First wait.
        live_cap_s: Longest wait while a lease lives: several tries must fit into its time to live.
        dead_cap_s: Longest wait without one.
        failures: In a row.
    """

    base_s: float = 0.1
    live_cap_s: float = 2.0
    dead_cap_s: float = 5.0
    failures: int = 0

    def failed(self) -> "Backoff":
        return replace(self, failures=self.failures + 1)

    def succeeded(self) -> "Backoff":
        return replace(self, failures=0)

    def wait_s(self, has_lease: bool, draw: float) -> float:
        """Seconds until the next try.

        Args:
            has_lease: Whether a lease lives.
            draw: A random number in [0, 1).
        """
        if not self.failures:
            return 0.0
        cap_s = self.live_cap_s if has_lease else self.dead_cap_s
        # the exponent is bounded so that a night without service does not overflow
        return min(cap_s, self.base_s * 2.0 ** min(self.failures - 1, 30)) * (0.5 + 0.5 * draw)


class ServiceClient:
    """Posts one node's telemetry; not safe to share between threads.

    Args:
        server: URL of the service, http or https, with an optional path prefix.
        node: Name of the node in the site file.
        token: Bearer token; None sends none.
        timeout_s: Of each wait for the network.

    Raises:
        BadInput: for a URL that cannot be used.
    """

    def __init__(self, server: str, node: str, token: str | None = None, timeout_s: float = 2.0):
        parts = urlsplit(server)
        try:
            port = parts.port
        except ValueError:
            raise BadInput(f"--server {server!r}: the port is not a number up to 65535") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"--server {server!r} is not a URL; use for instance http://127.0.0.1:8000")
        self.server, self.node = server, node
        self._connect: Callable[[], http.client.HTTPConnection]
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connect = lambda: http.client.HTTPSConnection(
                parts.hostname or "", port, timeout=timeout_s, context=context
            )
        else:
            self._connect = lambda: http.client.HTTPConnection(parts.hostname or "", port, timeout=timeout_s)
        self._connection: http.client.HTTPConnection | None = None
        self._path = f"{parts.path.rstrip('/')}/v1/nodes/{quote(node, safe='')}/telemetry"
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def exchange(self, telemetry: Telemetry) -> Reply:
        """Post telemetry and return what the service answers.

        Raises:
            AgentRefused: wrong token, unknown node, or a service that does not understand this agent.
            Unanswered: anything that may pass: no connection, a timeout, a failing or outdated service.
        """
        body = json.dumps(telemetry.to_dict(), separators=(",", ":")).encode()
        status, answer = self._post(body)
        if status == 200:
            try:
                return Reply.from_dict(json.loads(answer), telemetry.seq)
            except ValueError as error:
                raise Unanswered(f"{self.server} sent an answer that cannot be read: {error}") from None
        raise self._refusal(status, _detail(answer))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> tuple[int, bytes]:
        is_reused = self._connection is not None
        try:
            return self._post_once(body)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            if not is_reused:
                raise self._failure(error) from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from None
        # an idle connection that the service closed says nothing about the service: once more on a new one
        try:
            return self._post_once(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Unanswered:
        what = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return Unanswered(f"{self.server} does not answer ({what})")

    def _post_once(self, body: bytes) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        answer = response.read(MAX_REPLY_BYTES + 1)
        if len(answer) > MAX_REPLY_BYTES:
            raise http.client.HTTPException("the answer is larger than 1 MiB")
        if response.will_close:
            self.close()
        return response.status, answer

    def _refusal(self, status: int, detail: str) -> AgentRefused | Unanswered:
        said = f" ({detail})" if detail else ""
        if status in (401, 403):
            return AgentRefused(
                f"{self.server} refuses this agent's token for node {self.node!r} (HTTP {status}){said}; "
                "set FLYBALL_TOKEN to the token that the service's token file gives this node",
                status,
            )
        if status == 404:
            return AgentRefused(
                f"the site of {self.server} has no node {self.node!r} (HTTP 404){said}; "
                "correct --node or add the node to the site file",
                status,
            )
        if status == 409:
            return Unanswered(
                f"{self.server} and this node disagree about who is in charge (HTTP 409){said}; "
                "stop the service or the agent that was replaced"
            )
        if status in (400, 413, 415, 422):
            return AgentRefused(
                f"{self.server} does not understand this agent (HTTP {status}){said}; run the same version on both",
                status,
            )
        return Unanswered(f"{self.server} answered HTTP {status}{said}")


def _detail(answer: bytes) -> str:
    """What an error body says, in one short line."""
    try:
        content: Any = json.loads(answer)
    except ValueError:
        return ""
    detail = content.get("detail", content.get("error", "")) if isinstance(content, dict) else ""
    return " ".join(str(detail).split())[:200]
