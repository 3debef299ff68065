"""A small plain network, its data, curvature and cost graph, shared by the tests."""

import pytest
import torch
from torch import Tensor, nn

import geocolor
from geocolor.curvature import Curvature
from geocolor.graph import CostGraph


class Block(nn.Module):
    """Two layers that read the same input, one that reads another, like q, k and o."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.o(torch.tanh(self.q(x)) * self.k(x))
        return y


class Network(nn.Module):
    """A classifier of sequences that knows nothing of transformers."""

    def __init__(self, width: int = 8, blocks: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x.mean(1))
        return y


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return Network().eval()


@pytest.fixture(scope="session")
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 6, 8, generator=generator), torch.randint(5, (16,), generator=generator)) for _ in range(4)
    ]


@pytest.fixture
def curvature(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Curvature:
    return geocolor.measure(network, batches)


@pytest.fixture
def graph(network: nn.Module, curvature: Curvature) -> CostGraph:
    return geocolor.price(network, curvature)
