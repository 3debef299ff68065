"""Second moments as a low rank and a diagonal: one pass, mergeable, with an error that is known and kept."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import geocolor
from geocolor.curvature import Curvature, load_curvature, load_sums
from geocolor.curvature.sketch import Sketch, directions, nystrom, rank_of
from geocolor.curvature.windows import bytes_of, measure_within
from geocolor.journal import Journal
from geocolor.layers import find_layers
from tests.fuzz.model_files import sketched_sums

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:.*rank ≤")

WIDE = 512


def moment(size: int, rank: int, decay: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0][:, :rank]
    return (basis * decay ** torch.arange(rank, dtype=torch.float64)) @ basis.T


def sketched(matrix: Tensor, rank: int) -> Sketch:
    return nystrom(matrix @ directions("A/x", len(matrix), rank).double(), matrix.diagonal().clone(), "A/x")


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(2, 40),
    data_rank=st.integers(1, 40),
    rank=st.integers(1, 40),
    decay=st.floats(0.3, 1.0),
    scale=st.floats(1e-9, 1e9),
    seed=st.integers(0, 99),
)
def test_what_is_stated_bounds_the_error(
    size: int, data_rank: int, rank: int, decay: float, scale: float, seed: int
) -> None:
    matrix = scale * moment(size, min(size, data_rank), decay, seed)
    trace, found = float(matrix.trace()), sketched(matrix, min(rank, size))
    residual = matrix - found.low @ found.low.T
    assert float(torch.linalg.eigvalsh(residual)[0]) >= -1e-9 * trace  # U Uᵀ ⪯ M
    assert float(torch.linalg.matrix_norm(matrix - found.dense(), 2)) <= (found.outside + 1e-9) * trace
    torch.testing.assert_close(found.dense().diagonal(), matrix.diagonal(), rtol=1e-8, atol=1e-9 * trace)
    if min(rank, size) > min(size, data_rank):
        assert found.outside < 1e-6


@pytest.mark.parametrize("half", ["S", "D"])
def test_half_a_sketch_in_a_file_is_refused(tmp_path: Path, half: str) -> None:
    sums = sketched_sums()
    del sums.tensors[f"{half}A/blocks.0"]
    sums.save(tmp_path / "sums.safetensors")
    with pytest.raises(ValueError, match=r"sums.safetensors: of the sketch of 'A/blocks.0' one half is missing"):
        load_sums(tmp_path / "sums.safetensors")


def test_a_larger_rank_leaves_less_outside() -> None:
    matrix = moment(200, 200, 0.95, 1)
    outside = [sketched(matrix, rank).outside for rank in (8, 32, 96, 200)]
    assert outside == sorted(outside, reverse=True)
    assert outside[-1] < 1e-6


def test_lifting_and_scaling_are_those_of_the_matrix() -> None:
    found = sketched(moment(20, 20, 0.9, 2), 4)
    dense = found.dense()
    torch.testing.assert_close(found.scaled(3.0).dense(), 3 * dense)
    torch.testing.assert_close(found.lifted(0.1).dense(), dense + 0.1 * dense.diagonal().mean() * torch.eye(20))


class Wide(nn.Module):
    """A layer that is far too wide for the others' memory."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, WIDE)
        self.down = nn.Linear(WIDE, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))
        return y


def within(model: nn.Module, batches: list[tuple[Tensor, Tensor]], room: int, folder: Path) -> Curvature:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geocolor.curvature.windows.peak", lambda: 0)
        return measure_within(room, model, batches, find_layers(model), shrinkage=0.0, journal=Journal(folder))


def test_a_layer_that_does_not_fit_alone_is_sketched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, generator = Wide(), torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(64, 8, generator=generator), torch.randint(3, (64,), generator=generator)) for _ in range(8)
    ]
    expected = geocolor.measure(model, batches, shrinkage=0.0)
    layers = {layer.name: layer for layer in expected.layers}
    room = bytes_of([layers["down"]], expected.inputs, {"A/down": 64}) + 1000
    assert room < bytes_of([layers["down"]], expected.inputs) / 4
    with pytest.warns(UserWarning, match="kept as a low rank and a diagonal") as said:
        found = within(model, batches, room, tmp_path)
    assert sum("low rank" in str(each.message) for each in said) == 2
    assert {name: rank_of(found.A, name) for name in layers} == {"up": None, "down": 64}
    assert {name: rank_of(found.G, name) for name in layers} == {"up": 64, "down": None}
    assert torch.equal(found.A["up"], expected.A["up"])
    assert torch.equal(found.G["down"], expected.G["down"])
    for ours, theirs in ((found.A["down"], expected.A["down"]), (found.G["up"], expected.G["up"])):
        torch.testing.assert_close(ours.diagonal(), theirs.diagonal())
        assert float(torch.linalg.matrix_norm(ours - theirs)) < 0.02 * float(torch.linalg.matrix_norm(theirs))
    more = found.damped_to(0.1).scaled({"up": 2.0, "down": 3.0})
    more.save(tmp_path / "again.safetensors")
    again = load_curvature(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").stat().st_size < 8 * 2 * 80 * WIDE
    for name in layers:
        torch.testing.assert_close(again.A[name], more.A[name])
        torch.testing.assert_close(again.G[name], more.G[name])
        torch.testing.assert_close(
            more.G[name], expected.damped_to(0.1).G[name] * (2 + (name == "down")), rtol=0.1, atol=1e-2
        )
    plans = [geocolor.plan(geocolor.price(model, each), 0.3, solver="greedy") for each in (expected, found)]
    damages = [plan.predicted_damage for plan in plans]
    assert damages[1] == pytest.approx(damages[0], rel=0.05), damages


def test_what_fits_not_even_sketched_is_refused_with_what_would_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(64, 8), torch.randint(3, (64,)))]
    with pytest.raises(ValueError, match="sketched statistics of layer 'up'"):
        within(Wide(), batches, 100_000, tmp_path)
