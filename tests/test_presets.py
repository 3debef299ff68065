"""Presets: each against a few lines of its own that follow the paper, all of the same size, and on the whole path."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import geocolor
from benchmarks.kwt1 import KeywordTransformer
from geocolor.backend import factored_layers, plan_of
from geocolor.compression import compress_into
from geocolor.curvature import measure
from geocolor.curvature.measurement import _generator
from geocolor.divergence import divergence_of
from geocolor.habits import neighbours, readers_of_norms
from geocolor.layers import find_layers
from geocolor.losses import Classification
from geocolor.parameters import parameter_count
from geocolor.pipeline import Pipeline
from geocolor.plans import Plan
from geocolor.preflight import check_settings
from geocolor.presets import PRESETS, Preset, find_preset
from geocolor.refinement import RefineSettings
from geocolor.settings import Settings
from geocolor.updating import update_coefficients

KEEP = 0.6
Batches = list[tuple[Tensor, Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on", "ignore:layer '")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return KeywordTransformer(mfcc=5, frames=6, classes=4, width=8, hidden=16, blocks=4).eval()


@pytest.fixture(scope="module")
def clips() -> Batches:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(32, 6, 5, generator=generator), torch.randint(4, (32,), generator=generator)) for _ in range(4)
    ]


def compressed(model: nn.Module, clips: Batches, preset: str, keep: float = KEEP) -> tuple[nn.Module, Plan]:
    run = Pipeline(model, clips, Settings(keep=keep, preset=preset))
    prepared = run.prepared()
    return run.carried_out(prepared), prepared.plan


def inputs(model: nn.Module, clips: Batches, name: str) -> Tensor:
    """What the layer reads, as rows, float64."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        for features, _ in clips:
            model(features)
    handle.remove()
    return torch.cat(seen)


def gradients(model: nn.Module, clips: Batches, name: str) -> Tensor:
    """Those of the layer's outputs, for the labels that `measure` draws: samples × positions × m, float64."""
    found: list[Tensor] = []
    for index, batch in enumerate(clips):
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Tensor, outputs: list[Tensor] = outputs) -> None:
            output.retain_grad()
            outputs.append(output)

        handle = model.get_submodule(name).register_forward_hook(keep)
        pseudo, _ = Classification().sampled(model, batch, _generator(torch.device("cpu"), 0, index, 0))
        pseudo.backward()
        handle.remove()
        model.zero_grad()
        assert outputs[0].grad is not None
        found.append(outputs[0].grad.double())
    return torch.cat(found)


def damped(matrix: Tensor) -> Tensor:
    return matrix + 1e-6 * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def weight(model: nn.Module, name: str) -> Tensor:
    found = model.get_submodule(name).weight
    assert isinstance(found, Tensor)
    return found.detach().double()


def truncated(matrix: Tensor, rank: int) -> Tensor:
    U, S, V = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank]


def held(smaller: nn.Module, name: str) -> Tensor:
    return factored_layers(smaller)[name].dense(torch.float64).detach()


def rank_of(plan: Plan, name: str) -> int:
    rank = plan.class_of(name).rank
    assert rank is not None
    return rank


NAMES = ("layers.0.q", "layers.2.o", "layers.1.fc2")


def test_svd(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "svd")
    for name in NAMES:
        torch.testing.assert_close(
            held(smaller, name), truncated(weight(model, name), rank_of(plan, name)), atol=1e-5, rtol=1e-4
        )


def test_fwsvd_weighs_rows_by_their_fisher_information(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "fwsvd")
    for name in NAMES:
        g = gradients(model, clips, name)
        x = inputs(model, clips, name).view(*g.shape[:2], -1)
        fisher = torch.einsum("spm,spn->smn", g, x).square().sum((0, 2)) / len(g)
        root = damped(fisher.diag()).diagonal().sqrt()[:, None]
        expected = truncated(root * weight(model, name), rank_of(plan, name)) / root
        torch.testing.assert_close(held(smaller, name), expected, atol=1e-4, rtol=1e-3)


def test_asvd_scales_columns_by_the_root_of_mean_magnitudes(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "asvd")
    for name in NAMES:
        scale = inputs(model, clips, name).abs().mean(0).sqrt()
        expected = truncated(weight(model, name) * scale, rank_of(plan, name)) / scale
        torch.testing.assert_close(held(smaller, name), expected, atol=1e-4, rtol=1e-3)


