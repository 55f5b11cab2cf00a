"""The examples of the README, by the section that they are in."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def section(title):
    """The one Python example of a section, of fewer than 15 lines."""
    text = README.read_text("utf-8")
    _, found = text.split(f"\n## {title}\n")
    blocks = re.findall(r"^```python\n(.*?)^```", found.split("\n## ")[0], re.M | re.S)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) < 15
    return blocks[0]
