"""Running the service: one socket, one engine, a graceful stop."""

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from ..fleet.errors import BadInput
from ..fleet.topology import Fleet
from ..policies.base import Policy
from .app import create_app
from .auth import Auth, dev_token_file, load_tokens
from .clock import Clock
from .engine import Engine, Mode
from .store import Store

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one service.

    Attributes:
        fleet: The site.
        policy: Source of bids.
        mode: enforce, advise or shadow.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        db_url: Store: a path means SQLite, else an SQLAlchemy URL.
        token_file: Token file; None makes one beside the database.
        fallback: Policy that stands in while `policy` fails; None for neutral bids.
        is_open: Whether reading needs no token; None says so on loopback with a generated token file.
        clock: Source of time; None for the machine's.
    """

    fleet: Fleet
    policy: Policy
    mode: Mode | str = Mode.ENFORCE
    host: str = "127.0.0.1"
    port: int = 8470
    db_url: str = "flyball.db"
    token_file: str | Path | None = None
    fallback: Policy | None = None
    is_open: bool | None = None
    clock: Clock | None = None


@dataclass(frozen=True)
class Listening:
    """Where a service that has started can be reached."""

    url: str
    token_file: str
    epoch: int


class _Server(uvicorn.Server):
    """uvicorn, which after a graceful stop would kill the process with the signal that asked for it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        BadInput: if the address cannot be had, with what to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: answers would wait 40 ms for an ACK
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"port {port} on {host} is in use; stop what listens there or pass --port") from None
        raise BadInput(
            f"cannot listen on {host}:{port}: {error.strerror or error}; pass another --host or --port"
        ) from None
    except OverflowError:
        sock.close()
        raise BadInput(f"port {port}: must lie between 0 and 65535") from None
    return sock


def make_auth(config: ServeConfig) -> Auth:
    """The tokens of a service; without a token file one is made beside the database."""
    reads_freely = config.is_open
    if config.token_file is not None:
        return load_tokens(config.token_file, bool(reads_freely))
    sqlite = config.db_url.removeprefix("sqlite:///")
    folder = Path(sqlite).parent if "://" not in sqlite else Path()
    path = dev_token_file(folder / "flyball-tokens.toml", [n.name for n in config.fleet.nodes])
    if reads_freely is None:
        reads_freely = config.host in LOOPBACK
    return load_tokens(path, reads_freely)


class Service:
    """One service, bound and ready to run; `stop()` may be called from any thread.

    Raises:
        BadInput: if the port, the database or the token file cannot be had.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._sock = bind(config.host, config.port)
        try:
            auth = make_auth(config)
            store = Store(config.db_url)
        except BaseException:
            self._sock.close()
            raise
        self.engine = Engine(config.fleet, config.policy, store, config.mode, config.clock, fallback=config.fallback)
        app = create_app(self.engine, auth, runs_engine=True)
        # h11 keep-alive beyond an agent's pause between posts; a stop waits for open requests this long
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=30, timeout_graceful_shutdown=5
        )
        self._server = _Server(settings)
        host, port = self._sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.listening = Listening(f"http://{shown}:{port}", auth.source, self.engine.epoch)

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop()`, then end the tick and close the store."""
        try:
            self._server.run(sockets=[self._sock])
        finally:
            self._sock.close()

    def stop(self) -> None:
        self._server.should_exit = True


def run_service(config: ServeConfig, on_ready: Callable[[Listening], None] | None = None) -> None:
    """Run the service until it is told to stop.

    Args:
        config: Settings.
        on_ready: Called once the port is bound, before the first request.

    Raises:
        BadInput: if the port, the database or the token file cannot be had.
    """
    service = Service(config)
    where = service.listening
    log.warning("listening on %s, epoch %d, tokens in %s", where.url, where.epoch, where.token_file)
    if on_ready is not None:
        on_ready(where)
    service.run()
