"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return `1 task`, `480,000 transitions`, or `2 policies` with plural "policies"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def sentence(text: str) -> str:
    """Return the text with a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
