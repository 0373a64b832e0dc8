"""The learned residual: one small network, weights shared across pool tokens, any fleet size. Needs torch.

Each token is encoded with the fleet's features and its own base bids; it then sees its sibling stage's encoding and
the masked mean over all tokens. Heads start at zero: at step 0 the policy is its baseline (RL.md lesson 3).
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES
from ..fleet.tables import STAGES


class TokenNetwork(nn.Module):
    """Residual bids of the owned pool channels and the fleet channel, and a value.

    Args:
        pool_channels: Indices of the pool bids that the network adds to.
        owns_fleet: Whether it adds to the fleet bid.
        width: Hidden width; SiLU at 32 trains six times faster than tanh at 64 (TOOLCHAIN.md).
    """

    def __init__(self, pool_channels: Sequence[int] = (0, 1), owns_fleet: bool = True, width: int = 32):
        super().__init__()
        self.pool_channels, self.owns_fleet, self.width = tuple(pool_channels), owns_fleet, width
        token = len(POOL_FEATURES) + len(POOL_BIDS) + len(FLEET_FEATURES) + len(FLEET_BIDS)
        self.register_buffer("mean", torch.zeros(token))
        self.register_buffer("scale", torch.ones(token))
        self.encode = nn.Sequential(nn.Linear(token, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mix = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU())
        self.pool_head = nn.Linear(width, len(self.pool_channels))
        self.fleet_head = nn.Linear(width, 1)
        self.value_mix = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.value_head = nn.Linear(width, 1)
        for head in (self.pool_head, self.fleet_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def tokens(self, pool, fleet, base_pool, base_fleet):
        """Raw token inputs, shape (B, P, features)."""
        shared = torch.cat([fleet, base_fleet], -1)
        shared = shared.unsqueeze(1).expand(-1, pool.shape[1], -1)
        return torch.cat([pool, base_pool, shared], -1)

    def trunk(self, pool, pool_mask, fleet, base_pool, base_fleet):
        """Token encodings after mixing (B, P, W) and the masked mean of the encodings (B, W)."""
        x = (self.tokens(pool, fleet, base_pool, base_fleet) - self.mean) / self.scale
        x = torch.clamp(x, -8.0, 8.0)
        mask = pool_mask.unsqueeze(-1)
        h = self.encode(x) * mask
        pooled = h.sum(1) / torch.clamp(mask.sum(1), min=1.0)
        pairs = h.reshape(h.shape[0], -1, STAGES, h.shape[2])
        sibling = torch.flip(pairs, dims=[2]).reshape(h.shape)
        mixed = self.mix(torch.cat([h, sibling, pooled.unsqueeze(1).expand(-1, h.shape[1], -1)], -1))
        return mixed * mask, pooled

    def forward(self, pool, pool_mask, fleet, base_pool, base_fleet):
        """Residuals (B, P, owned), (B, 1 or 0) and value (B, 1)."""
        mixed, pooled = self.trunk(pool, pool_mask, fleet, base_pool, base_fleet)
        residual = self.pool_head(mixed) * pool_mask.unsqueeze(-1)
        value = self.value_head(self.value_mix(pooled))
        return residual, self.fleet_head(pooled)[:, : 1 if self.owns_fleet else 0], value


class BidGraph(nn.Module):
    """What is exported: features and base bids in, final bids out, normalisation inside."""

    def __init__(self, network: TokenNetwork):
        super().__init__()
        self.network = network
        spread = torch.zeros(len(network.pool_channels), len(POOL_BIDS))
        for i, c in enumerate(network.pool_channels):
            spread[i, c] = 1.0
        self.register_buffer("spread", spread)

    def forward(self, pool, pool_mask, fleet, base_pool, base_fleet):
        residual, fleet_residual, _ = self.network(pool, pool_mask, fleet, base_pool, base_fleet)
        bid_pool = torch.clamp(base_pool + residual @ self.spread, -1.0, 1.0)
        bid_fleet = base_fleet + fleet_residual if self.network.owns_fleet else base_fleet
        return bid_pool, torch.clamp(bid_fleet, -1.0, 1.0)
