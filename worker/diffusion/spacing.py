"""Which of the training timesteps a chain of N steps walks."""

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
    check_steps(T, N)
    _check_offset(steps_offset)
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


def dpm_solver_timesteps(
    spacing: Spacing | str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> tuple[int, ...]:
    """DPM-Solver's: N + 1 timesteps without the last, so that no step is spent on t = 0.

    For N = T there are not that many without 0; then all T.

    Args:
        spacing: leading: i·floor(T/(N+1)); linspace: i·(T-1)/N rounded; i from N down to 1. Trailing has no 0 to leave
            out.
        num_train_timesteps, num_inference_steps, steps_offset: as in `inference_timesteps`.

    Raises:
        PlanError: as there.
    """
    T, N = num_train_timesteps, num_inference_steps
    check_steps(T, N)
    _check_offset(steps_offset)
    match spacing:
        case Spacing.LEADING | Spacing.LINSPACE if N == T:
            return tuple(reversed(range(T)))
        case Spacing.LEADING:
            stride = T // (N + 1)
            offset = min(steps_offset, T - 1 - N * stride)
            return tuple(i * stride + offset for i in range(N, 0, -1))
        case Spacing.LINSPACE:
            return tuple(round(i * (T - 1) / N) for i in range(N, 0, -1))
        case _:
            return inference_timesteps(spacing, T, N)


def lcm_timesteps(num_train_timesteps: int, num_inference_steps: int, original_steps: int) -> tuple[int, ...]:
    """A latent consistency model's: N of the S timesteps that it was distilled on, which are every floor(T/S)-th.

    Raises:
        PlanError: N outside 1..S, or S outside 1..T.
    """
    T, N, S = num_train_timesteps, num_inference_steps, original_steps
    if not 1 <= S <= T:
        raise PlanError(f"need 1 <= original_inference_steps <= {T}, got {S}")
    if not 1 <= N <= S:
        raise PlanError(
            f"need 1 <= num_inference_steps <= {S} with sampler lcm, the steps of its distillation, got {N}"
        )
    stride = T // S
    return tuple((S - i * S // N) * stride - 1 for i in range(N))


def check_steps(num_train_timesteps: int, num_inference_steps: int) -> None:
    """Raise PlanError unless 1 <= N <= T."""
    if num_train_timesteps < 1:
        raise PlanError(f"need num_train_timesteps >= 1, got {num_train_timesteps}")
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise PlanError(f"need 1 <= num_inference_steps <= {num_train_timesteps}, got {num_inference_steps}")


def _check_offset(steps_offset: int) -> None:
    if steps_offset < 0:
        raise PlanError(f"need steps_offset >= 0, got {steps_offset}")
