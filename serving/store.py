"""The durable side of the service: epochs, leases, acknowledgements, audit, events, shadow log.

SQLite in one file by default, PostgreSQL by URL. Everything a tick must keep goes down in one transaction.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from ..fleet.errors import BadInput
from ..fleet.tables import NEVER_S
from . import tables as t
from .budget import BudgetEvent

MIGRATIONS = Path(__file__).parent / "migrations"


class Fenced(Exception):
    """A newer service has taken over this database: this one must stop handing out leases."""


@dataclass(frozen=True)
class LeaseRow:
    """The latest lease that a node was given."""

    node: str
    epoch: int
    seq: int
    cap_w: int
    fallback_w: int
    ttl_s: float
    issued_s: float


@dataclass(frozen=True)
class AckRow:
    """The latest acknowledgement of a node, with what it read back."""

    node: str
    epoch: int
    seq: int
    cap_w: int
    fallback_w: int
    time_s: float


@dataclass(frozen=True)
class TickRecord:
    """All that one tick must keep; written in one transaction."""

    epoch: int
    tick: int
    time_s: float
    is_keyframe: bool
    delta: bytes
    leases: tuple[LeaseRow, ...] = ()
    acks: tuple[AckRow, ...] = ()
    shadow: bytes | None = None
    fleet_hash: str = ""
    memory: str | None = None


@dataclass(frozen=True)
class StoredTick:
    """A tick as read back."""

    epoch: int
    tick: int
    time_s: float
    is_keyframe: bool
    delta: bytes


@dataclass(frozen=True)
class EpochRow:
    """One start of the service."""

    epoch: int
    started_s: float
    mode: str
    policy: str
    fleet_hash: str
    site: dict[str, Any]


@dataclass(frozen=True)
class Override:
    """An order of a person (or of a health event) about one node; `kind` is one of `orders.KINDS`.

    Attributes:
        cap_w: What a pin or a freeze holds it at; 0 for others.
        until_s: When it ends by itself.
    """

    node: str
    kind: str
    author: str
    reason: str
    created_s: float
    cap_w: int = 0
    until_s: float = NEVER_S


class Store:
    """One database.

    Args:
        url: SQLAlchemy URL; a bare path means SQLite in that file.
        create: Whether to create and migrate; False only reads what is there.

    Raises:
        BadInput: if the URL cannot be opened, or was written by a newer Flyball.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        self.url = url if "://" in url else f"sqlite:///{url}"
        self._engine = _connect(self.url, create)
        try:
            if create:
                self._migrate()
            elif not sa.inspect(self._engine).has_table("ticks"):
                raise BadInput(f"{url} holds no Flyball service data; give the URL that `flyball serve` used")
        except BaseException:
            self._engine.dispose()
            raise

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        logger = logging.getLogger("alembic")
        logger.setLevel(max(logger.level, logging.WARNING))
        try:
            with self._engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError as error:
            raise BadInput(f"{self.url} was written by another version of Flyball ({error}); upgrade Flyball") from None
        except DBAPIError as error:
            raise BadInput(f"{self.url} cannot be used: {error.orig}; check the URL and its permissions") from None

    def close(self) -> None:
        self._engine.dispose()

    # ── epochs ──────────────────────────────────────────────────────────────────────────────────────────
    def begin_epoch(self, started_s: float, mode: str, policy: str, fleet_hash: str, site: dict[str, Any]) -> int:
        """Durably take the next epoch; every earlier service on this database is fenced from now on."""
        values = {"started_s": started_s, "mode": mode, "policy": policy, "fleet_hash": fleet_hash}
        with self._engine.begin() as c:
            result = c.execute(sa.insert(t.epochs).values(**values, site=json.dumps(site)))
            key = result.inserted_primary_key
            assert key is not None
            return int(key[0])

    def epochs(self) -> list[EpochRow]:
        with self._engine.connect() as c:
            rows = c.execute(sa.select(t.epochs).order_by(t.epochs.c.epoch)).all()
        return [EpochRow(r.epoch, r.started_s, r.mode, r.policy, r.fleet_hash, json.loads(r.site)) for r in rows]

    # ── the tick's group commit ─────────────────────────────────────────────────────────────────────────
    def commit(self, record: TickRecord) -> None:
        """Write everything of one tick in one transaction.

        Raises:
            Fenced: if a newer epoch has begun; nothing is written.
        """
        with self._engine.begin() as c:
            newest = c.execute(sa.select(sa.func.max(t.epochs.c.epoch))).scalar_one()
            if newest is not None and newest > record.epoch:
                raise Fenced(f"epoch {newest} has begun; this service is at {record.epoch} and stands down")
            c.execute(
                sa.insert(t.ticks).values(
                    epoch=record.epoch,
                    tick=record.tick,
                    time_s=record.time_s,
                    is_keyframe=record.is_keyframe,
                    delta=record.delta,
                )
            )
            _replace_rows(c, t.leases, record.leases)
            _replace_rows(c, t.acknowledgements, record.acks)
            if record.memory is not None:
                c.execute(sa.delete(t.arbiter_memory))
                row = {"epoch": record.epoch, "time_s": record.time_s, "content": record.memory}
                c.execute(sa.insert(t.arbiter_memory).values(**row))
            if record.shadow is not None:
                c.execute(
                    sa.insert(t.shadow_log).values(
                        epoch=record.epoch,
                        time_s=record.time_s,
                        fleet_hash=record.fleet_hash,
                        row=record.shadow,
                    )
                )

    def leases(self) -> dict[str, LeaseRow]:
        with self._engine.connect() as c:
            return {r.node: LeaseRow(*r) for r in c.execute(sa.select(t.leases))}

    def memory(self) -> dict[str, Any]:
        """What the last service kept of its arbiter (`fleet.arbiter.memory`); empty before the first."""
        newest = sa.select(t.arbiter_memory.c.content).order_by(t.arbiter_memory.c.epoch.desc()).limit(1)
        with self._engine.connect() as c:
            content = c.execute(newest).scalar()
        return json.loads(content) if content else {}

    def acknowledgements(self) -> dict[str, AckRow]:
        with self._engine.connect() as c:
            return {r.node: AckRow(*r) for r in c.execute(sa.select(t.acknowledgements))}

    # ── audit ───────────────────────────────────────────────────────────────────────────────────────────
    def ticks_until(self, at_s: float) -> list[StoredTick]:
        """The last keyframe at or before a time and every tick from there to that time."""
        key = sa.select(t.ticks.c.id).where(t.ticks.c.is_keyframe, t.ticks.c.time_s <= at_s)
        with self._engine.connect() as c:
            first = c.execute(key.order_by(t.ticks.c.id.desc()).limit(1)).scalar()
            if first is None:
                return []
            return self._ticks(c, t.ticks.c.id >= first, t.ticks.c.time_s <= at_s)

    def ticks_to(self, epoch: int, tick: int) -> list[StoredTick]:
        """The last keyframe at or before a tick of an epoch and every tick from there to it."""
        same = t.ticks.c.epoch == epoch
        key = sa.select(sa.func.max(t.ticks.c.tick)).where(same, t.ticks.c.is_keyframe, t.ticks.c.tick <= tick)
        with self._engine.connect() as c:
            first = c.execute(key).scalar()
            if first is None:
                return []
            return self._ticks(c, same, t.ticks.c.tick >= first, t.ticks.c.tick <= tick)

    def ticks_between(self, from_s: float, to_s: float, limit: int = 100_000) -> list[StoredTick]:
        """Ticks with from_s <= time < to_s, oldest first, the newest `limit` of them."""
        where = (t.ticks.c.time_s >= from_s, t.ticks.c.time_s < to_s)
        with self._engine.connect() as c:
            newest = sa.select(t.ticks.c.id).where(*where).order_by(t.ticks.c.id.desc()).limit(limit)
            return self._ticks(c, t.ticks.c.id.in_(newest))

    @staticmethod
    def _ticks(c: sa.Connection, *where: Any) -> list[StoredTick]:
        columns = (t.ticks.c.epoch, t.ticks.c.tick, t.ticks.c.time_s, t.ticks.c.is_keyframe, t.ticks.c.delta)
        return [StoredTick(*r) for r in c.execute(sa.select(*columns).where(*where).order_by(t.ticks.c.id))]

    def tick_span(self) -> tuple[float, float] | None:
        """Times of the first and the last tick; None before the first."""
        with self._engine.connect() as c:
            first, last = c.execute(sa.select(sa.func.min(t.ticks.c.time_s), sa.func.max(t.ticks.c.time_s))).one()
        return None if first is None else (first, last)

    def next_tick_after(self, at_s: float) -> float | None:
        """Time of the first tick after a time."""
        with self._engine.connect() as c:
            return c.execute(sa.select(sa.func.min(t.ticks.c.time_s)).where(t.ticks.c.time_s > at_s)).scalar()

    def prune(self, before_s: float) -> int:
        """Forget ticks and shadow rows older than a time; returns how many ticks went.

        The cut falls on a keyframe, so that every tick that stays can still be read.
        """
        with self._engine.begin() as c:
            key = sa.select(sa.func.max(t.ticks.c.id)).where(t.ticks.c.is_keyframe, t.ticks.c.time_s <= before_s)
            first = c.execute(key).scalar()
            c.execute(sa.delete(t.shadow_log).where(t.shadow_log.c.time_s < before_s))
            return c.execute(sa.delete(t.ticks).where(t.ticks.c.id < first)).rowcount if first is not None else 0

    # ── events and orders ───────────────────────────────────────────────────────────────────────────────
    def save_budget_event(self, event: BudgetEvent, supersedes: Iterable[str] = ()) -> None:
        """Write an event; it takes the place of an earlier one of the same id and of those it names."""
        gone = {event.id, *supersedes}
        with self._engine.begin() as c:
            c.execute(sa.update(t.budget_events).where(t.budget_events.c.id.in_(gone)).values(is_withdrawn=True))
            c.execute(sa.insert(t.budget_events).values(**_columns(event)))

    def withdraw_budget_event(self, event_id: str) -> None:
        with self._engine.begin() as c:
            c.execute(sa.update(t.budget_events).where(t.budget_events.c.id == event_id).values(is_withdrawn=True))

    def budget_events(self, ending_after_s: float) -> list[BudgetEvent]:
        """Events that still stand and end after a time."""
        where = (~t.budget_events.c.is_withdrawn, t.budget_events.c.until_s > ending_after_s)
        with self._engine.connect() as c:
            rows = c.execute(sa.select(t.budget_events).where(*where).order_by(t.budget_events.c.row_id)).all()
        return [BudgetEvent(*r[1:]) for r in rows]

    def save_health_event(self, time_s: float, node: str, action: str, event: dict[str, Any]) -> None:
        with self._engine.begin() as c:
            values = {"time_s": time_s, "node": node, "action": action, "event": json.dumps(event)}
            c.execute(sa.insert(t.health_events).values(**values))

    def save_override(self, override: Override) -> None:
        """Write an order; it replaces a standing one of the same node."""
        with self._engine.begin() as c:
            _release(c, override.node, override.author, override.created_s)
            c.execute(sa.insert(t.overrides).values(**_columns(override)))

    def release_override(self, node: str, author: str, at_s: float) -> None:
        with self._engine.begin() as c:
            _release(c, node, author, at_s)

    def overrides(self) -> dict[str, Override]:
        """Standing orders by node."""
        o = t.overrides.c
        with self._engine.connect() as c:
            columns = sa.select(o.node, o.kind, o.author, o.reason, o.created_s, o.cap_w, o.until_s)
            rows = c.execute(columns.where(o.released_s.is_(None))).all()
        # rows from before pins have neither a cap nor an end
        return {r[0]: Override(*r[:5], r[5] or 0, NEVER_S if r[6] is None else r[6]) for r in rows}

    def shadow_rows(self, from_s: float, to_s: float) -> list[tuple[int, float, str, bytes]]:
        """(epoch, time_s, fleet hash, row) with from_s <= time < to_s, oldest first."""
        s = t.shadow_log.c
        query = sa.select(s.epoch, s.time_s, s.fleet_hash, s.row).where(s.time_s >= from_s, s.time_s < to_s)
        with self._engine.connect() as c:
            return [tuple(r) for r in c.execute(query.order_by(s.id))]

    def shadow_span(self) -> tuple[float, float] | None:
        """Times of the first and the last shadow row; None where there is none."""
        s = t.shadow_log.c
        with self._engine.connect() as c:
            first, last = c.execute(sa.select(sa.func.min(s.time_s), sa.func.max(s.time_s))).one()
        return None if first is None else (first, last)


