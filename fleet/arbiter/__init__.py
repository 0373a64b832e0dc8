"""The arbiter: bids in, a plan out that satisfies every limit, whatever the bids.

`settle(fleet, state, snapshot, bids) -> (state', plan)` is pure. Its kernels are compiled with numba, which is
imported when a name that needs it is first used: agents import the nouns and never load it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from .state import ArbiterState, initial_state

__all__ = ["ArbiterState", "initial_state", "make_scratch", "settle", "settle_kernel"]


def __getattr__(name: str) -> Any:
    if name not in ("make_scratch", "settle_kernel"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".settle", __name__), name)


class _Package(ModuleType):
    """Keeps `settle` the function: importing the submodule of that name would bind the module over it."""

    @property
    def settle(self) -> Any:
        return import_module(".settle", __name__).settle

    @settle.setter
    def settle(self, submodule: ModuleType) -> None:
        """What the import system does after loading the submodule; the function stays."""


sys.modules[__name__].__class__ = _Package
