"""Prometheus figures, read from the last view when they are scraped: the tick pays nothing for them."""

from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..fleet.tables import NEVER_S, UNKNOWN_W
from .engine import Engine
from .view import View


class EngineCollector(Collector):
    """Turns an engine's view and counters into metric families."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        # an empty description keeps the registry from scraping at registration
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        view = self._engine.view
        if view is not None:
            yield from self._domains(view)
            yield from self._nodes(view)
            yield from self._service(view)

    def _totals(self) -> Iterator[Metric]:
        c, engine = self._engine.counters, self._engine
        for name, value, text in (
            ("flyball_ticks", c.ticks, "Ticks since start"),
            ("flyball_late_ticks", c.late_ticks, "Ticks that began late"),
            ("flyball_failed_ticks", c.failed_ticks, "Ticks that raised"),
            ("flyball_failed_commits", c.failed_commits, "Group commits that failed"),
            ("flyball_telemetry", c.telemetry, "Node telemetry messages taken"),
            (
                "flyball_telemetry_dropped",
                engine.telemetry.dropped,
                "Duplicated or reordered messages dropped",
            ),
            ("flyball_leases_issued", c.leases_issued, "Leases handed out, renewals included"),
            ("flyball_interventions", c.interventions, "Bids not granted, summed over ticks"),
            ("flyball_cap_changes", c.cap_changes, "Commanded cap changes"),
            (
                "flyball_policy_failures",
                engine.assured.failures,
                "Decisions in which the policy was replaced",
            ),
            ("flyball_budget_violation_ws", c.violation_ws, "Watt-seconds above the limit in force"),
            (
                "flyball_overshoot_ws",
                c.overshoot_ws,
                "Watt-seconds above the demanded limit within the grace",
            ),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("flyball_tick_seconds", "Duration of the last tick", value=c.last_tick_s)
        yield GaugeMetricFamily("flyball_commit_seconds", "Duration of the last commit", value=c.last_commit_s)
        yield GaugeMetricFamily("flyball_epoch", "Lease epoch", value=engine.epoch)

    def _domains(self, view: View) -> Iterator[Metric]:
        names = [d.name for d in self._engine.fleet.domains]
        next_w = [limit.next_limit_w if limit.next_in_s < NEVER_S else np.nan for limit in view.limits]
        rows = view.plan.domain[0]
        for name, values, text in (
            ("flyball_domain_power_watts", view.domain_measured_w, "Draw: metered, or estimated upwards"),
            ("flyball_domain_possible_watts", view.domain_possible_w, "Largest draw that caps allow"),
            ("flyball_domain_limit_watts", [limit.limit_w for limit in view.limits], "Limit demanded"),
            ("flyball_domain_in_force_watts", view.in_force_w, "Limit in force"),
            ("flyball_domain_next_limit_watts", next_w, "Announced next limit"),
            ("flyball_domain_breach", rows["breach"], "By its meter: 0 none, 1 active, 2 escalated, 3 resolved"),
            ("flyball_domain_breach_critical", rows["is_critical"], "1 when the breach passed 120 % of the limit"),
            ("flyball_domain_excursion_watts", rows["excursion_w"], "Taken back because the meter read too much"),
            ("flyball_domain_excess_watts", rows["excess_w"], "Charged above the declared bounds, by meters"),
            ("flyball_domain_exhausted", rows["is_exhausted"], "1 when nothing is left to take back"),
            ("flyball_domain_watt_price", rows["price"], "Weighed demand that one more watt would serve"),
            ("flyball_domain_metered", view.is_metered, "1 where a fresh meter gives the draw"),
        ):
            yield _gauge(name, text, "domain", names, values)

    def _nodes(self, view: View) -> Iterator[Metric]:
        names = [n.name for n in self._engine.fleet.nodes]
        heard, plan = view.heard.node[0], view.plan.node[0]
        cap_w = np.where(heard["cap_w"] == UNKNOWN_W, np.nan, heard["cap_w"])
        for name, values, text in (
            ("flyball_node_power_watts", heard["power_w"], "GPU draw of the node"),
            ("flyball_node_cap_watts", cap_w, "Cap read back"),
            ("flyball_node_planned_cap_watts", plan["cap_w"], "Cap of the plan"),
            ("flyball_node_fallback_watts", plan["fallback_w"], "Fallback of the plan"),
            ("flyball_node_silent", heard["is_silent"], "1 when not heard for a lease's ttl"),
            ("flyball_node_cordoned", view.cordoned, "1 when cordoned"),
            ("flyball_node_drained", view.drained, "1 when drained"),
        ):
            yield _gauge(name, text, "node", names, values)

    def _service(self, view: View) -> Iterator[Metric]:
        info = GaugeMetricFamily("flyball_policy_info", "Policy in use", labels=["policy", "mode", "trusted"])
        info.add_metric([view.source, str(self._engine.mode), str(view.is_trusted).lower()], 1)
        yield info
        yield GaugeMetricFamily(
            "flyball_shed_level", "Shedding ladder (0 none)", value=int(view.plan.fleet["shed_level"][0])
        )


def _gauge(name: str, text: str, label: str, names: list[str], values) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in zip(names, values, strict=True):
        family.add_metric([key], float(value))
    return family


def render_metrics(registry: CollectorRegistry) -> bytes:
    """The exposition text."""
    return generate_latest(registry)


def make_registry(engine: Engine) -> CollectorRegistry:
    """A registry of its own per engine, so that two engines in one process do not collide."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(engine))
    return registry
