"""One scale for all ranks, from what each says is the largest magnitude of its own gradient (paper B.1)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dqrm_cpu.comm.exchange.settings import ExchangeSettings
from dqrm_cpu.errors import TrainingError, unanimous

Floats = npt.NDArray[np.float32]

INTEGER_LIMITS = {"int8": 127, "int16": 32767}
"""The largest code of a width; -limit is the smallest, so that both signs saturate alike."""

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ScaleRule:
    """How the ranks' largest magnitudes become one scale; `limit` is the largest code."""

    limit: int
    mean: bool = False
    first_only: bool = False

    @classmethod
    def of(cls, settings: ExchangeSettings, width: str) -> "ScaleRule":
        """Returns the rule that the settings ask for, for integers of a width."""
        return cls(INTEGER_LIMITS[width], settings.scale_reduce == "mean", settings.simulated_scale == "first")

    def scales(self, absmax: Floats) -> Floats:
        """Computes the scale of each group f32[G], above 0, from finite absmax f32[ranks, G]."""
        if self.first_only:
            # A group that the first has nothing of would lose what the others have.
            combined = np.where(absmax[0] > 0, absmax[0], absmax.max(axis=0))
        elif self.mean:
            # In FP64, which neither overflows nor rounds differently from one machine to another.
            combined = (absmax.astype(np.float64).sum(axis=0) / absmax.shape[0]).astype(np.float32)
        else:
            combined = absmax.max(axis=0)
        scales = combined / np.float32(self.limit)
        # A group of zeros, or of values so small that their scale has no full precision: they are sent as 0.
        return np.where(scales < _SMALLEST_NORMAL, np.float32(1), scales)


def require_finite(absmax: Floats, what: str) -> None:
    """Raises the same error on every rank, naming the first group and rank whose absmax f32[ranks, G] is not finite."""
    ranks, groups = np.nonzero(~np.isfinite(absmax))
    if not ranks.size:
        return
    group, rank = int(groups[0]), int(ranks[0])
    value = "NaN" if np.isnan(absmax[rank, group]) else "infinity"
    # All ranks look at the same numbers.
    raise unanimous(
        TrainingError(
            f"the gradient of {what} {group} holds {value} on rank {rank}: training has diverged; go back to an "
            "earlier checkpoint with a lower --train.learning-rate or some --train.warmup-steps"
        )
    )
