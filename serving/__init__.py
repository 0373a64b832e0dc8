"""The decision service: `Engine` ticks, `create_app` speaks HTTP, `run_service` runs both.

Names are imported from their modules: reading a shadow log must not load a web framework.
"""
