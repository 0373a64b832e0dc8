"""Leaderboard protocol v1: what a submission is, how it is checked, and how it is scored.

docs/leaderboard.md says it in words; `card.py` reads a submission, `check.py` runs it apart from this process,
`score.py` turns windows into scores.
"""

PROTOCOL = "flyball-leaderboard-1"
