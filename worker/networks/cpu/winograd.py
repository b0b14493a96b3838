"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3). Lavin & Gray 2016, section 4.

The image is cut into tiles of 6x6 that overlap by 2. A tile and a filter become 36 numbers each (B^T d B and G g G^T);
their products, summed over the channels, become 4x4 values of the output (A^T m A). The sums over channels are 36
matrix products and nearly all of the work. In float32 the result is off by a few 1e-6 of its largest value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
"""Side of a tile of the output; the input's are 2 larger."""
TILES_AT_ONCE = 128
"""Rows of a matrix product: large enough to be worth reading the weights, small enough to stay in the cache."""

NEAR, FAR = 11 / 16, 3 / 2
"""The polynomials' points are 0, ±NEAR, ±FAR and infinity: float32 loses a quarter of what it does with 1 and 2."""


def _transforms(a: float, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B^T, G, A^T) for the points 0, ±a, ±b and infinity, by Toom and Cook."""
    aa, bb = a * a, b * b
    input_side = [
        [aa * bb, 0, -(aa + bb), 0, 1, 0],
        *[[0, -point * other, -other, point, 1, 0] for point, other in ((a, bb), (-a, bb), (b, aa), (-b, aa))],
        [0, aa * bb, 0, -(aa + bb), 0, 1],
    ]
    points = [(a, 2 * aa * (aa - bb)), (-a, 2 * aa * (aa - bb)), (b, 2 * bb * (bb - aa)), (-b, 2 * bb * (bb - aa))]
    filter_side = [
        [1 / (aa * bb), 0, 0],
        *[[point**power / over for power in range(3)] for point, over in points],
        [0, 0, 1],
    ]
    output_side = [
        [float(power == 0), *[point**power for point, _ in points], float(power == TILE - 1)] for power in range(TILE)
    ]
    one, two, three = (torch.tensor(side, dtype=torch.float64) for side in (input_side, filter_side, output_side))
    return one, two, three


_INPUT_2D, _FILTER_2D, _OUTPUT_2D = (torch.kron(matrix, matrix) for matrix in _transforms(NEAR, FAR))


def winograd_applies(conv: nn.Conv2d, height_px: int, width_px: int) -> bool:
    """Whether Winograd's algorithm computes this convolution on images of this size, in float32."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.weight.dtype == torch.float32
        and height_px % TILE == width_px % TILE == 0
    )


def winograd_suits(conv: nn.Conv2d, height_px: int, width_px: int) -> bool:
    """Whether Winograd's algorithm applies and is faster.

    The transforms' share of the time falls with the number of channels; few tiles make slow matrix products.
    """
    tiles = (height_px // TILE) * (width_px // TILE)
    return (
        winograd_applies(conv, height_px, width_px) and tiles >= 16 and min(conv.in_channels, conv.out_channels) >= 64
    )


def transformed_filters(conv: nn.Conv2d) -> Tensor:
    """G g G^T of each filter: [36, C, C'] float32."""
    weight = conv.weight.detach().double().flatten(2)  # [C', C, 9]
    return torch.matmul(weight, _FILTER_2D.T).permute(2, 1, 0).to(torch.float32).contiguous()


class WinogradConv2d(nn.Module):
    """A 3x3 convolution with stride 1 and zero padding 1; images are filled up to sides that are multiples of 4.

    An image does not depend on the others in the batch: tiles are multiplied in blocks of at most `TILES_AT_ONCE`, and
    a product of 16 or more rows sums each row in the same order. The probe at load checks that on this processor.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.out_channels = conv.out_channels
        self.weight = nn.Parameter(transformed_filters(conv), requires_grad=False)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("input_2d", _INPUT_2D.to(torch.float32), persistent=False)
        self.register_buffer("output_2d", _OUTPUT_2D.to(torch.float32), persistent=False)
        self.input_2d: Tensor
        self.output_2d: Tensor

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve, then add `shift` and `residual`.

        Args:
            x: [N, C, H, W].
            shift: [N, C'] added to every pixel.
            residual: [N, C', H, W] in channels_last.

        Returns:
            [N, C', H, W] in channels_last.
        """
        height, width = x.shape[-2:]
        if height % TILE == width % TILE == 0:
            return self._whole_tiles(x, shift, residual)
        filled = F.pad(x, (0, -width % TILE, 0, -height % TILE))
        y = self._whole_tiles(filled, shift, None)[..., :height, :width].contiguous(memory_format=torch.channels_last)
        return y if residual is None else y.add_(residual)

    def _whole_tiles(self, x: Tensor, shift: Tensor | None, residual: Tensor | None) -> Tensor:
        N, _, H, W = x.shape
        rows, columns = H // TILE, W // TILE
        bias = self.bias.expand(N, -1) if shift is None else self.bias + shift
        images = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # [N, H, W, C]
        tiles_out = (N, rows, TILE, columns, TILE, self.out_channels)
        out = x.new_empty(tiles_out)
        added = None if residual is None else residual.permute(0, 2, 3, 1).view(tiles_out)
        some_images = max(1, TILES_AT_ONCE // (rows * columns))
        some_rows = max(1, TILES_AT_ONCE // columns)
        for n in range(0, N, some_images):
            block = slice(n, n + some_images)
            padded = F.pad(images[block], (0, 0, 1, 1, 1, 1))
            for r in range(0, rows, some_rows):
                band = slice(r, r + some_rows)
                y = self._tiles(padded[:, r * TILE : (r + some_rows) * TILE + 2], bias[block])
                if added is None:
                    out[block, band].copy_(y)
                else:
                    torch.add(y, added[block, band], out=out[block, band])
        return out.view(N, H, W, self.out_channels).permute(0, 3, 1, 2)

    def _tiles(self, padded: Tensor, bias: Tensor) -> Tensor:
        """[n, H + 2, W + 2, C] and [n, C'] → [n, H/4, 4, W/4, 4, C'], not contiguous."""
        n, padded_height, padded_width, C = padded.shape
        rows, columns = padded_height // TILE, padded_width // TILE
        image, line, pixel, _ = padded.stride()
        overlapping = padded.as_strided(
            (n, rows, columns, TILE + 2, TILE + 2, C),
            (image, TILE * line, TILE * pixel, line, pixel, 1),
            padded.storage_offset(),
        )
        d = torch.matmul(self.input_2d, overlapping.reshape(n * rows * columns, 36, C))
        m = torch.bmm(d.transpose(0, 1), self.weight)  # [36, tiles, C']
        y = torch.mm(self.output_2d, m.view(36, -1))
        y.view(TILE * TILE, n, rows * columns, -1).add_(bias[:, None])
        return y.view(TILE, TILE, n, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
