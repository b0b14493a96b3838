"""One image on its way through the reverse chain."""

from dataclasses import dataclass

from torch import Tensor

from worker.conditioning.conditioning import Conditioning
from worker.diffusion.samplers import SamplerPlan
from worker.diffusion.update import Column
from worker.models.loaded_model import LoadedModel


@dataclass(slots=True, eq=False)
class Trajectory:
    """Owns the image's progress and its state between two steps; compared by identity.

    Attributes:
        job_id: the request that asked for the image.
        index: the image's number in that request.
        seed: of the image itself, request seed + index.
        conditioning: the network's named inputs, shared by the images of a request.
        x_t: [C, H, W] float32; None before the first step.
        x_0_previous: [C, H, W] float32, the last step's x_0; None before the first step.
    """

    job_id: str
    index: int
    seed: int
    model: LoadedModel
    plan: SamplerPlan
    conditioning: Conditioning
    step: int = 0
    x_t: Tensor | None = None
    x_0_previous: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.plan)

    @property
    def remaining_steps(self) -> int:
        return self.steps - self.step

    @property
    def finished(self) -> bool:
        return self.step == self.steps

    @property
    def cost(self) -> int:
        """Rows in the network's batch."""
        return self.conditioning.rows

    @property
    def checkpoint(self) -> LoadedModel:
        return self.model

    @property
    def timestep(self) -> int:
        """Where on the noise schedule the next step begins."""
        return self.plan.timesteps[self.step]

    @property
    def needs_noise(self) -> bool:
        """Whether the next step adds noise."""
        return self.plan.is_noisy[self.step]

    @property
    def coefficients(self) -> list[float]:
        """The next step's seven numbers of the update rule."""
        return self.plan.numbers[self.step]

    @property
    def needs_history(self) -> bool:
        """Whether the next step reads the last one's x_0."""
        return not self.finished and self.needs_history_at(self.step)

    def needs_history_at(self, step: int) -> bool:
        """Whether that step reads the x_0 of the one before it."""
        return self.plan.numbers[step][Column.X_0_PREVIOUS] != 0

    def advance(self, x_t: Tensor, x_0: Tensor) -> None:
        """One more step is behind the image."""
        self.x_t = x_t
        self.x_0_previous = x_0
        self.step += 1
