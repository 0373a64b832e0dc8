"""One versioned declaration of what a policy sees and may bid, per kind of token.

Observation, networks, ONNX metadata and the documentation are generated from it. Hashes are per kind, so that
a new node feature does not invalidate a policy that reads pools only.
"""

import hashlib
import json
from dataclasses import asdict, dataclass

VERSION = 1


@dataclass(frozen=True)
class Field:
    """One feature or bid: name, unit, the range it is clipped to, and its meaning."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


POOL_FEATURES = (
    Field("is_prefill", "1", 0, 1, "the pool is a prefill stage"),
    Field("is_decode", "1", 0, 1, "the pool is a decode stage"),
    Field("log_backlog", "1", -4, 4, "log((backlog + 1 % of target) / TTFT target)"),
    Field("log_itl", "1", -4, 4, "log(ITL / ITL target)"),
    Field("util", "1", 0, 2, "busy share (prefill) or running / admissible (decode), mean of serving nodes"),
    Field("util_fast", "1", 0, 2, "the same, 8-s average"),
    Field("util_slow", "1", 0, 2, "the same, 50-s average"),
    Field("log_rate_trend", "1", -2, 2, "log(8-s / 50-s average of the tokens/s asked of this stage)"),
    Field("good_fast", "1", 0, 1, "share that met TTFT (prefill) or ITL (decode), 8-s average"),
    Field("reject_fast", "1", 0, 1, "share of requests rejected early, 8-s average"),
    Field("node_share", "1", 0, 1, "serving nodes of this pool / nodes of the service"),
    Field("moving_share", "1", 0, 1, "nodes loading this stage / nodes of the service"),
    Field("parked_share", "1", 0, 1, "parked nodes of the service / nodes of the service"),
    Field("down_share", "1", 0, 1, "nodes of the service that do not serve / nodes of the service"),
    Field("cap", "TDP", 0, 1, "mean cap in force"),
    Field("power", "TDP", 0, 1.2, "mean GPU draw"),
    Field("demand", "TDP", 0, 1.5, "mean draw if nothing were capped"),
    Field("clock", "1", 0, 1, "mean clock fraction"),
    Field("kv", "1", 0, 1, "KV memory in use"),
    Field("temp", "100 C", 0, 1.2, "mean GPU temperature"),
    Field("others_util", "1", 0, 2, "8-s utilisation, mean of the other services' pools of this stage"),
    Field("stale", "1", 0, 1, "share of the pool's nodes without fresh telemetry"),
)
NODE_FEATURES = (
    Field("is_prefill", "1", 0, 1, "runs a prefill stage"),
    Field("is_decode", "1", 0, 1, "runs a decode stage"),
    Field("is_moving", "1", 0, 1, "loads a stage"),
    Field("is_parked", "1", 0, 1, "is parked"),
    Field("is_down", "1", 0, 1, "does not serve"),
    Field("is_stale", "1", 0, 1, "no fresh telemetry"),
    Field("cap", "TDP", 0, 1, "cap in force"),
    Field("power", "TDP", 0, 1.2, "GPU draw"),
    Field("demand", "TDP", 0, 1.5, "draw if it were not capped"),
    Field("util", "1", 0, 2, "busy share or running / admissible"),
    Field("clock", "1", 0, 1, "clock fraction"),
    Field("temp", "100 C", 0, 1.2, "GPU temperature"),
    Field("has_xid", "1", 0, 1, "a fatal XID stands against it"),
)
FLEET_FEATURES = (
    Field("budget", "TDP", 0, 1.5, "root limit less declared non-GPU draw, per GPU"),
    Field("budget_ratio", "1", 0, 1, "root limit / the site's nominal peak_w"),
    Field("next_ratio", "1", 0, 1, "announced limit / the site's nominal peak_w (now's if none)"),
    Field("next_soon", "1", 0, 1, "exp(-time to the announced change / 60 s), 0 if none"),
    Field("metered", "1", 0, 1.5, "metered power / root limit"),
    Field("bank", "1", 0, 1, "unspent share of the window, 0 where there is none"),
)
POOL_BIDS = (
    Field("watts", "1", -1, 1, "weight of the pool's watts: exp(1.5 b) x demand"),
    Field("nodes", "1", -1, 1, "share of nodes: exp(0.7 b) x now's"),
    Field("clock", "1", -1, 1, "clock ceiling: 1 + 0.8 min(b, 0); 0 and above is none"),
)
NODE_BIDS = (
    Field("drain", "1", -1, 1, "above 0.5: drain the node"),
    Field("receive", "1", -1, 1, "order in which nodes receive new work"),
)
FLEET_BIDS = (Field("spend", "1", -1, 1, "spend (+) or save (-) the slack of the windows"),)

KINDS = {
    "pool": (POOL_FEATURES, POOL_BIDS),
    "node": (NODE_FEATURES, NODE_BIDS),
    "fleet": (FLEET_FEATURES, FLEET_BIDS),
}


def schema_hash(kind: str) -> str:
    """First 16 hex digits of the SHA-256 of one kind's declaration."""
    features, bids = KINDS[kind]
    content = [VERSION, kind, [asdict(f) for f in features], [asdict(b) for b in bids]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def column(kind: str, name: str) -> int:
    """Index of a feature within its token."""
    return [f.name for f in KINDS[kind][0]].index(name)
