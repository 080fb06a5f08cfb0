"""How many bytes an exchange handed over for other ranks, by what they held; counted from the messages sent."""

from typing import NamedTuple


class SentBytes(NamedTuple):
    """The bytes that one rank sent, by what they held; the parts add up to what its transport counts."""

    indices: int = 0
    values: int = 0
    scales: int = 0  # with the counts and the padding of messages
    mlp: int = 0  # gradients of both MLPs, their scales, the loss

    def plus(self, other: "SentBytes") -> "SentBytes":
        """Returns the sum, part by part."""
        return SentBytes(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, earlier: "SentBytes") -> "SentBytes":
        """Returns what was sent since `earlier`."""
        return SentBytes(*(a - b for a, b in zip(self, earlier, strict=True)))


NOTHING_SENT = SentBytes()
