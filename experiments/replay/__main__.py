"""`python -m flyball.experiments.replay [OUT]`: every comparison, written to a folder."""

import sys
from pathlib import Path

from .check import write_report
from .compare import compare

if __name__ == "__main__":
    found = compare(say=lambda line: print(line, file=sys.stderr, flush=True))
    print(write_report(found, Path(sys.argv[1] if len(sys.argv) > 1 else "out/replay")))
