"""Products of few positions with coefficients on a CPU: the same numbers, read in the order that takes least time.

One token at a time is bound by how fast weights are read, and coefficients are tall and narrow: short rows are read at
two thirds of the speed of a dense matrix's.
"""

import torch
from torch import Tensor, nn

#: Matrices of fewer entries are done before another arrangement pays (measured: 1024 × 256, no; 2048 × 512, yes).
LEAST = 2**20


def by_columns(map: nn.Linear) -> nn.Linear:
    """The same map, in place, with a weight that is taller than wide laid out column by column, where that is faster.

    On a CPU in float32, products of few positions with coefficients run 1.2 to 1.8 times as fast so (2048 × 512: 440
    against 240 µs), and those of many as fast as row by row.
    """
    weight = map.weight
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[0] > weight.shape[1]:
        weight.data = weight.data.t().contiguous().t()
    return map


def product(map: nn.Module, x: Tensor) -> Tensor:
    """`map(x)`. In bfloat16 on a CPU one position reads two rows of a tall weight as one of twice the length.

    `[w_2i, w_2i+1]` with the rows of `[[x, 0], [0, x]]` gives entries 2i and 2i+1 of the output: the same bytes and
    twice the multiplications, of which there are plenty to spare (6144 × 768: 1,115 against 845 µs). Compilers are
    given the plain product.
    """
    if torch.compiler.is_compiling() or not (type(map) is nn.Linear and _is_paired(map, x)):
        y: Tensor = map(x)
        return y
    rows, width = map.weight.shape
    one = x.reshape(1, width)
    pairs = nn.functional.linear(torch.block_diag(one, one), map.weight.view(rows // 2, 2 * width))
    y = pairs.t().reshape(*x.shape[:-1], rows)
    return y if map.bias is None else y + map.bias


def _is_paired(map: nn.Linear, x: Tensor) -> bool:
    weight = map.weight
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.bfloat16 or type(weight) is not nn.Parameter:
        return False
    rows, width = weight.shape
    tall = rows % 2 == 0 and rows >= 2 * width and rows * width >= LEAST
    return tall and x.numel() == width and weight.is_contiguous() and not (map._forward_hooks or map._forward_pre_hooks)
