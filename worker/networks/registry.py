"""The architectures that can be served, by the class name in a network's config.json."""

from collections.abc import Mapping

from worker.networks.architecture import Architecture
from worker.networks.dit import DiT
from worker.networks.unet2d import UNet2D
from worker.networks.unet2d_condition import UNet2DCondition

ARCHITECTURES: Mapping[str, Architecture] = {
    "UNet2DModel": UNet2D(),
    "UNet2DConditionModel": UNet2DCondition(),
    "DiTTransformer2DModel": DiT(),
}
