"""Learned residuals: weights shared across pool tokens, any fleet size. Needs torch.

Each token is read with the fleet's features and its own base bids; it also sees its sibling stage and a masked mean
over all tokens. Outputs start at zero: at step 0 the policy is its baseline (RL.md lesson 3).
"""

from collections.abc import Sequence

import torch
from torch import nn

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES
from ..fleet.tables import STAGES


class Residual(nn.Module):
    """What both networks share: token inputs, and the statistics that normalise them inside the graph.

    Args:
        pool_channels: Indices of the pool bids that the network adds to.
        owns_fleet: Whether it adds to the fleet bid.
    """

    def __init__(self, pool_channels: Sequence[int] = (0, 1), owns_fleet: bool = True):
        super().__init__()
        self.pool_channels, self.owns_fleet = tuple(pool_channels), owns_fleet
        self.features = len(POOL_FEATURES) + len(POOL_BIDS) + len(FLEET_FEATURES) + len(FLEET_BIDS)
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("scale", torch.ones(self.features))

    def set_statistics(self, tokens: torch.Tensor) -> None:
        """Take mean and spread from tokens of shape (samples, features)."""
        self.mean.copy_(tokens.mean(0))
        # a feature that hardly varies here must not be blown up elsewhere
        self.scale.copy_(torch.clamp(tokens.std(0), min=0.05))

    def tokens(self, pool, fleet, base_pool, base_fleet):
        """Raw token inputs, shape (B, P, features)."""
        shared = torch.cat([fleet, base_fleet], -1)
        shared = shared.unsqueeze(1).expand(-1, pool.shape[1], -1)
        return torch.cat([pool, base_pool, shared], -1)

    def inputs(self, pool, pool_mask, fleet, base_pool, base_fleet):
        """Normalised tokens, zero where masked, and the mask with a feature axis."""
        mask = pool_mask.unsqueeze(-1)
        x = (self.tokens(pool, fleet, base_pool, base_fleet) - self.mean) / self.scale
        return torch.clamp(x, -8.0, 8.0) * mask, mask

    @staticmethod
    def sibling(x):
        """The other stage's row of the same service."""
        pairs = x.reshape(x.shape[0], -1, STAGES, x.shape[2])
        return torch.flip(pairs, dims=[2]).reshape(x.shape)

    @staticmethod
    def pooled(x, mask):
        """Mean over the tokens that are there."""
        return x.sum(1) / torch.clamp(mask.sum(1), min=1.0)


class LinearResidual(Residual):
    """A linear map of each token, its sibling and a constant: what evolution strategies search."""

    def __init__(self, pool_channels: Sequence[int] = (0, 1), owns_fleet: bool = True):
        super().__init__(pool_channels, owns_fleet)
        self.pool_weights = nn.Parameter(torch.zeros(len(self.pool_channels), 2 * self.features + 1))
        self.fleet_weights = nn.Parameter(torch.zeros(1, self.features + 1))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.pool_weights.numel() + self.fleet_weights.numel()

    def split(self, points):
        """Flat parameters (K, size) as pool weights (K, channels, 2 F + 1) and fleet weights (K, 1, F + 1)."""
        cut = self.pool_weights.numel()
        pool = points[:, :cut].reshape(-1, *self.pool_weights.shape)
        return pool, points[:, cut:].reshape(-1, *self.fleet_weights.shape)

    def set_parameters(self, point) -> None:
        """Take one flat parameter vector."""
        pool, fleet = self.split(torch.as_tensor(point, dtype=torch.float32)[None])
        with torch.no_grad():
            self.pool_weights.copy_(pool[0])
            self.fleet_weights.copy_(fleet[0])

    def forward(self, pool, pool_mask, fleet, base_pool, base_fleet):
        """Residuals (B, P, owned) and (B, 1 or 0), each at most a whole bid."""
        x, mask = self.inputs(pool, pool_mask, fleet, base_pool, base_fleet)
        both = torch.cat([x, self.sibling(x), torch.ones_like(mask)], -1)
        residual = torch.clamp(both @ self.pool_weights.T, -1.0, 1.0) * mask
        pooled = self.pooled(x, mask)
        total = torch.cat([pooled, torch.ones_like(pooled[:, :1])], -1) @ self.fleet_weights.T
        return residual, torch.clamp(total, -1.0, 1.0)[:, : 1 if self.owns_fleet else 0]


class TokenNetwork(Residual):
    """A small equivariant network of residuals, with a value for actor-critic learners.

    Args:
        pool_channels: Indices of the pool bids that the network adds to.
        owns_fleet: Whether it adds to the fleet bid.
        width: Hidden width; SiLU at 32 trains six times faster than tanh at 64 (TOOLCHAIN.md).
    """

    def __init__(self, pool_channels: Sequence[int] = (0, 1), owns_fleet: bool = True, width: int = 32):
        super().__init__(pool_channels, owns_fleet)
        self.encode = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mix = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU())
        self.pool_head = nn.Linear(width, len(self.pool_channels))
        self.fleet_head = nn.Linear(width, 1)
        self.value_mix = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.value_head = nn.Linear(width, 1)
        for head in (self.pool_head, self.fleet_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, pool, pool_mask, fleet, base_pool, base_fleet):
        """Residuals (B, P, owned), (B, 1 or 0) and value (B, 1)."""
        x, mask = self.inputs(pool, pool_mask, fleet, base_pool, base_fleet)
        h = self.encode(x) * mask
        pooled = self.pooled(h, mask)
        mixed = self.mix(torch.cat([h, self.sibling(h), pooled.unsqueeze(1).expand(-1, h.shape[1], -1)], -1))
        residual = self.pool_head(mixed) * mask
        value = self.value_head(self.value_mix(pooled))
        return residual, self.fleet_head(pooled)[:, : 1 if self.owns_fleet else 0], value


KINDS = {"LinearResidual": LinearResidual, "TokenNetwork": TokenNetwork}
"""Networks by the name that saved weights carry."""


class BidGraph(nn.Module):
    """What is exported: features and base bids in, final bids out, normalisation inside."""

    def __init__(self, network: Residual):
        super().__init__()
        self.network = network
        spread = torch.zeros(len(network.pool_channels), len(POOL_BIDS))
        for i, c in enumerate(network.pool_channels):
            spread[i, c] = 1.0
        self.register_buffer("spread", spread)

    def forward(self, pool, pool_mask, fleet, base_pool, base_fleet):
        residual, fleet_residual, *_ = self.network(pool, pool_mask, fleet, base_pool, base_fleet)
        bid_pool = torch.clamp(base_pool + residual @ self.spread, -1.0, 1.0)
        bid_fleet = base_fleet + fleet_residual if self.network.owns_fleet else base_fleet
        return bid_pool, torch.clamp(bid_fleet, -1.0, 1.0)
