"""The forward process: an image turning into noise, in one jump or step by step."""

from torch import Tensor


def q_sample(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Draw x_t ~ q(x_t | x_0) in one jump. DDPM (Ho et al. 2020), eq. 4.

    Args:
        x_0: [N, C, H, W] clean images in [-1, 1].
        eps: [N, C, H, W] standard normal.
        alpha_bar: [N, 1, 1, 1] cumulative product of alphas at each row's timestep.
    """
    # The roots in alpha_bar's own dtype: 1 - alpha_bar is 1e-4 at t = 0, where float32 keeps three digits of it.
    return alpha_bar.sqrt().to(x_0.dtype) * x_0 + (1 - alpha_bar).sqrt().to(x_0.dtype) * eps


def q_step(x_prev: Tensor, eps: Tensor, beta: Tensor) -> Tensor:
    """Draw x_t ~ q(x_t | x_{t-1}), the one-step kernel. DDPM (Ho et al. 2020), eq. 2.

    Args:
        x_prev: [N, C, H, W] x_{t-1}.
        eps: [N, C, H, W] standard normal.
        beta: [N, 1, 1, 1] variance added at each row's timestep t.
    """
    return (1 - beta).sqrt().to(x_prev.dtype) * x_prev + beta.sqrt().to(x_prev.dtype) * eps
