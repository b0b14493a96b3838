"""Which N of the training timesteps a chain of N steps walks."""

from worker.contract.names import Spacing
from worker.diffusion.errors import PlanError


def inference_timesteps(
    spacing: Spacing | str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> tuple[int, ...]:
    """Exactly N strictly decreasing timesteps in [0, T), for every N in 1..T.

    Args:
        spacing: leading: i·floor(T/N); linspace: i·(T-1)/(N-1) rounded, T-1 alone for one step; trailing: (i+1)·T/N
            rounded, less 1.
        num_train_timesteps: T.
        num_inference_steps: N.
        steps_offset: added to leading timesteps, as far as the first of them stays below T.

    Raises:
        PlanError: an unknown spacing, N outside 1..T or a negative offset.
    """
    T, N = num_train_timesteps, num_inference_steps
    _check_steps(T, N)
    if steps_offset < 0:
        raise PlanError(f"need steps_offset >= 0, got {steps_offset}")
    # Each quotient is one division of whole numbers: sums of a float step give N + 1 entries for some N.
    match spacing:
        case Spacing.LEADING:
            stride = T // N
            # 1000 steps with offset 1 would begin at timestep 1000 of 0..999
            offset = min(steps_offset, T - 1 - (N - 1) * stride)
            return tuple(i * stride + offset for i in reversed(range(N)))
        case Spacing.LINSPACE:
            return tuple(round(i * (T - 1) / (N - 1)) for i in reversed(range(N))) if N > 1 else (T - 1,)
        case Spacing.TRAILING:
            return tuple(round(i * T / N) - 1 for i in range(N, 0, -1))
        case _:
            raise PlanError(f"need a spacing of {', '.join(Spacing)}, got {spacing!r}")


def dpm_solver_timesteps(num_train_timesteps: int, num_inference_steps: int) -> tuple[int, ...]:
    """DPM-Solver's own timesteps: i·(T-1)/N rounded, i from N down to 1, so that no step is spent on t = 0.

    For N = T there are not that many without 0; then all T.

    Raises:
        PlanError: N outside 1..T.
    """
    T, N = num_train_timesteps, num_inference_steps
    _check_steps(T, N)
    if N == T:
        return tuple(reversed(range(T)))
    return tuple(round(i * (T - 1) / N) for i in range(N, 0, -1))


def _check_steps(num_train_timesteps: int, num_inference_steps: int) -> None:
    if num_train_timesteps < 1:
        raise PlanError(f"need num_train_timesteps >= 1, got {num_train_timesteps}")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise PlanError(f"need 1 <= num_inference_steps <= {num_train_timesteps}, got {num_inference_steps}")
