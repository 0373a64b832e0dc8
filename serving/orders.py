"""Standing orders of operators: one per node, durable, with an author, a reason and, where given, an end."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..fleet.arbiter import ArbiterState
from ..fleet.arbiter.overrides import NodeOrder, refusal
from ..fleet.bids import Bids
from ..fleet.errors import BadInput
from ..fleet.plan import Order
from ..fleet.schema import NODE_BIDS
from ..fleet.tables import NEVER_S
from ..fleet.topology import Fleet
from .explain import clock_text, watts
from .store import Override, Store

log = logging.getLogger(__name__)

DRAIN = [f.name for f in NODE_BIDS].index("drain")

KINDS = ("cordon", "drain", "pin", "freeze", "exclude")

EXPIRED_BY = "its expiry"


class OrderBook:
    """Orders that stand; writes go to the store first.

    Args:
        fleet: The site.
        store: Where orders live.
        say: Takes a kind and a line for the audit.
    """

    def __init__(self, fleet: Fleet, store: Store, say: Callable[[str, str], None]) -> None:
        self._fleet, self._store, self._say = fleet, store, say
        self._lock = threading.Lock()
        self._orders: dict[str, Override] = store.overrides()

    @property
    def standing(self) -> dict[str, Override]:
        """Standing orders by node."""
        return dict(self._orders)

    @property
    def out_of_use(self) -> tuple[str, ...]:
        """Per node "cordon" or "drain" where that is ordered, else ""."""
        orders = self._orders
        kinds = (orders[n.name].kind if n.name in orders else "" for n in self._fleet.nodes)
        return tuple(kind if kind in ("cordon", "drain") else "" for kind in kinds)

    def is_excluded(self, node: str) -> bool:
        order = self._orders.get(node)
        return order is not None and order.kind == "exclude"

    def node_orders(self) -> dict[int, NodeOrder]:
        """What the arbiter is to obey, by node index."""
        out = {}
        for name, order in self._orders.items():
            i = self._fleet.node_index.get(name)  # the site file may have lost the node since
            if i is not None and order.kind != "cordon":
                out[i] = NodeOrder(Order[order.kind.upper()], order.cap_w)
        return out

    def place(self, order: Override, state: ArbiterState | None) -> None:
        """Durably take an order; it replaces the node's standing one.

        Args:
            order: The order; a freeze takes the cap that the state commands.
            state: The arbiter's, to see whether the limits carry it.

        Raises:
            BadInput: if it would break a limit, naming the domain, or is already over.
        """
        if order.until_s <= order.created_s:
            raise BadInput("until_s: must lie after now")
        i = self._fleet.node_index[order.node]
        with self._lock:
            if order.kind == "freeze" and state is not None:
                order = replace(order, cap_w=int(state.node["cap_cmd_w"][0, i]))
            if state is not None and order.kind in ("pin", "freeze", "exclude"):
                wanted = NodeOrder(Order[order.kind.upper()], order.cap_w)
                why = refusal(self._fleet, state, self.node_orders(), i, wanted)
                if why:
                    raise BadInput(f"{order.kind} of {order.node}: {why}")
            self._store.save_override(order)
            self._orders = {**self._orders, order.node: order}
        at = f" at {watts(order.cap_w)}" if order.kind in ("pin", "freeze") else ""
        until = "" if order.until_s >= NEVER_S else f" until {clock_text(order.until_s, order.created_s)}"
        why = f" ({order.reason})" if order.reason else ""
        self._say("health", f"{order.node}: {order.kind}{at} ordered by {order.author}{until}{why}")

    def release(self, node: str, author: str, now_s: float) -> None:
        """Durably end a node's order."""
        with self._lock:
            self._store.release_override(node, author, now_s)
            self._orders = {n: o for n, o in self._orders.items() if n != node}
        self._say("health", f"{node}: released by {author}")

    def expire(self, now_s: float) -> None:
        """Release what is over; a store that fails is asked again at the next start, which releases it then."""
        for name, order in list(self._orders.items()):
            if order.until_s > now_s:
                continue
            try:
                self.release(name, EXPIRED_BY, now_s)
            except Exception:
                log.exception("the store failed to release the order about %s; it no longer applies", name)
                self._orders = {n: o for n, o in self._orders.items() if n != name}


def with_drains(bids: Bids, ordered: tuple[str, ...]) -> Bids:
    """The bids with a drain bid on every node that was ordered to drain."""
    if "drain" not in ordered:
        return bids
    node = np.array(bids.node)
    node[:, [i for i, kind in enumerate(ordered) if kind == "drain"], DRAIN] = 1.0
    return replace(bids, node=node)
