"""Why a node had the cap it had, at any time of a run, in one sentence."""

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from ..fleet.errors import BadInput
from ..fleet.plan import Reason
from ..fleet.tables import NEVER_S
from .audit import Frame, replay
from .store import EpochRow, Store

STAGE_WORDS = ("prefill", "decode", "parked")


@dataclass(frozen=True)
class Explanation:
    """The sentence and the numbers in it."""

    node: str
    at_s: float
    sentence: str
    cap_w: int
    want_w: int
    fallback_w: int
    reason: str
    domain: str  # whose limit binds, or is the tightest above the node
    limit_w: int
    since_s: float


def watts(value: float) -> str:
    return f"{value:,.0f} W"


def clock_text(time_s: float, beside_s: float) -> str:
    """Local time of day, with the date where it is another day than `beside_s`."""
    if time_s >= NEVER_S or not math.isfinite(time_s):
        return "further notice"
    moment = datetime.fromtimestamp(time_s)
    same_day = moment.date() == datetime.fromtimestamp(beside_s).date()
    return moment.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")


def parse_time(text: str, now_s: float) -> float:
    """Unix seconds from what people type: Unix seconds, ISO 8601, HH:MM[:SS], or -90s, -5m, -2h before now.

    Raises:
        BadInput: for anything else.
    """
    text = text.strip()
    if match := re.fullmatch(r"-(\d+(?:\.\d+)?)([smhd]?)", text):
        unit_s = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        return now_s - float(match[1]) * unit_s
    try:
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", text):
            day = datetime.fromtimestamp(now_s).date().isoformat()
            return datetime.fromisoformat(f"{day}T{text.zfill(5) if text.count(':') == 1 else text}").timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise BadInput(f"time {text!r}: use Unix seconds, 2026-01-31T12:03:05, 12:03:05 or -5m") from None


def explain(store: Store, node: str, at_s: float) -> Explanation:
    """One sentence about one node at one time.

    Raises:
        BadInput: if the node is not of that site, or the service had not started yet.
    """
    frame = replay(store.ticks_until(at_s))
    if frame is None:
        span = store.tick_span()
        known = f"; its first tick is at {datetime.fromtimestamp(span[0])}" if span else " and never ran"
        raise BadInput(f"the service was not running at {datetime.fromtimestamp(at_s)}{known}")
    epoch = next(e for e in store.epochs() if e.epoch == frame.epoch)
    index = next((i for i, n in enumerate(epoch.site["nodes"]) if n["name"] == node), None)
    if index is None:
        raise BadInput(f"the site has no node {node!r}; nodes are {_some_names(epoch)}")
    gap_s = at_s - frame.time_s
    is_down = gap_s > epoch.site["lease_ttl_s"] and gap_s > 3 * epoch.site["tick_s"]
    return _explanation(epoch, frame, index, at_s, is_down)


def _some_names(epoch: EpochRow) -> str:
    names = [n["name"] for n in epoch.site["nodes"]]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _explanation(epoch: EpochRow, frame: Frame, i: int, at_s: float, is_down: bool) -> Explanation:
    site, row = epoch.site, frame.node[i]
    info = site["nodes"][i]
    binding = int(row["bound_domain"])
    if binding < 0:
        binding = tightest_domain(site, frame, info["domain"])
    feed = frame.domain[binding]
    sentence = node_sentence(site, frame, i, at_s, epoch.mode == "enforce")
    if is_down and epoch.mode == "enforce":
        stopped = clock_text(frame.time_s, at_s)
        free_s = clock_text(frame.time_s + site["lease_ttl_s"], at_s)
        sentence = (
            f"node {info['name']} was without a service at {clock_text(at_s, at_s)} (last tick {stopped}): "
            f"from {free_s} on it held the smaller of its cap, {watts(row['cap_w'])}, and its fallback, "
            f"{watts(row['fallback_w'])}, with which {_limit_phrase(site, frame, binding, at_s, 'fits')}"
        )
    return Explanation(
        node=info["name"],
        at_s=at_s,
        sentence=sentence,
        cap_w=int(row["cap_w"]),
        want_w=int(row["want_w"]),
        fallback_w=int(row["fallback_w"]),
        reason="SERVICE_DOWN" if is_down else Reason(int(row["reason"])).name,
        domain=site["domains"][binding]["name"],
        limit_w=int(feed["in_force_w"]),
        since_s=float(frame.time_s if is_down else row["since_s"]),
    )


def tightest_domain(site: dict[str, Any], frame: Frame, domain: int) -> int:
    """The domain above a node with the least room between possible draw and limit in force."""
    path = []
    while domain >= 0:
        path.append(domain)
        domain = site["domains"][domain]["parent"]
    room_w = frame.domain["in_force_w"][path] - frame.domain["possible_w"][path]
    return path[int(np.argmin(room_w))]


