"""The token network as a stable-baselines3 policy.

SB3's own extractors flatten tokens and destroy equivariance (RL.md, export traps), so the network is put where SB3
expects a feature extractor's latents: its means pass through identities.
"""

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from ..fleet.schema import FLEET_BIDS, FLEET_FEATURES, POOL_BIDS, POOL_FEATURES
from ..policies.network import TokenNetwork


def unflatten(flat: torch.Tensor, pools: int) -> tuple[torch.Tensor, ...]:
    """Tokens from the core's flat observation without node tokens: pool, mask, fleet, base_pool, base_fleet."""
    sizes = [pools * len(POOL_FEATURES), pools, pools * len(POOL_BIDS), len(FLEET_FEATURES), len(FLEET_BIDS)]
    pool, mask, base_pool, fleet, base_fleet = torch.split(flat, sizes, -1)
    return (
        pool.reshape(-1, pools, len(POOL_FEATURES)),
        mask,
        fleet,
        base_pool.reshape(-1, pools, len(POOL_BIDS)),
        base_fleet,
    )


class _Latents(nn.Module):
    """Action means and values straight from the network, under the names SB3 calls."""

    def __init__(self, network: TokenNetwork, pools: int):
        super().__init__()
        self.network, self.pools = network, pools
        self.latent_dim_pi = pools * len(network.pool_channels) + int(network.owns_fleet)
        self.latent_dim_vf = 1

    def forward(self, flat):
        residual, fleet, value = self.network(*unflatten(flat, self.pools))
        return torch.cat([residual.flatten(1), fleet], -1), value

    def forward_actor(self, flat):
        return self.forward(flat)[0]

    def forward_critic(self, flat):
        return self.forward(flat)[1]


class TokenPolicy(ActorCriticPolicy):
    """Gaussian residuals whose standard deviation is one number per channel, shared by all tokens.

    Args:
        network: The residual to train; it is used as it is, normalisation included.
        pools: Pool tokens in the flat observation.
        channel_std: Initial standard deviation per owned pool channel, then of the fleet channel.
    """

    def __init__(self, *args, network: TokenNetwork, pools: int, channel_std: tuple[float, ...], **kwargs):
        # a module cannot be an attribute before Module.__init__, which SB3 calls late: keep it in a tuple
        self._given = (network, pools, channel_std)
        kwargs["ortho_init"] = False  # the heads must stay zero
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        network, pools, _ = self._given
        self.mlp_extractor = _Latents(network, pools)

    def _build(self, lr_schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()
        self.value_net = nn.Identity()
        del self.log_std
        network, pools, channel_std = self._given
        self.channel_log_std = nn.Parameter(torch.log(torch.tensor(channel_std)))
        channels = len(network.pool_channels)
        index = [i % channels for i in range(pools * channels)]
        self.register_buffer("channel", torch.tensor(index + [channels] * int(network.owns_fleet)))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(latent_pi, self.channel_log_std[self.channel])
