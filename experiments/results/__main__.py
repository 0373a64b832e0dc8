"""`python -m flyball.experiments.results ROWS.json PAGE.md`: write the page again from kept rows."""

import json
import sys
from pathlib import Path

from .page import write_page

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m flyball.experiments.results ROWS.json PAGE.md")
    print(write_page(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
