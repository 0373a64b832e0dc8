"""Fitting the plant's parameters to measurements: rows, power, decode, prefill."""
