"""How long messages take between nodes: latency plus bytes over bandwidth (the alpha-beta model).

Every node has one link, both ways at once, and the network between them is never in the way. A gather brings the
messages of all others through that link, in as many rounds as doubling takes; an all-to-all sends one part to each.
"""

import math
from typing import NamedTuple


class Network(NamedTuple):
    """The link of one node."""

    latency_s: float  # from one program to another
    bytes_per_s: float  # each way

    def gather_s(self, nodes: int, message_bytes: float) -> float:
        """Returns the seconds until every node has the message of each."""
        return self.latency_s * math.ceil(math.log2(nodes)) + (nodes - 1) * message_bytes / self.bytes_per_s

    def all_to_all_s(self, nodes: int, part_bytes: float) -> float:
        """Returns the seconds until every node has sent a part to each other node."""
        return self.latency_s * (nodes - 1) + (nodes - 1) * part_bytes / self.bytes_per_s

    def reduce_at_destination_s(self, nodes: int, total_bytes: float) -> float:
        """Returns the seconds of an all-reduce: a part of the whole to each node, and its sum to all."""
        part_bytes = total_bytes / nodes
        return self.all_to_all_s(nodes, part_bytes) + self.gather_s(nodes, part_bytes)


def fitted(small: tuple[float, float], large: tuple[float, float], *, ranks: int = 2) -> Network:
    """Fits a network to two measured gathers of so many ranks, each (message bytes, seconds)."""
    bytes_per_s = (ranks - 1) * (large[0] - small[0]) / max(large[1] - small[1], 1e-9)
    rounds = math.ceil(math.log2(ranks))
    return Network(max(small[1] - (ranks - 1) * small[0] / bytes_per_s, 0.0) / rounds, bytes_per_s)
