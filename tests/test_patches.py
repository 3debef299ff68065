"""Second moments of a convolution's patches: the same as those of the patches unfolded."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import unfold

from geocolor.curvature.patches import PIXELS, patch_moment, slides_everywhere
from geocolor.layers import find_layers

SIZES = ((1, 1), (1, 4), (2, 1), (2, 2), (5, 3))


@pytest.mark.parametrize("kernel", product((1, 3), repeat=2))
@pytest.mark.parametrize("size", SIZES)
def test_the_moment_is_that_of_the_unfolded_patches(kernel, size):
    torch.manual_seed(0)
    images = torch.randn(3, 2, *size, dtype=torch.float64) + 0.5
    patches = unfold(images, kernel, padding=(kernel[0] // 2, kernel[1] // 2)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(patch_moment(images, *kernel), patches.T @ patches, rtol=1e-12, atol=1e-12)


def test_in_single_precision_it_is_exact_to_the_last_digits_for_many_pixels():
    torch.manual_seed(0)
    images = torch.randn(4 * PIXELS // 64, 3, 8, 8) + 0.5  # a mean, so that sums grow
    exact = patch_moment(images.double(), 3, 3)
    assert (patch_moment(images, 3, 3) - exact).abs().max() < 3e-6 * exact.abs().max()


def test_images_that_do_not_lie_in_one_piece_are_read_as_they_are():
    images = torch.randn(2, 6, 5, 4, dtype=torch.float64).transpose(1, 3)[:, :, :, ::2]
    torch.testing.assert_close(patch_moment(images, 3, 3), patch_moment(images.contiguous(), 3, 3))


@pytest.mark.parametrize(
    ("convolution", "everywhere"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), True),
        (nn.Conv2d(2, 3, 3, padding="same"), True),
        (nn.Conv2d(2, 3, 1), True),
        (nn.Conv2d(2, 3, (1, 3), padding=(0, 1)), True),
        (nn.Conv2d(2, 3, 3), False),
        (nn.Conv2d(2, 3, 3, padding=1, stride=2), False),
        (nn.Conv2d(2, 3, 3, padding=2, dilation=2), False),
        (nn.Conv2d(2, 3, 5, padding=2), False),
        (nn.Linear(2, 3), False),
    ],
)
def test_which_convolutions_have_a_patch_around_every_pixel(convolution, everywhere):
    [layer] = find_layers(nn.Sequential(convolution), include=["0"])
    assert slides_everywhere(layer) == everywhere
