"""Errors a user can act on: each says what was wrong, where, and what to do."""


class DqrmError(Exception):
    """Base of all errors that the command line prints without a traceback."""

    unanimous = False
    """Whether every rank raises it alike: then each may leave by itself, and the first one speaks for all."""


def unanimous(error: DqrmError) -> DqrmError:
    """Marks an error that every rank raises alike."""
    error.unanimous = True
    return error


class ConfigError(DqrmError):
    """A setting is unknown, misplaced or out of range."""


class DataError(DqrmError):
    """A data set or a batch is not what the model needs."""


class CheckpointError(DqrmError):
    """A checkpoint is missing, damaged or belongs to another model."""


class CommError(DqrmError):
    """Processes could not meet, disagree, or one of them is gone."""


class DeviceError(DqrmError):
    """Something asked for is not on this machine."""


class TrainingError(DqrmError):
    """Training cannot go on: the loss or the weights are not finite."""
