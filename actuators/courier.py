"""The agent's waiting and talking: one pipe that ends a wait, one thread that does the HTTP exchanges."""

import contextlib
import logging
import math
import os
import queue
import select
import signal
import threading
from dataclasses import dataclass

from .client import ServiceClient, Unanswered
from .errors import AgentRefused
from .telemetry import Reply, Telemetry

_log = logging.getLogger("flyball.agent")


class Wake:
    """A pipe that ends the main loop's wait: an answer came, or SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.is_stopping = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller = select.poll()
        self._poller.register(self._read, select.POLLIN)

    def __enter__(self) -> "Wake":
        self._before = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _stop(self, _number, _frame) -> None:
        # only a note: restoring caps happens outside the handler
        self.is_stopping = True
        self.ring()

    def ring(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, b"!")

    def wait(self, timeout_s: float) -> None:
        if self._poller.poll(max(math.ceil(timeout_s * 1000), 0)):
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)


@dataclass(frozen=True)
class Answer:
    """Outcome of one exchange: a reply or an error, and the telemetry that was sent."""

    telemetry: Telemetry
    reply: Reply | None = None
    error: AgentRefused | Unanswered | None = None


class Courier:
    """Does the HTTP exchanges on a thread of its own, one at a time."""

    def __init__(self, client: ServiceClient, wake: Wake):
        self._client, self._wake = client, wake
        self._out: queue.SimpleQueue[Telemetry | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.is_busy = False
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def send(self, telemetry: Telemetry) -> None:
        self.is_busy = True
        self._out.put(telemetry)

    def receive(self) -> Answer | None:
        """The outcome of the last `send`, None while there is none."""
        try:
            answer = self._in.get_nowait()
        except queue.Empty:
            return None
        self.is_busy = False
        return answer

    def stop(self) -> None:
        """End the thread; an exchange on its way is abandoned."""
        self._out.put(None)
        self._thread.join(0.1)

    def _work(self) -> None:
        while (telemetry := self._out.get()) is not None:
            try:
                answer = Answer(telemetry, reply=self._client.exchange(telemetry))
            except (AgentRefused, Unanswered) as error:
                answer = Answer(telemetry, error=error)
            except Exception as error:
                # a thread that died silently would look like a service that never answers
                _log.exception("the exchange failed")
                answer = Answer(telemetry, error=Unanswered(f"the exchange failed: {error}"))
            self._in.put(answer)
            self._wake.ring()
        self._client.close()
