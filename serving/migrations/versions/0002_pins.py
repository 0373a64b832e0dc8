"""Orders that hold a cap, and orders that end by themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("overrides", sa.Column("cap_w", sa.BigInteger))
    op.add_column("overrides", sa.Column("until_s", sa.Float))


def downgrade() -> None:
    op.drop_column("overrides", "until_s")
    op.drop_column("overrides", "cap_w")
