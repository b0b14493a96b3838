"""The architectures that can be served, by the class name in a network's config.json."""

from collections.abc import Mapping

from worker.networks.architecture import Architecture
from worker.networks.unet2d import UNet2D

ARCHITECTURES: Mapping[str, Architecture] = {
    "UNet2DModel": UNet2D(),
}