@contextmanager
def open_store(url: str):
    """An existing database, for reading."""
    store = Store(url, create=False)
    try:
        yield store
    finally:
        store.close()


def withdrawn(event: BudgetEvent) -> BudgetEvent:
    """The same event, superseded."""
    return replace(event, is_withdrawn=True)


def _connect(url: str, create: bool) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            if not parsed.database or parsed.database == ":memory:":
                raise BadInput("the store needs a file: sqlite:///path/to/flyball.db")
            if not create and not path.exists():
                raise BadInput(f"no database at {path}; give the one that `flyball serve` wrote")
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed)
    except ArgumentError:
        raise BadInput(f"{url!r} is no database URL; use sqlite:///file.db or postgresql+psycopg://…") from None
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise BadInput(f"no driver for {url.split(':')[0]}: {error}; install it, e.g. pip install psycopg") from None
    except OSError as error:
        raise BadInput(f"{url}: {error.strerror}; choose a folder that can be written") from None
    if parsed.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_settings)
    return engine


def _sqlite_settings(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # WAL: readers (explain, reports) never block the tick. FULL: a lease handed out survives power loss.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _columns(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _replace_rows(c: sa.Connection, table: sa.Table, rows: Sequence[LeaseRow | AckRow]) -> None:
    if not rows:
        return
    values = [_columns(r) for r in rows]
    c.execute(sa.delete(table).where(table.c.node == sa.bindparam("gone")), [{"gone": r.node} for r in rows])
    c.execute(sa.insert(table), values)


def _release(c: sa.Connection, node: str, author: str, at_s: float) -> None:
    o = t.overrides
    standing = (o.c.node == node) & o.c.released_s.is_(None)
    c.execute(sa.update(o).where(standing).values(released_s=at_s, released_by=author))
