"""The store's tables. A change here needs a migration beside it; a test compares the two."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

# SQLite counts rows only in an INTEGER PRIMARY KEY
ROW_ID = BigInteger().with_variant(Integer, "sqlite")

epochs = Table(
    "epochs",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=True),
    Column("started_s", Float, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("policy", String(200), nullable=False),
    Column("fleet_hash", String(16), nullable=False),
    Column("site", Text, nullable=False),  # JSON: names and ranges, so that old ticks stay readable
)
leases = Table(
    "leases",
    metadata,
    Column("node", String(200), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("cap_w", BigInteger, nullable=False),
    Column("fallback_w", BigInteger, nullable=False),
    Column("ttl_s", Float, nullable=False),
    Column("issued_s", Float, nullable=False),
)
acknowledgements = Table(
    "acknowledgements",
    metadata,
    Column("node", String(200), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("cap_w", BigInteger, nullable=False),
    Column("fallback_w", BigInteger, nullable=False),
    Column("time_s", Float, nullable=False),
)
ticks = Table(
    "ticks",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("epoch", Integer, nullable=False),
    Column("tick", BigInteger, nullable=False),
    Column("time_s", Float, nullable=False, index=True),
    Column("is_keyframe", Boolean, nullable=False),
    Column("delta", LargeBinary, nullable=False),
)
budget_events = Table(
    "budget_events",
    metadata,
    Column("row_id", ROW_ID, primary_key=True, autoincrement=True),
    Column("id", String(200), nullable=False, index=True),
    Column("domain", String(200), nullable=False),
    Column("start_s", Float, nullable=False),
    Column("until_s", Float, nullable=False),
    Column("limit_w", BigInteger, nullable=False),
    Column("announced_s", Float, nullable=False),
    Column("author", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("is_withdrawn", Boolean, nullable=False),
)
health_events = Table(
    "health_events",
    metadata,
    Column("row_id", ROW_ID, primary_key=True, autoincrement=True),
    Column("time_s", Float, nullable=False, index=True),
    Column("node", String(200), nullable=False),
    Column("action", String(16), nullable=False),
    Column("event", Text, nullable=False),
)
overrides = Table(
    "overrides",
    metadata,
    Column("row_id", ROW_ID, primary_key=True, autoincrement=True),
    Column("node", String(200), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("author", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_s", Float, nullable=False),
    Column("released_s", Float),
    Column("released_by", String(200)),
    Column("cap_w", BigInteger),
    Column("until_s", Float),
)
arbiter_memory = Table(
    "arbiter_memory",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("time_s", Float, nullable=False),
    Column("content", Text, nullable=False),  # JSON: `fleet.arbiter.memory`
)
shadow_log = Table(
    "shadow_log",
    metadata,
    Column("id", ROW_ID, primary_key=True, autoincrement=True),
    Column("epoch", Integer, nullable=False),
    Column("time_s", Float, nullable=False, index=True),
    Column("fleet_hash", String(16), nullable=False),
    Column("row", LargeBinary, nullable=False),
)
