"""How the breach of a limit stands, by its meter: active, escalated, resolved (FIELD.md section 5).

A breach is *active* from the first reading above the limit in force. It is *escalated* when it outlives the wait
that a take-back is given, or is critical: more than 20 % above the limit. It is *resolved* once the meter has read
at or below the limit for as long as that wait, and stays so until the next one begins. A meter that is silent or
frozen neither begins nor ends one.
"""

from ..plan import Breach
from .compiled import kernel

NONE, ACTIVE, ESCALATED, RESOLVED = (int(b) for b in Breach)

CRITICAL_FRAC = 0.2
"""FIELD.md section 5: a warning up to 20 % over the target, critical above."""

WAIT_S = 10.0
"""FIELD.md section 5: wait 10 s, verify, retry."""


@kernel
def update_breach(over_w, limit_w, dt_s, record):
    """Advance the breach of one limit by a reading that can be believed.

    Args:
        over_w: Metered watts above the limit; negative below it.
        limit_w: The limit in force.
        dt_s: Since the last settlement.
        record: The domain's row of the state.
    """
    is_standing = record.breach == ACTIVE or record.breach == ESCALATED
    if over_w > 0.0:
        if not is_standing:
            record.breach = ACTIVE
            record.breach_s = 0.0
            record.is_critical = 0
        else:
            record.breach_s += dt_s
        record.below_s = 0.0
        if over_w > CRITICAL_FRAC * limit_w:
            record.is_critical = 1
        if record.is_critical != 0 or record.breach_s >= WAIT_S:
            record.breach = ESCALATED
    elif is_standing:
        record.breach_s += dt_s
        record.below_s += dt_s
        if record.below_s >= WAIT_S:
            record.breach = RESOLVED
