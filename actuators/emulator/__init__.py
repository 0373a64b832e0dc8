"""A `libnvidia-ml.so.1` without GPUs: the real pynvml runs on it, a simulator or a test plays the GPUs."""
