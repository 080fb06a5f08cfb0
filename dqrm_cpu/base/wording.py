"""Numbers in sentences."""

_MOST_PERCENT = 100  # more, beyond the whole, is read more easily as times


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun: 1 core, 2,000 cores."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def longer(ratio: float) -> str:
    """Writes how long something takes beside another: 33% longer than, 97 times as long as."""
    more = ratio - 1
    return f"{more:.0%} longer than" if more * 100 < _MOST_PERCENT else f"{ratio:.3g} times as long as"
