"""An independent judge of the arbiter's promises, and what drives it: random sites, hostile worlds, optima.

`events`, `nodes`, `limits` and `referee` read logs in exact arithmetic and import nothing of the arbiter;
`world` and `adversary` make logs by running the arbiter among emulated nodes. docs/specification.md has the
invariants in words and formulas.
"""
