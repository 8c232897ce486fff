"""What sparsify makes of a model, against closed forms and a second implementation by hooks."""

from __future__ import annotations

import pytest
import torch

from rsparse.calibration.histogram import lookup_threshold
from rsparse.conversion import relevel, sparsify
from rsparse.models.layout import linear_weights, sites
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import achieved_sparsity, is_sparse, measuring, state, unit_members
from tests.support.formula import factors_of, run_formula, scale_of
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import FITS, LAYOUTS, TYPES, calibration_of, sparse_of, uniform
from tests.support.tolerance import assert_close_rms, relative_rms

every_kind = pytest.mark.parametrize(
    ("model_type", "grouping", "stacked", "fit"),
    [(model_type, *layout, fit) for model_type in TYPES for layout in LAYOUTS for fit in FITS],
)


def dense(model_type, dtype=torch.float64):
    return tiny_model(model_type, dtype=dtype)


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


# ---- properties


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("model_type", TYPES)
def test_sparsity_zero_is_the_dense_model_bit_for_bit(model_type, grouping):
    model, ids = dense(model_type, torch.float32), token_ids(3, 9)
    before = logits(model, ids)
    sparsify(model, uniform(model, 0.0, grouping=grouping), calibration_of(model_type))
    assert is_sparse(model)
    assert not unit_members(model)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("tokens", [24, 5])  # by a masked GEMM; by gathering
@pytest.mark.parametrize("criterion", ["magnitude", "column_norm"])
@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("model_type", TYPES)
def test_rho_one_is_sparse_only(model_type, grouping, criterion, tokens):
    model = sparse_of(model_type, grouping, False, "svd", 1.0, criterion)
    assert not factors_of(model)
    ids = token_ids(1, tokens)
    expected, _ = run_formula(dense(model_type), state(model).recipe, {}, ids)
    assert_close_rms(logits(model, ids), expected, torch.float64)
    assert relative_rms(expected, logits(dense(model_type), ids)) > 0.1


@every_kind
def test_the_forward_pass_is_the_papers_formula(model_type, grouping, stacked, fit):
    model, reference = sparse_of(model_type, grouping, stacked, fit), dense(model_type)
    recipe, factors = state(model).recipe, factors_of(model)
    assert len(factors) == sum(len(unit.linears) for unit in recipe.units.values())
    for ids in (token_ids(3, 20), token_ids(1, 7)):
        expected, _ = run_formula(reference, recipe, factors, ids)
        assert_close_rms(logits(model, ids), expected, torch.float64)


@every_kind
def test_achieved_sparsity_is_the_asked_one_on_the_settling_text(model_type, grouping, stacked, fit):
    model, ids = sparse_of(model_type, grouping, stacked, fit), calibration_of(model_type).windows
    with measuring(model) as meter:
        logits(model, ids)
    total, by_unit = achieved_sparsity(model, meter)
    assert total == pytest.approx(0.5, abs=0.003)
    assert list(by_unit) == list(state(model).recipe.units)
    # The first site sees embeddings: one per token, so its scores come in lumps as large as the commonest token.
    lump = int(ids[:, 1:].flatten().bincount().max()) / ids[:, 1:].numel() / model.config.hidden_size
    for name, value in by_unit.items():
        first = name.startswith("model.layers.0.") and name.endswith(("qkv", "q_proj", "k_proj", "v_proj"))
        assert value == pytest.approx(0.5, abs=max(0.003, lump) if first else 0.003), name
    assert meter.sparse_rows == len(ids) * (ids.shape[1] - 1)
    # counted again, from the masks and the tensors
    _, kept = run_formula(dense(model_type), state(model).recipe, factors_of(model), ids)
    read = sum(kept[name] * model.get_submodule(name).weight.numel() for name in kept)
    members = [member for group in unit_members(model).values() for member in group]
    read += sum({tensor.data_ptr(): tensor.numel() for m in members for tensor in (m.U, m.V)}.values())
    assert total == pytest.approx(1 - read / linear_weights(model), abs=1e-9)


@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_other_levels_are_met_too(sparsity):
    model, ids = sparse_of("qwen2", sparsity=sparsity, rho=0.9), calibration_of("qwen2").windows
    with measuring(model) as meter:
        logits(model, ids)
    assert achieved_sparsity(model, meter)[0] == pytest.approx(sparsity, abs=0.003)


def test_linears_outside_the_recipe_count_as_read():
    model = tiny_model("llama")
    recipe = uniform(model, 0.5)
    kept = {name: unit for name, unit in recipe.units.items() if "down" in name}
    sparsify(model, type(recipe)("llama", kept), calibration_of("llama"), settle_tokens=1 << 20)
    assert sum(isinstance(module, RSparseLinear) for module in model.modules()) == 2
    with measuring(model) as meter:
        logits(model, calibration_of("llama").windows)
    total, by_unit = achieved_sparsity(model, meter)
    assert set(by_unit) == set(kept)
    share = sum(unit.size for unit in kept.values()) / linear_weights(model)
    assert total == pytest.approx(0.5 * share, abs=0.001)


# ---- factors


def inputs(model_type, name):
    """Calibration rows of the site that linear `name` reads."""
    for index, block in enumerate(sites(tiny_model(model_type))):
        for site in block:
            if name in site.linears:
                return calibration_of(model_type).block(index)[site.name].rows.double()
    raise AssertionError(name)


