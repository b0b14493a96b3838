"""What can be trained on: sources of images with labels or captions, behind one small interface."""

from training.data.examples import Examples, ImageSource
from training.data.image_data import ImageData
from training.data.splitting import Subset, split

__all__ = ["Examples", "ImageData", "ImageSource", "Subset", "split"]
