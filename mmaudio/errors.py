"""Exceptions that users can cause and fix. Each message states what is wrong, what is expected and what to do."""


class MMAudioError(Exception):
    """Base class of all expected failures; entry points print the message in one line and exit with status 1."""


class ConfigError(MMAudioError):
    """An invalid setting or combination of settings; entry points exit with status 2."""


class DataError(MMAudioError):
    """A video, clip table or feature shard that cannot be used."""


class WeightsError(MMAudioError):
    """A weights file that is missing, corrupt or made for another model."""


class TrainingError(MMAudioError):
    """Training that cannot continue, such as a non-finite loss or gradient, or a state of another adapter."""