@every_kind
def test_factors_are_near_the_optimum(model_type, grouping, stacked, fit):
    model = sparse_of(model_type, grouping, stacked, fit)
    for unit in state(model).recipe.units.values():
        weights = [model.get_submodule(name).weight.detach() for name in unit.linears]
        products = [U @ V.T for U, V in (factors_of(model)[name] for name in unit.linears)]
        if len(unit.ranks) == 1:
            weights, products = [torch.cat(weights)], [torch.cat(products)]
        for W, M, rank in zip(weights, products, unit.ranks, strict=True):
            assert torch.linalg.matrix_rank(M) == rank > 0
            if fit == "svd":
                best = float(torch.linalg.svdvals(W)[rank:].square().sum())
                assert float((W - M).square().sum()) <= 1.01 * best
            else:
                x = inputs(model_type, unit.linears[0])
                cut = x.abs().flatten().sort(descending=True).values[round(unit.kept_share * x.numel())]
                dropped = torch.where(x.abs() > cut, 0, x)
                _, vectors = torch.linalg.eigh(W @ dropped.T @ dropped @ W.T)
                P = vectors[:, -rank:]
                best = float((dropped @ (W - P @ P.T @ W).T).square().sum())
                assert float((dropped @ (W - M).T).square().sum()) <= 1.01 * best


@every_kind
def test_ranks_and_shapes_follow_the_recipe(model_type, grouping, stacked, fit):
    model = sparse_of(model_type, grouping, stacked, fit)
    for key, members in unit_members(model).items():
        unit = state(model).recipe.units[key]
        ranks = unit.ranks * len(members) if len(unit.ranks) == 1 else unit.ranks
        for member, rank, out in zip(members, ranks, unit.outs, strict=True):
            assert member.rank == rank
            assert (member.U.shape, member.V.shape) == ((out, rank), (unit.in_features, rank))
            assert member.U.dtype == member.V.dtype == member.weight.dtype
            assert member.U.is_contiguous()
            assert member.V.is_contiguous()
        assert all((member.V is members[0].V) == (len(unit.ranks) == 1) for member in members[1:])


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("criterion", ["magnitude", "column_norm", "paper", "residual_norm"])
def test_scales_are_of_the_stacked_columns(criterion, grouping):
    model = sparse_of("qwen2", grouping, False, "dropped", 0.6, criterion)
    for key, members in unit_members(model).items():
        unit = state(model).recipe.units[key]
        scale = members[0].channel_scale
        if criterion == "residual_norm":
            residuals = [member.weight - member.U @ member.V.T for member in members]
            expected = torch.cat(residuals).square().sum(0).sqrt()
        else:
            expected = scale_of(model, unit)
        if criterion == "magnitude":
            assert scale is expected is None
        else:
            assert scale.dtype == torch.float32
            assert torch.allclose(scale.double(), expected.double(), rtol=1e-6)


# ---- thresholds


def test_thresholds_are_solved_with_everything_before_already_sparse():
    """Each is the quantile of its scores in the sparse model, not in the dense one."""
    model, ids = sparse_of("llama"), calibration_of("llama").windows
    seen = {}
    members = {key: group[0] for key, group in unit_members(model).items()}
    handles = [
        member.register_forward_pre_hook(lambda module, args, key=key: seen.update({key: args[0]}))
        for key, member in members.items()
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    found = state(model).recipe.units
    for key, x in seen.items():
        scores = x[:, 1:].abs() * (1 if members[key].channel_scale is None else members[key].channel_scale)
        exact = torch.quantile(scores.flatten(), 1 - found[key].kept_share)
        assert found[key].threshold == pytest.approx(float(exact), rel=1 / 256)
        assert float(members[key].threshold) == pytest.approx(found[key].threshold, rel=1e-7)


def test_looked_up_thresholds_come_from_the_dense_models_histograms():
    model, calibration = tiny_model("llama"), calibration_of("llama")
    sparsify(model, uniform(model, 0.5, 0.6, grouping="group", stacked=True, criterion="paper"), calibration, settle_tokens=0)
    units = state(model).recipe.units
    for index, block in enumerate(sites(model)):
        for site in block:
            scale = scale_of(model, units[site.name])
            expected = lookup_threshold(calibration.histogram(index, site.name), scale, units[site.name].kept_share)
            assert units[site.name].threshold == pytest.approx(expected, rel=1e-9)
    settled = state(sparse_of("llama")).recipe.units
    assert units["model.layers.1.down"].threshold != pytest.approx(settled["model.layers.1.down"].threshold, rel=1e-2)


def test_relevel_moves_thresholds_and_nothing_else():
    model, calibration = tiny_model("llama"), calibration_of("llama")
    sparsify(model, uniform(model, 0.5, 0.6, criterion="column_norm"), calibration)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = list(state(model).recipe.units)
    levels = {name: 0.2 + 0.04 * number for number, name in enumerate(names)}
    relevel(model, calibration, levels)
    for index, block in enumerate(sites(model)):
        for site in block:
            for name, member in site.linears.items():
                expected = lookup_threshold(calibration.histogram(index, site.name), member.channel_scale, levels[name])
                assert float(member.threshold) == pytest.approx(expected, rel=1e-6)
                assert state(model).recipe.units[name].threshold == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
