"""Snapshots, states and plans as bytes and as JSON columns, checked before a compiled kernel sees them."""

import base64
import binascii
import math
from dataclasses import fields
from typing import Any

import numpy as np

from ..fleet.arbiter import ArbiterState
from ..fleet.arbiter.state import NO_LIMIT_W
from ..fleet.errors import BadInput
from ..fleet.plan import Plan
from ..fleet.snapshot import Snapshot
from ..fleet.topology import Fleet

MAX_BATCH = 4096
"""Environments per request; beyond it the client should split."""

MAX_ABS_W = 10**12
"""A terawatt: no limit, cap or sequence of a real site comes near, and sums of 10^6 of them fit int64."""

_INDEX_FIELDS = {
    "stage": (0, 2),
    "stage_cmd": (0, 2),
    "is_up": (0, 1),
    "is_silent": (0, 1),
    "is_parked": (0, 1),
    "is_drained": (0, 1),
    "ack_seq": (-1, MAX_ABS_W),
    "seq": (-1, MAX_ABS_W),
    "wait_seq": (-1, MAX_ABS_W),
    "shed_from": (0, 3),
    "announced_w": (-MAX_ABS_W, NO_LIMIT_W),
}


def check_table(what: str, table: np.ndarray) -> None:
    """Refuse integers that a kernel could index with or overflow on.

    Raises:
        BadInput: naming the table and the column.
    """
    for name in table.dtype.names or ():
        column = table[name]
        if column.dtype.kind != "i" or column.size == 0:
            continue
        low, high = _INDEX_FIELDS.get(name, (-MAX_ABS_W, MAX_ABS_W))
        if int(column.min()) < low or int(column.max()) > high:
            raise BadInput(f"{what}.{name}: values must lie between {low} and {high}")


def snapshot_from_bytes(fleet: Fleet, data: bytes) -> Snapshot:
    """Inverse of `Snapshot.to_bytes`; the batch follows from the length.

    Raises:
        BadInput: if the length is not a whole number of environments of this fleet.
    """
    empty = Snapshot.unknown(fleet)
    tables = (empty.time_s, empty.node, empty.domain, empty.service)
    per_env = sum(t[0].nbytes for t in tables)
    batch, rest = divmod(len(data), per_env)
    if rest or not 1 <= batch <= MAX_BATCH:
        raise BadInput(
            f"snapshot: {len(data)} bytes; this fleet needs a multiple of {per_env}, for 1 to {MAX_BATCH} environments"
        )
    out, offset = [], 0
    for t in tables:
        count = batch * t[0].size
        out.append(np.frombuffer(data, t.dtype, count, offset).reshape((batch, *t.shape[1:])).copy())
        offset += count * t.dtype.itemsize
    return _checked(Snapshot(*out))


def snapshot_from_columns(fleet: Fleet, columns: dict[str, Any]) -> Snapshot:
    """A batch of one from JSON columns; absent columns and nulls stay unknown.

    Raises:
        BadInput: for an unknown table or column, or a wrong length.
    """
    snapshot = Snapshot.unknown(fleet)
    tables = {"node": snapshot.node, "domain": snapshot.domain, "service": snapshot.service}
    for table_name, content in columns.items():
        if table_name == "time_s":
            if not isinstance(content, int | float) or not math.isfinite(content):
                raise BadInput("snapshot.time_s: must be a finite number of seconds")
            snapshot.time_s[0] = content
            continue
        if table_name not in tables or not isinstance(content, dict):
            raise BadInput(f"snapshot.{table_name}: no such table; use time_s, node, domain, service")
        table = tables[table_name]
        for name, values in content.items():
            if name not in (table.dtype.names or ()):
                raise BadInput(f"snapshot.{table_name}.{name}: no such column")
            if not isinstance(values, list) or len(values) != table.shape[1]:
                raise BadInput(f"snapshot.{table_name}.{name}: needs a list of {table.shape[1]} numbers")
            column = table[name][0]
            for i, value in enumerate(values):
                if value is None:
                    continue
                if isinstance(value, str) or not isinstance(value, int | float):
                    raise BadInput(f"snapshot.{table_name}.{name}[{i}]: must be a number or null")
                if column.dtype.kind == "i" and not (math.isfinite(value) and abs(value) <= MAX_ABS_W):
                    raise BadInput(f"snapshot.{table_name}.{name}[{i}]: must be a whole number up to {MAX_ABS_W}")
                column[i] = value
    return _checked(snapshot)


def _checked(snapshot: Snapshot) -> Snapshot:
    if not np.isfinite(snapshot.time_s).all():
        raise BadInput("snapshot.time_s: must be finite")
    check_table("snapshot.node", snapshot.node)
    check_table("snapshot.domain", snapshot.domain)
    check_table("snapshot.service", snapshot.service)
    return snapshot


def state_from_bytes(fleet: Fleet, data: bytes, batch: int) -> ArbiterState:
    """`ArbiterState.from_bytes`, with every value checked.

    Raises:
        BadInput: if the length does not fit this fleet, or a value could not have come from an arbiter.
    """
    try:
        state = ArbiterState.from_bytes(fleet, data, batch)
    except ValueError as error:
        raise BadInput(f"state: {error}; send null to start afresh") from None
    for f in fields(state):
        check_table(f"state.{f.name}", getattr(state, f.name))
    return state


def from_base64(what: str, text: object) -> bytes:
    """Strict base64.

    Raises:
        BadInput: naming the field.
    """
    try:
        return base64.b64decode(text, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, TypeError, ValueError):
        raise BadInput(f"{what}: must be base64 text as an earlier answer gave it") from None


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def table_columns(table: np.ndarray) -> dict[str, list]:
    """One environment's table as plain lists; NaN becomes null, because JSON has none."""
    out = {}
    for name in table.dtype.names or ():
        values = table[name].tolist()
        if table.dtype[name].kind == "f":
            values = [v if math.isfinite(v) else None for v in values]
        out[name] = values
    return out


def plan_columns(plan: Plan, env: int = 0) -> dict[str, Any]:
    """A plan of one environment as JSON columns."""
    return {"node": table_columns(plan.node[env]), "fleet": table_columns(plan.fleet[env : env + 1])}
