"""Errors of the nouns; each message names the value at fault and says the fix.

FlyballError
├── BadInput          the user's file, flag or message is wrong: exit 2, HTTP 4xx
│   ├── SiteError     a site file that does not describe a fleet
│   ├── ScenarioError a scenario file or an override of one
│   ├── LoadError     a trace or a rate table
│   └── SchemaMismatch  a policy, a snapshot or a message made for another schema
└── InfeasibleBudget  limits that cannot be met even with every node parked
"""


class FlyballError(Exception):
    """Base of every error that Flyball raises on purpose."""


class BadInput(FlyballError):
    """Something a user gave is wrong; the message is one line and says what to change."""


class SiteError(BadInput):
    """A site file that does not describe a fleet."""


class ScenarioError(BadInput):
    """A scenario that cannot be run as written."""


class LoadError(BadInput):
    """A trace or rate table that cannot be read."""


class SchemaMismatch(BadInput):
    """A policy or message made for another schema, baseline or control interval."""


class InfeasibleBudget(FlyballError):
    """A limit below what the fleet draws with every node parked."""
