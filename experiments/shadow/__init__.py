"""A shadow log judged: what was done, what would have been done, and what that would have changed.

`log` reads it, `compare` sets both sides side by side, `stretch` and `replay` play them in the plant, `check` says how
far the plant is to be believed, `changes` what differs, and `report`, `words`, `charts` and `page` tell it.
"""
