"""One search for every run: what lands is judged on the same examples as what was tried.

`FLYBALL_HYPOTHESIS=random` searches anew; the soak (`flyball bench soak`) does so at length.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("FLYBALL_HYPOTHESIS", "same"))
