"""The README's examples, by the heading that they stand under."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(heading: str, language: str = "python") -> list[str]:
    """The fenced blocks of a language under a heading, without those of the next heading."""
    [section] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", _text(), re.M | re.S)
    found = re.findall(rf"^```{language}\n(.*?)^```", section, re.M | re.S)
    for block in found:
        assert len(block.splitlines()) < 15, heading
    return found


def _text() -> str:
    return README.read_text("utf-8")
