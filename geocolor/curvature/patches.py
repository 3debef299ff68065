"""Second moments of the patches that a convolution reads, without unfolding them.

`Σ_p x[c, p+i] x[c', p+i']` depends on the places `i`, `i'` within a patch only through the shift `i' − i`, but for the
borders: where the kernel is 3 and slides over all of the image, 25 correlations of the image with itself, of which 13
are different, stand for 81 blocks. All of them together are the gradient of a convolution's weight, with the image
in the place of the gradient of the output. At the borders a row and a column are taken off again. Exact, up to the
order of additions.
"""

from torch import Tensor
from torch.nn.functional import pad, unfold
from torch.nn.grad import conv2d_weight

from geocolor.layers import Layer

#: So many pixels are added up at a time, and their sums then: convolutions round after every addition.
PIXELS = 4096

#: The pixels that are the last ones where a patch reads none at this place in it.
ENDS = ((slice(0, 1), 2), (slice(-1, None), 0))


def slides_everywhere(layer: Layer) -> bool:
    """Whether the patches are those around every pixel: kernels of 1 or 3, padded by 0 or 1, stride 1."""
    if layer.form != "conv2d":
        return False
    kernel, stride, padding, dilation = (layer.geometry[i : i + 2] for i in (0, 2, 4, 6))
    fits = all(size in (1, 3) and 2 * margin == size - 1 for size, margin in zip(kernel, padding, strict=True))
    return fits and (*stride, *dilation) == (1, 1, 1, 1)


def patch_moment(images: Tensor, height: int = 1, width: int = 1) -> Tensor:
    """`Σ x xᵀ` over the `height × width` patches around every pixel of `images` [batch, channels, h, w].

    Patches are padded with zeros; height and width are 1 or 3. The result, n × n, has their entries in the order of
    `torch.nn.functional.unfold`: n = channels · height · width.
    """
    channels, dy, dx = images.shape[1], height - 1, width - 1
    shifts = _correlations(images, dy, dx)
    moment = shifts.new_empty(channels, height, width, channels, height, width)
    for i in range(height):
        for j in range(width):
            moment[:, i, j] = shifts[:, :, dy - i : dy - i + height, dx - j : dx - j + width]
    for end, place in ENDS:
        if height == 3:  # with all pixels to the sides of the row, as they were counted
            row = _moment(unfold(images[:, :, end], (1, width), padding=(0, dx)))
            moment[:, place, :, :, place, :] -= row.view(channels, width, channels, width)
        if width == 3:  # with the pixels above and below that are still there
            column = _moment(unfold(images[:, :, :, end], (height, 1), padding=(height // 2, 0)))
            moment[:, :, place, :, :, place] -= column.view(channels, height, channels, height)
    n = channels * height * width
    return moment.view(n, n)


def _correlations(images: Tensor, dy: int, dx: int) -> Tensor:
    """`Σ_q x[c, q] x[c', q + d]` over all pixels, for shifts `d` up to `dy`, `dx`: channels² × (2 dy + 1, 2 dx + 1)."""
    channels = images.shape[1]
    shifts = images.new_zeros(channels, channels, 2 * dy + 1, 2 * dx + 1)
    downwards = shifts[:, :, dy:]
    for part in images.contiguous().split(max(PIXELS // images[0, 0].numel(), 1)):
        downwards += conv2d_weight(pad(part, (dx, dx, 0, dy)), downwards.shape, part)
    shifts[:, :, :dy] = downwards[:, :, 1:].transpose(0, 1).flip(2, 3)
    return shifts


def _moment(patches: Tensor) -> Tensor:
    """Of patches [batch, n, positions]."""
    columns = patches.transpose(0, 1).flatten(1)
    return columns @ columns.T
