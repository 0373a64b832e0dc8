"""First schema: epochs, leases, acknowledgements, ticks, events, overrides, shadow log."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "epochs",
        sa.Column("epoch", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("started_s", sa.Float, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("policy", sa.String(200), nullable=False),
        sa.Column("fleet_hash", sa.String(16), nullable=False),
        sa.Column("site", sa.Text, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("node", sa.String(200), primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("cap_w", sa.BigInteger, nullable=False),
        sa.Column("fallback_w", sa.BigInteger, nullable=False),
        sa.Column("ttl_s", sa.Float, nullable=False),
        sa.Column("issued_s", sa.Float, nullable=False),
    )
    op.create_table(
        "acknowledgements",
        sa.Column("node", sa.String(200), primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("cap_w", sa.BigInteger, nullable=False),
        sa.Column("fallback_w", sa.BigInteger, nullable=False),
        sa.Column("time_s", sa.Float, nullable=False),
    )
    op.create_table(
        "ticks",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("tick", sa.BigInteger, nullable=False),
        sa.Column("time_s", sa.Float, nullable=False, index=True),
        sa.Column("is_keyframe", sa.Boolean, nullable=False),
        sa.Column("delta", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "budget_events",
        sa.Column("row_id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(200), nullable=False, index=True),
        sa.Column("domain", sa.String(200), nullable=False),
        sa.Column("start_s", sa.Float, nullable=False),
        sa.Column("until_s", sa.Float, nullable=False),
        sa.Column("limit_w", sa.BigInteger, nullable=False),
        sa.Column("announced_s", sa.Float, nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("is_withdrawn", sa.Boolean, nullable=False),
    )
    op.create_table(
        "health_events",
        sa.Column("row_id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("time_s", sa.Float, nullable=False, index=True),
        sa.Column("node", sa.String(200), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("event", sa.Text, nullable=False),
    )
    op.create_table(
        "overrides",
        sa.Column("row_id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("node", sa.String(200), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_s", sa.Float, nullable=False),
        sa.Column("released_s", sa.Float),
        sa.Column("released_by", sa.String(200)),
    )
    op.create_table(
        "shadow_log",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("time_s", sa.Float, nullable=False, index=True),
        sa.Column("fleet_hash", sa.String(16), nullable=False),
        sa.Column("row", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    for name in (
        "shadow_log",
        "overrides",
        "health_events",
        "budget_events",
        "ticks",
        "acknowledgements",
        "leases",
        "epochs",
    ):
        op.drop_table(name)
