"""Generated click data that imitates the statistics of the Criteo Kaggle set."""

from dqrm_cpu.data.synthetic.stream import RawRows, SyntheticClicks

__all__ = ["RawRows", "SyntheticClicks"]
