"""A whole fleet on this machine: real agents on emulated GPUs, with the plant in real time behind them."""
