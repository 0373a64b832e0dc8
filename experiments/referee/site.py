"""A fleet as the referee sees it: the site file's numbers, without any of the arbiter's code."""

from fractions import Fraction

from ...fleet.topology import Fleet
from .events import Site, SiteDomain, SiteNode, SiteService, SiteTiming


def to_ms(seconds: float) -> int:
    """Whole milliseconds, rounded to the nearest."""
    return round(seconds * 1000)


def share(value: float) -> tuple[int, int]:
    """A decimal share as a fraction: 0.3 is 3/10, not the float next to it."""
    exact = Fraction(str(value))
    return exact.numerator, exact.denominator


def site_of(fleet: Fleet) -> Site:
    """The referee's site of a fleet."""
    t = fleet.timing
    return Site(
        tuple(
            SiteNode(
                *(
                    int(row[name])
                    for name in (
                        "domain", "failure_domain", "service", "stage", "cap_min_w", "cap_max_w", "parked_max_w",
                        "non_gpu_max_w",
                    )
                )
            )
            for row in fleet.node_static
        ),
        tuple(
            SiteDomain(
                int(row["parent"]), int(row["peak_w"]), int(row["mean_w"]), to_ms(float(row["window_s"])),
                int(row["unmanaged_w"]), int(row["unknown_reserve"]),
            )
            for row in fleet.domain_static
        ),
        tuple(
            SiteService(int(row["min_prefill_nodes"]), int(row["min_decode_nodes"])) for row in fleet.service_static
        ),
        SiteTiming(
            to_ms(t.tick_s), to_ms(t.actuation_p99_s), to_ms(t.firmware_lag_s), to_ms(t.stale_s), to_ms(t.lease_ttl_s),
            to_ms(t.dwell_s), t.moves_per_min,
        ),
        share(fleet.deepest_cut_frac),
        share(fleet.max_drain_frac),
    )  # fmt: skip