def _limit_phrase(site: dict[str, Any], frame: Frame, d: int, at_s: float, verb: str = "is at") -> str:
    feed = frame.domain[d]
    name = site["domains"][d]["name"]
    # what a cap must fit now: a cut counts from the moment it is known, and an announced one shortly before it starts
    must_fit_w, why = int(feed["in_force_w"]), ""
    if feed["limit_w"] < must_fit_w:
        must_fit_w, why = int(feed["limit_w"]), f" ({watts(feed['in_force_w'])} stay in force within the grace)"
    horizon_s = site["grace_s"] + 2.0 * site["tick_s"]
    if feed["next_limit_w"] < must_fit_w and feed["next_at_s"] - frame.time_s <= horizon_s:
        must_fit_w = int(feed["next_limit_w"])
        why = f" that starts at {clock_text(feed['next_at_s'], at_s)} ({watts(feed['in_force_w'])} until then)"
    text = f"{name} {verb} its limit of {watts(must_fit_w)}{why}"
    if why:
        return text
    if feed["until_s"] < NEVER_S:
        text += f" until {clock_text(feed['until_s'], at_s)}"
    return text


def _price_phrase(site: dict[str, Any], frame: Frame, d: int) -> str:
    """Where one more watt of a limit would have gone, and what it would have been worth; empty where not on record."""
    if d not in frame.prices:
        return ""
    price, i = frame.prices[d]
    return (
        f"; one more watt there would have gone to {site['nodes'][i]['name']}, worth {price:.2f} W of demand "
        "as the bids weigh it"
    )


def node_sentence(site: dict[str, Any], frame: Frame, i: int, at_s: float, commands: bool = True) -> str:
    """Cap, what was asked, the binding limit with its number, the reason and since when.

    Args:
        commands: False in shadow and advise mode, where nobody applied the plan.
    """
    row, info = frame.node[i], site["nodes"][i]
    reason = Reason(int(row["reason"]))
    domain = int(row["bound_domain"])
    nearest = domain if domain >= 0 else tightest_domain(site, frame, info["domain"])
    feed = frame.domain[nearest]
    room = f"the tightest limit above it is {site['domains'][nearest]['name']}'s {watts(feed['in_force_w'])}"
    head = f"node {info['name']} {'is' if commands else 'would be'} capped at {watts(row['cap_w'])}"
    asked = f"bid asked {watts(row['want_w'])}"
    since = f"since {clock_text(float(row['since_s']), at_s)}"
    edge = "largest" if row["cap_w"] >= info["cap_max_w"] else "smallest"
    why = {
        Reason.GRANTED: f"as its bid asked; nothing binds it, {room}",
        Reason.CAP_RANGE: f"({asked}) because that is the {edge} legal cap of {info['gpus']} × {info['sku']}; {room}",
        Reason.WAITING_FOR_RELEASE: f"({asked}) because the watts granted to it are still held by nodes that "
        f"have not acknowledged lower caps; {room}",
        Reason.RAMP: f"({asked}) because raises are ramped; {room}",
        Reason.STALE: f"({asked}) because its telemetry is stale and a stale node gets no raise; {room}",
        Reason.UNKNOWN: f"({asked}) because it is silent or has not acknowledged: it is budgeted at "
        f"{watts(row['possible_w'])}; {room}",
        Reason.PARKED: f"({asked}) because it is parked; {room}",
        Reason.MOVING: f"({asked}) because it is loading the {STAGE_WORDS[row['stage']]} stage and is held "
        f"at its floor; {room}",
        Reason.DRAINED: f"({asked}) because it is drained; {room}",
        Reason.BAD_BID: f"({asked}) because its bid was not a number and was read as neutral; {room}",
        Reason.EMERGENCY_FLOOR: f"({asked}) because its decode floor does not fit and the product's floor is "
        f"in force; {room}",
        Reason.ORDERED: f"({asked}) because an operator pinned or froze it there; {room}",
        Reason.DEADBAND: f"({asked}) because the raise was too small to be worth a write; {room}",
    }
    if reason == Reason.DOMAIN_LIMIT:
        text = f"{head} ({asked}) because {_limit_phrase(site, frame, nearest, at_s)} {since}"
        text += _price_phrase(site, frame, domain)
    else:
        text = f"{head} {why[reason]}, {since}"
    if row["is_drained"] and reason != Reason.DRAINED:
        text += ", and is being drained"
    elif row["is_cordoned"] and reason != Reason.DRAINED:
        text += ", and is cordoned"
    if row["is_silent"] and reason != Reason.UNKNOWN:
        text += ", and is silent"
    return text