def test_svd_llm_whitens_by_the_cholesky_factor_of_its_inputs(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "svd-llm")
    for name in NAMES:
        x = inputs(model, clips, name)
        S = torch.linalg.cholesky(x.T @ x + 1e-6 * (x.T @ x).diagonal().mean() * torch.eye(x.shape[1]).double())
        expected = truncated(weight(model, name) @ S, rank_of(plan, name)) @ torch.linalg.inv(S)
        torch.testing.assert_close(held(smaller, name), expected, atol=1e-4, rtol=1e-3)


def test_svd_llms_update_is_least_squares_on_what_the_smaller_model_produces(model: nn.Module, clips: Batches) -> None:
    smaller, _ = compressed(model, clips, "svd-llm-update")
    before, _ = compressed(model, clips, "svd-llm")
    moved = 0.0
    for name in NAMES:
        x = inputs(smaller, clips, name)  # coefficients further on do not change it
        basis = factored_layers(smaller)[name].bases()["right"].map.weight.detach().double()
        expected = torch.linalg.lstsq(x @ basis.T, x @ weight(model, name).T).solution.T @ basis
        torch.testing.assert_close(held(smaller, name), expected, atol=1e-3, rtol=1e-2)
        moved = max(moved, float((held(smaller, name) - held(before, name)).abs().max()))
    assert moved > 1e-3


def test_basis_sharing_factorises_stacked_weights_in_pooled_inputs(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "basis-sharing", keep=0.7)  # no update above 0.6
    for pair in (("layers.0.k", "layers.1.k"), ("layers.2.fc1", "layers.3.fc1")):
        x = torch.cat([inputs(model, clips, name) for name in pair])
        S = torch.linalg.cholesky(x.T @ x).T  # x.T @ x = Sᵀ S
        stacked = S @ torch.cat([weight(model, name).T for name in pair], 1)
        assert plan.class_of(pair[0]).layers == pair
        expected = torch.linalg.inv(S) @ truncated(stacked, rank_of(plan, pair[0]))
        found = torch.cat([held(smaller, name).T for name in pair], 1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-2)
    assert plan.class_of("layers.0.o").layers == ("layers.0.o",)
    assert plan.class_of("layers.0.fc2").layers == ("layers.0.fc2",)


