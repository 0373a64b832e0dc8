"""The store: migrations, retention, and refusals."""

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from flyball.fleet.errors import BadInput
from flyball.serving.audit import replay
from flyball.serving.store import Store
from flyball.serving.tables import metadata


def test_migrations_make_exactly_the_declared_tables(tmp_path):
    """Nothing was added to the declaration without a migration."""
    url = f"sqlite:///{tmp_path}/a.db"
    Store(url).close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_opening_twice_changes_nothing(tmp_path):
    """Migrations are applied at each start and are idempotent."""
    for epoch in (1, 2):
        store = Store(str(tmp_path / "a.db"))
        assert store.begin_epoch(0.0, "enforce", "p", "h", {}) == epoch
        store.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    """An unknown revision is bad input, not a traceback."""
    url = f"sqlite:///{tmp_path}/a.db"
    Store(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    engine.dispose()
    with pytest.raises(BadInput, match="another version"):
        Store(url)


@pytest.mark.parametrize("url", ["sqlite://", "nosuch://x/y", "://nothing", "sqlite:////proc/none/x.db"])
def test_urls_that_cannot_be_used_are_bad_input(url):
    """One line instead of a driver's traceback."""
    with pytest.raises(BadInput):
        Store(url)


def test_pruning_keeps_every_remaining_tick_readable(make_site):
    """Old ticks go up to a keyframe; what stays replays to the same frame."""
    site = make_site()
    site.run(150)
    now_s = site.clock.now_s()
    before = replay(site.store.ticks_until(now_s - 20.0))
    assert site.store.prune(now_s - 70.0) == 60
    after = replay(site.store.ticks_until(now_s - 20.0))
    assert after.tick == before.tick and after.node.tobytes() == before.node.tobytes()
    assert replay(site.store.ticks_until(now_s - 140.0)) is None


def test_the_audit_is_small(make_site):
    """A steady tick costs little: most of it is the frame once a minute."""
    site = make_site()
    site.run(120)
    ticks = site.store.ticks_between(0.0, 1e12)
    steady = [len(t.delta) for t in ticks[30:] if not t.is_keyframe]
    assert sum(steady) / len(steady) < 400
