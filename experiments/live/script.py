"""What happens in a live run, and when."""

from dataclasses import dataclass

from ...envs.scenario import BudgetEvent, Scenario
from ..site_scenario import site_scenario


@dataclass(frozen=True)
class LiveScript:
    """What happens in a live run, and when, in seconds from the start of the plant.

    Attributes:
        seconds: Length.
        xid_at_s: A GPU falls off the bus.
        first_cut_s: The first cut starts.
        notice_s: How long before its start it is announced.
        second_cut_s: The second cut starts, without notice; the service is killed during it.
        restart_s: The service starts again.
        lift_s: The nominal limit returns.
        first_frac: Limit after the first cut, as a share of the nominal one.
        second_frac: Limit after the second.
        xid: What is injected.
        settle_s: Between the first leases and the start, so that the run does not begin at the lowest caps.
        site: Site file or name.
        scenario: Whose load and plant are taken.
        kill_after_s: After the second cut; None for the moment at which the caps fit it.
    """

    seconds: float = 150.0
    xid_at_s: float = 12.0
    first_cut_s: float = 82.0
    notice_s: float = 60.0
    second_cut_s: float = 100.0
    restart_s: float = 114.0
    lift_s: float = 132.0
    first_frac: float = 0.85
    second_frac: float = 0.70
    xid: int = 79
    settle_s: float = 6.0
    site: str = "demo-16"
    scenario: str = "demo"
    kill_after_s: float | None = None

    def make_scenario(self) -> Scenario:
        """The scenario that the plant plays."""
        events = (
            BudgetEvent(self.first_frac, self.first_cut_s, "", self.notice_s, self.lift_s - self.first_cut_s),
            BudgetEvent(self.second_frac, self.second_cut_s, "", 0.0, self.lift_s - self.second_cut_s),
        )
        return site_scenario(
            self.site,
            self.scenario,
            name="live",
            summary="A lost GPU, a cut with notice, one without, a killed service and its return.",
            seconds=self.seconds,
            warmup_s=0.0,
            events=events,
        )


FULL = LiveScript()

QUICK = LiveScript(
    seconds=60.0,
    xid_at_s=4.0,
    first_cut_s=22.0,
    notice_s=10.0,
    second_cut_s=28.0,
    restart_s=38.0,
    lift_s=49.0,
    settle_s=4.0,
)