def test_basis_sharing_refits_coefficients_on_what_the_smaller_model_produces(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "basis-sharing", keep=0.5)
    first, second = plan.class_of("layers.2.fc1").layers
    bases = [factored_layers(smaller)[name].bases()["right"].map.weight for name in (first, second)]
    assert bases[0] is bases[1]
    basis = bases[0].detach().double()
    for name in (first, second):
        x = inputs(smaller, clips, name)  # coefficients further on do not change it
        expected = torch.linalg.lstsq(x @ basis.T, x @ weight(model, name).T).solution.T @ basis
        torch.testing.assert_close(held(smaller, name), expected, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(("preset", "size"), [("", 2), ("-3", 3), ("-4", 4), ("-all", 4)])
def test_basis_sharings_ranks_follow_its_formula(model: nn.Module, clips: Batches, preset: str, size: int) -> None:
    """`k = ⌊nx·nf·g·keep / (nx + nf·g)⌋` of `g` layers, nf × nx each; one more where the budget is not spent by it."""
    keep = 0.7
    _, plan = compressed(model, clips, f"basis-sharing{preset}", keep)
    blocks = {name.rpartition(".")[0] for name in plan.layers if name.startswith("layers.")}
    assert max(len(cls.layers) for cls in plan.classes) == min(size, len(blocks))
    for cls in plan.classes:
        nf, nx = (weight(model, cls.layers[0]).shape[side] for side in (0, 1))
        g = len(cls.layers)
        assert cls.rank in (max(1, formula := int(nx * nf * g * keep / (nx + nf * g))), formula + 1)


def test_basis_sharing_updates_at_small_sizes_alone() -> None:
    assert PRESETS["basis-sharing"].updated_below == 0.6


def test_d_rank_spends_ranks_by_the_root_of_effective_rank(model: nn.Module, clips: Batches) -> None:
    _, plan = compressed(model, clips, "d-rank", keep=0.5)
    wanted, cost = {}, {}
    for cls in plan.classes:
        x = torch.cat([inputs(model, clips, name) for name in cls.layers])
        stacked = torch.cat([weight(model, name).T for name in cls.layers], 1)
        energy = torch.linalg.svdvals(torch.linalg.cholesky(x.T @ x).T @ stacked).square()
        p = energy / energy.sum()
        cost[cls.layers] = sum(stacked.shape)
        wanted[cls.layers] = math.sqrt(float(torch.exp(-(p * p.log()).sum())) / cost[cls.layers])
    scale = 0.5 * plan.parameters_dense / sum(wanted[key] * cost[key] for key in wanted)
    ranks = {key: scale * value for key, value in wanted.items()}
    for key in ranks:
        if key[0].endswith((".q", ".k")):
            v = next(other for other in ranks if other[0] == key[0][:-1] + "v")
            ranks[v] += 0.3 * scale * wanted[key]
            ranks[key] *= 0.7
    assert max(ranks.values()) <= 8
    for cls in plan.classes:
        assert cls.rank is not None
        assert abs(cls.rank - ranks[cls.layers]) < 1.5


def test_two_sided_is_the_svd_in_both_metrics(model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, "two-sided")

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.sqrt()) @ vectors.T

    for name in NAMES:
        g, x = gradients(model, clips, name), inputs(model, clips, name)
        left = root(damped(torch.einsum("spm,spn->mn", g, g) / len(g)))
        right = root(damped(x.T @ x / len(x)))
        expected = torch.linalg.inv(left) @ truncated(left @ weight(model, name) @ right, rank_of(plan, name))
        torch.testing.assert_close(held(smaller, name), expected @ torch.linalg.inv(right), atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
@pytest.mark.parametrize("keep", [0.9, 0.45])
def test_all_presets_are_of_one_size(preset: Preset, keep: float, model: nn.Module, clips: Batches) -> None:
    smaller, plan = compressed(model, clips, preset.name, keep)
    freed = parameter_count(model) - parameter_count(smaller)
    assert freed == plan.parameters_dense - plan.parameters
    least = min(8 + 8, *(cls.parameters // (cls.rank or 1) for cls in plan.classes))
    assert keep * plan.parameters_dense - least < plan.parameters <= keep * plan.parameters_dense
    assert not torch.equal(smaller(clips[0][0]), model(clips[0][0]))


def test_layers_that_read_a_normalised_stream_are_found_by_running_the_model(model: nn.Module, clips: Batches) -> None:
    layers = find_layers(model)
    found = readers_of_norms(model, layers, clips[0], Classification())
    # the first block of this model reads the raw stream
    assert {name for name in found if name.startswith("layers.2.")} == {
        f"layers.2.{part}" for part in ("q", "k", "v", "fc1")
    }
    assert "layers.0.o" not in found
    assert "layers.3.fc2" not in found


def test_neighbours_are_the_same_matrix_of_consecutive_blocks(model: nn.Module) -> None:
    layers = find_layers(model)
    names = [[layers[i].name for i in group] for group in neighbours(layers, 3)]
    assert ["layers.0.q", "layers.1.q", "layers.2.q"] in names
    assert ["layers.3.q"] in names
    assert ["proj"] in names
    assert sorted(name for group in names for name in group) == sorted(layer.name for layer in layers)


def test_a_preset_goes_the_whole_way_and_is_refined(model: nn.Module, clips: Batches, tmp_path: Path) -> None:
    run = Pipeline(model, clips, Settings(keep=KEEP, preset="basis-sharing"))
    report, _ = compress_into(tmp_path / "out", run, clips, refinement=RefineSettings(steps=4, holdout=0.25))
    assert report["preset"] == "basis-sharing"
    assert report["solver"] == "basis-sharing"
    assert report["damage_predicted"] is None  # its price is not in units of the loss
    assert report["kept"] <= KEEP
    assert report["divergence_after"] <= report["divergence_before"]
    assert {"measure", "plan", "apply", "update", "refine", "save", "load", "evaluate"} <= set(report["seconds"])


def test_geo_sharing_goes_the_whole_way(model: nn.Module, clips: Batches, tmp_path: Path) -> None:
    settings = Settings(keep=KEEP, preset="geo-sharing", axes=4, include=("layers.2.*",))
    report, _ = compress_into(tmp_path / "out", Pipeline(model, clips, settings), clips)
    assert report["solver"] == "geo-sharing"
    assert report["kept"] <= KEEP


def test_bad_presets_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="--preset geo-sharing takes either --keep or --bases"):
        check_settings(Settings(keep=0.5, bases=3, preset="geo-sharing"))
    with pytest.raises(ValueError, match="--aggregate belongs to the search, and --preset geo-sharing has none"):
        check_settings(Settings(keep=0.5, aggregate=2.0, preset="geo-sharing"))
    with pytest.raises(ValueError, match="no preset is called 'svdllm'; there are geocolor, svd, "):
        find_preset("svdllm")
    with pytest.raises(ValueError, match="--preset svd needs --keep"):
        check_settings(Settings(bases=3, preset="svd"))
    with pytest.raises(ValueError, match="--solver belongs to the search"):
        check_settings(Settings(keep=0.5, preset="svd", solver="greedy"))


def test_the_search_updates_coefficients_where_that_is_nearer(model: nn.Module, clips: Batches) -> None:
    run = Pipeline(model, clips, Settings(keep=0.5, solver="greedy", time_limit=5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = run.prepared()
    assert prepared.updated == "nearer"
    plain = run.carried_out(replace(prepared, updated="never"))
    chosen = run.carried_out(prepared)
    always = run.carried_out(replace(prepared, updated="always"))
    loss = Classification()
    before, after, other = (divergence_of(model, each, clips, loss) for each in (plain, chosen, always))
    assert after == pytest.approx(min(before, other), rel=1e-5)
    plan = plan_of(chosen)
    assert plan is not None
    assert plan.predicted_damage == pytest.approx(prepared.plan.predicted_damage * after / before, rel=1e-4)


def test_near_the_dense_model_no_update_is_tried(model: nn.Module, clips: Batches) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for settings in (Settings(keep=0.8, solver="private"), Settings(keep=0.5, solver="private", trust_region=0.5)):
            assert Pipeline(model, clips, settings).prepared().updated == "never"


class Experts(nn.Module):
    """Each sample goes to the expert of its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (x[:, 0] < 0, x[:, 0] >= 0), strict=True):
            y[chosen] = expert(x[chosen])
        found: Tensor = self.head(torch.tanh(y))
        return found


def test_an_update_leaves_an_expert_alone_that_the_data_are_not_sent_to() -> None:
    torch.manual_seed(0)
    model = Experts().eval()
    x, y = torch.randn(256, 8), torch.randint(3, (256,))
    curvature = measure(model, [(x, y)])
    plan = geocolor.plan(geocolor.price(model, curvature, kinds=("in",)), keep=0.7, solver="private")
    smaller = geocolor.apply(model, plan, curvature)
    before = {name: layer.coefficients.weight.clone() for name, layer in factored_layers(smaller).items()}
    assert len(before) == 2
    update_coefficients(smaller, model, [(x[x[:, 0] < 0], y[x[:, 0] < 0])], curvature)
    changed = {
        name: not torch.equal(before[name], factored_layers(smaller)[name].coefficients.weight) for name in before
    }
    assert changed == {"experts.0": True, "experts.1": False}


class Narrow(nn.Module):
    """From one number to one number, by way of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.mix, self.narrow = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(torch.tanh(self.mix(torch.tanh(self.widen(x)))))
        return y


class Narrows(nn.Module):
    """A classifier of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Narrow() for _ in range(2))
        self.head = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        y: Tensor = self.head(x)
        return y


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_of_one_input_or_by_themselves_of_one_output_stay_dense(preset: str) -> None:
    torch.manual_seed(0)
    model = Narrows().eval()
    data = [(torch.randn(32, 1), torch.randint(3, (32,))) for _ in range(3)]
    smaller, plan = compressed(model, data, preset, keep=0.75)
    assert plan.kept <= 0.75
    alone = ("widen", "narrow") if PRESETS[preset].size == 1 else ("widen",)
    for name in (f"blocks.{block}.{name}" for block in range(2) for name in alone):
        assert plan.class_of(name).kind == "dense"
    assert parameter_count(smaller) < parameter_count(model)
