"""The errors that users can cause and mend. Each message says what was found, what was expected and what to do."""


class MMAudioError(Exception):
    """Any failure with one clear line for the user; entry points print it and exit with status 1."""


class ConfigError(MMAudioError):
    """A setting that makes no sense, by itself or beside another one; entry points exit with status 2."""


class DataError(MMAudioError):
    """A video, a clip table or a feature shard that cannot be used."""


class WeightsError(MMAudioError):
    """A weights file that is missing, corrupt or made for another model."""


class TrainingError(MMAudioError):
    """Training that cannot go on: a loss or gradient that is not finite, a state that does not fit."""
