"""scikit-learn's handwritten digits: 1797 images of 8x8 in 17 grey levels, ten classes. Comes with the library."""

import torch

from training.data.image_data import ImageData


def load_digits() -> ImageData:
    """All digits, in the library's order."""
    from sklearn.datasets import load_digits as sklearn_load_digits

    digits = sklearn_load_digits()
    return ImageData(
        name="scikit-learn digits",
        levels=torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1),  # [1797, 1, 8, 8] in 0..16
        max_level=16,
        labels=torch.from_numpy(digits.target).long(),
        label_names=tuple(str(name) for name in digits.target_names),
    )
