"""GPU products as the arbiter sees them: legal cap ranges and floors.

Cap ranges: FIELD.md section 5 (product list). `decode_floor_w`: the decode rate collapses below about 43 % of
TDP (RL.md, physics traps: "about 300 W on H100"; MODEL.md section 2: the voltage floor is at 40-45 % of TDP).
The GB300's 1400 W are aiconfigurator's (`gb300.yaml`); nameplates of B300 and GB300 nodes are scaled from the public
ranges of their vendors (DGX B300 about 14-15.5 kW, NVL72 132-142 kW): check yours.
`parked_max_w`: idle draw of MODEL.md section 4 (P0), rounded up by 15 %: a bound, not a mean.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuSku:
    """One GPU product; all watts per GPU."""

    name: str
    cap_min_w: int
    cap_max_w: int
    decode_floor_w: int
    parked_max_w: int
    nameplate_node_w: int
    node_gpus: int


SKUS = {
    s.name: s
    for s in (
        GpuSku("A100-SXM", 100, 400, 170, 72, 6500, 8),
        GpuSku("H100-SXM", 200, 700, 300, 83, 10200, 8),
        GpuSku("H200-SXM", 200, 700, 300, 87, 10200, 8),
        GpuSku("B200-SXM", 200, 1000, 430, 161, 14300, 8),
        GpuSku("B300-SXM", 200, 1100, 475, 161, 15400, 8),
        # 132 kW per NVL72 rack: 18 nodes of 4 GPUs
        GpuSku("GB200-NVL72", 200, 1200, 515, 161, 7333, 4),
        # lowest cap as for the rest of the family; 142 kW per rack
        GpuSku("GB300-NVL72", 200, 1400, 600, 161, 7889, 4),
    )
}
