"""What the mathematics refuses, and why.

DiffusionError (a ValueError)
├── ScheduleError   betas that make no noise schedule
├── PlanError       a sampler, spacing or step count that cannot be planned
└── PredictionError a prediction type that the schedule does not allow
"""


class DiffusionError(ValueError):
    """Base of all errors of `worker.diffusion`; the message names the value and the rule."""


class ScheduleError(DiffusionError):
    """The betas do not describe a noise schedule."""


class PlanError(DiffusionError):
    """No table of coefficients exists for what was asked."""


class PredictionError(DiffusionError):
    """The model's kind of output cannot be used with this noise schedule."""
