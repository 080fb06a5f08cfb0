"""Tuning: the same budget for FP32 and for INT4, spent on the learning rate and on what each has against overfitting.

The other experiments train every row with one learning rate, which might suit one of them better. Here FP32 may have
its own, or weight decay; INT4 its own, or a wider step. Each is chosen on validation alone, seed by seed.
"""

from dqrm_cpu.experiments.experiment import Experiment, Show, Variant
from dqrm_cpu.experiments.model_tables import FP32_MLP, method

_RATES = (0.5, 2.0, 4.0)
_DECAYS = ("1e-4", "1e-3", "1e-2")
_WIDTHS = (2, 3, 4)


def _rates(plain: Variant) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{plain.name}, learning rate x {times:g}", plain.settings, learning_rate_times=times)
        for times in _RATES
    )


def _budget(label: str, plain: Variant, others: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The best of all, then all of them."""
    tried = (plain, *_rates(plain), *others)
    return Variant(f"{label}, best of {len(tried)}", best_of=tuple(variant.name for variant in tried)), *tried


_PLAIN_FP32 = Variant("FP32", method("none"))
_DECAYED = tuple(
    Variant(f"FP32, weight decay {decay}", {**_PLAIN_FP32.settings, "train.weight_decay": decay}) for decay in _DECAYS
)
_PLAIN_INT4 = Variant("INT4", method("dqrm", step_width="1.0") | FP32_MLP)
_WIDENED = tuple(
    Variant(f"INT4, width {width}", method("dqrm", step_width=f"{width}.0") | FP32_MLP) for width in _WIDTHS
)
_TUNED_FP32 = _budget("FP32", _PLAIN_FP32, _DECAYED)
_TUNED_INT4 = _budget("INT4", _PLAIN_INT4, _WIDENED)

TUNING = Experiment(
    "tuning",
    "Tuning: the same budget for FP32 and INT4",
    "Ours; the paper says nothing of tuning its baseline. The first two rows are what somebody gets who trains each "
    "seven times a seed and keeps the run that is best on validation; below them is what they chose from. Weight decay "
    "is FP32's own means against overfitting, a wider step INT4's. MLPs are in FP32.",
    (_TUNED_FP32[0], _TUNED_INT4[0], *_TUNED_FP32[1:], *_TUNED_INT4[1:]),
    _TUNED_FP32[0].name,
    shows=(Show.LIVE_ROWS, Show.LOSS),
)
