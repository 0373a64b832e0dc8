"""The live part of the demo: service, agents and emulated GPUs close the loop and survive a fault, cuts and a kill."""
