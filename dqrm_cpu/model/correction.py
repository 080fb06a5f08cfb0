"""What logits are corrected by where training saw a share of the rows without a click."""

import math


def keep_rate_correction(trained: float, scored: float = 1.0) -> float:
    """Returns what to add to a logit learned from rows of which a share `trained` of those without a click was kept.

    It is then right for rows of which a share `scored` was kept: a share R makes the odds 1 / R times as high.
    """
    return math.log(trained / scored) if trained > 0 else 0.0  # of clicks alone nothing can be learned or corrected
