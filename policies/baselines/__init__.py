"""Baselines: each a small file of bids with its source, run through the same arbiter as every other policy."""
