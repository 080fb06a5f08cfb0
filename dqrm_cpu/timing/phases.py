"""The phases that a run's time is divided into, as the paper's figures 1c and 10 divide a step."""

from enum import IntEnum, unique


@unique
class Phase(IntEnum):
    """A phase of a run: `label` is what a person reads, `key` what files hold."""

    DATA = 0
    SCALE = 1
    MLP_QUANTIZE = 2
    GATHER_QUANTIZE = 3
    MLP_FORWARD = 4
    INTERACTION = 5
    LOSS = 6
    MLP_BACKWARD = 7
    COALESCE = 8
    QUANTIZE_GRADIENTS = 9
    WIRE = 10
    MERGE = 11
    MLP_EXCHANGE = 12
    EMBEDDING_UPDATE = 13
    DENSE_UPDATE = 14
    WIRE_HIDDEN = 15  # of messages on the wire, while the step computed something else
    EVALUATION = 16  # from here on: between steps
    CHECKPOINT = 17

    @property
    def key(self) -> str:
        return self.name.lower()

    @property
    def label(self) -> str:
        words = self.key.replace("mlp_", "MLP ").replace("gather_quantize", "gather + quantize")
        return words.replace("_", " ")


STEP_PHASES = tuple(phase for phase in Phase if phase < Phase.WIRE_HIDDEN)
"""The phases that make up a step; never one inside another, so that they add up."""

OCCASIONS = (Phase.EVALUATION, Phase.CHECKPOINT)
"""The phases between steps."""
