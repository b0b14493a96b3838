"""What training raises.

TrainingError           anything that stops training; the text is one line fit for a command's error
├── DataError           the training images can't be had or used
├── ConfigurationError  a setting or an option that can't be followed
├── StateError          the state of a stopped run can't be written, read or gone on from
└── LogError            the log of a run can't be written
"""


class TrainingError(Exception):
    """Training can't begin or go on."""


class DataError(TrainingError):
    """The training images can't be had or used."""


class ConfigurationError(TrainingError):
    """A setting or an option can't be followed; what `REVERIE_` variables of a server break is a SettingsError."""


class StateError(TrainingError):
    """A state can't be saved, or it is not one that this run can go on from."""


class LogError(TrainingError):
    """The log of a run can't be written."""
