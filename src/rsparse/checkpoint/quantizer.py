"""transformers' hooks: a checkpoint whose quantization_config says `rsparse` loads as a sparse model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from rsparse.errors import RSparseError
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import begin, install_unit, recipe_state, set_backend, unit_members

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHOD = "rsparse"


class RSparseConfig(QuantizationConfigMixin):
    """`quantization_config` of a checkpoint: the recipe, and the names of the units that have a channel scale."""

    def __init__(self, recipe: dict[str, Any] | None = None, scaled_units: list[str] | None = None, **unknown: Any) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise RSparseError(f"checkpoint: unknown key {sorted(unknown)[0]!r} in quantization_config")
        self.quant_method = METHOD  # type: ignore[assignment]
        self.recipe = Recipe.from_dict(recipe, where="checkpoint's recipe").to_dict()
        self.scaled_units = list(scaled_units or [])

    @classmethod
    def of(cls, model: PreTrainedModel) -> RSparseConfig:
        """The config of a sparse model in memory."""
        scaled = [name for name, members in unit_members(model).items() if members[0].channel_scale is not None]
        return cls(recipe_state(model).recipe.to_dict(), scaled)


class RSparseQuantizer(HfQuantizer):
    """Puts empty sparse linears in place before the weights arrive, and fills in thresholds after."""

    requires_calibration = True
    quantization_config: RSparseConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        recipe = Recipe.from_dict(self.quantization_config.recipe)
        if not recipe.settled:
            raise RSparseError("the checkpoint's recipe lacks thresholds; it was not written by rsparse")
        begin(model, recipe)
        scaled = set(self.quantization_config.scaled_units)
        for name, unit in recipe.units.items():
            if unit.kept_share < 1:
                install_unit(model, name, unit, scaled=name in scaled)
        # Scores are compared in fp32; a scale rounded to bf16 would choose other channels.
        model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), "channel_scale"}
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        units = recipe_state(model).recipe.units
        for name, members in unit_members(model).items():
            _check_shapes(name, units[name], members)
            # not among the checkpoint's tensors: made anew, on the device that the weights went to
            members[0].threshold = members[0].weight.new_full((), units[name].threshold or 0.0, dtype=torch.float32)
        set_backend(model, "auto")  # before, the model was on no real device
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _check_shapes(name: str, unit: UnitRecipe, members: list[RSparseLinear]) -> None:
    """Some versions of transformers take a tensor of another shape without a word."""
    for member, rank in zip(members, unit.linear_ranks, strict=True):
        wanted = {"U": (member.out_features, rank), "V": (member.in_features, rank), "channel_scale": (member.in_features,)}
        wanted["compensation"] = (member.out_features,)
        for key, shape in wanted.items():
            tensor = getattr(member, key)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise RSparseError(
                    f"checkpoint: {key} of unit {name} is {list(tensor.shape)}, and the recipe says {list(shape)}"
                )


def register() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` load rsparse checkpoints. Again is harmless."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(RSparseConfig)
        register_quantizer(METHOD)(RSparseQuantizer)
