"""What meters and model servers would say, on its way to the service."""

import math
import queue
import threading
import time
from typing import Any

from ...actuators.lease import boottime_s
from ...fleet.errors import BadInput
from ...fleet.snapshot import Snapshot
from ...fleet.topology import Fleet
from ..processes import ServiceFailed, ServiceLink

RETRY_S = 0.2


class Reporter:
    """Talks to the service on a thread of its own, so that a dead one never holds up the physics.

    Telemetry that cannot be delivered is dropped; an event is tried again until the service has accepted it.
    """

    def __init__(self, url: str, agent_token: str, operator_token: str):
        self._agent, self._operator = ServiceLink(url, agent_token), ServiceLink(url, operator_token)
        self._work: queue.SimpleQueue[tuple[str, dict] | None] = queue.SimpleQueue()
        self._is_stopping = threading.Event()
        self.accepted: dict[str, float] = {}
        self.refused: list[str] = []
        self.seen: dict[str, Any] | None = None
        self.seen_s = -math.inf
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def telemetry(self, body: dict) -> None:
        """Post what meters and model servers say, and look at the fleet."""
        if self._work.qsize() < 2:  # what has waited longer says nothing new
            self._work.put(("telemetry", body))

    def load_target(self, body: dict) -> None:
        """Announce a budget event; `accepted` gets its id and the time of the answer, on the monotonic clock."""
        self._work.put(("event", body))

    def stop(self) -> None:
        self._is_stopping.set()
        self._work.put(None)
        self._thread.join(5.0)
        self._agent.close()
        self._operator.close()

    def _run(self) -> None:
        while (work := self._work.get()) is not None and not self._is_stopping.is_set():
            kind, body = work
            if kind == "event":
                self._announce(body)
                continue
            try:
                self._agent.call("POST", "/v1/telemetry", body)
                self.seen = self._operator.call("GET", "/v1/fleet")
                self.seen_s = time.monotonic()
            except ServiceFailed:
                self.seen = None
            except BadInput as error:
                self.refused.append(str(error))

    def _announce(self, body: dict) -> None:
        while not self._is_stopping.is_set():
            try:
                self._operator.call("POST", "/v1/load-targets", body)
            except ServiceFailed:
                self._is_stopping.wait(RETRY_S)
            except BadInput as error:
                self.refused.append(str(error))
                return
            else:
                self.accepted[body["id"]] = time.monotonic()
                return


def telemetry(fleet: Fleet, snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot of the plant as meters and model servers would report it now, in the service's batched form."""
    now_s = boottime_s()
    domains = [
        {"domain": d.name, "meter_w": _known(row["meter_w"]), "sent_at": now_s}
        for d, row in zip(fleet.domains, snapshot.domain[0], strict=True)
    ]
    services = [
        {"service": s.name, "sent_at": now_s, **{f: _known(row[f]) for f in row.dtype.names if f != "age_s"}}
        for s, row in zip(fleet.services, snapshot.service[0], strict=True)
    ]
    return {"domains": domains, "services": services}


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
