"""Tiny models, sparse in every way that a recipe can ask for, and prompts for them."""

from __future__ import annotations

import dataclasses

import torch

from rsparse import sparsify
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.runtime import generate
from tests.support.models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.support.recipes import calibration_of, uniform, with_vectors

NEW = 24
PROMPTS = ["the river", "under her tower and then the stone walks", "bread"]
ALL_TYPES = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"]


def by_modules(model, prompts, **options):
    return generate(model, tiny_tokenizer(), prompts, **{"max_new_tokens": NEW, "ignore_eos": True, **options})


def with_random_head(model):
    """A tied head repeats the last token, whatever the blocks do."""
    head = torch.randn(VOCABULARY, 48, generator=torch.Generator().manual_seed(1))
    model.lm_head.weight = torch.nn.Parameter(head.to(model.dtype))
    return model


def dense(model_type, **overrides):
    return with_random_head(tiny_model(model_type, **overrides))


def sparse(model_type, grouping="group", stacked=True, rho=0.6, compensated=True, criterion="paper"):
    model = tiny_model(model_type)
    recipe = uniform(model, 0.5, rho, grouping=grouping, stacked=stacked, criterion=criterion)
    sparsify(model, recipe, calibration_of(model_type))
    return with_random_head(with_vectors(model) if compensated else model)


def uneven(model_type="llama"):
    """Per-linear units where neighbours differ: some dense, some without factors, other ranks and criteria."""
    model = tiny_model(model_type)
    recipe = uniform(model, 0.5)
    kinds = {
        "q_proj": {"sparsity": 0.4, "rho": 0.7, "criterion": "paper"},
        "k_proj": {"sparsity": 0.0},
        "v_proj": {"sparsity": 0.6, "rho": 0.5},
        "o_proj": {"sparsity": 0.3},
        "gate_proj": {"sparsity": 0.0},
        "up_proj": {"sparsity": 0.5, "rho": 0.4, "criterion": "column_norm"},
        "down_proj": {"sparsity": 0.0},
    }
    units = {
        name: UnitRecipe.uniform(
            dict(zip(unit.linears, unit.outs, strict=True)), unit.in_features, **kinds[name.split(".")[-1]]
        )
        for name, unit in recipe.units.items()
    }
    assert isinstance(recipe, Recipe)
    sparsify(model, dataclasses.replace(recipe, units=units), calibration_of(model_type))
    return with_random_head(model)
