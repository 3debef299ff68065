"""The names, ties and config under which transformers saves a compressed model (DESIGN §8).

Coefficients are stored under the name of the weight they stand for, in their own smaller shape, so that a load without
geocolor fails on the shape instead of going on with random weights. Facts below were read in transformers 5.23.
"""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming
from transformers.utils.quantization_config import QuantizationConfigMixin

from geocolor.factored_layers import FactoredLayer
from geocolor.plans import FORMAT_VERSION, Plan, parse_plan

QUANT_METHOD = "geocolor"

_BASIS_KEY = re.compile(r"\.(left|right)\.map\.weight$")
_TARGET = r"\1.coefficients.weight"


class GeocolorConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a saved model: the plan, and the version of this format.

    Raises `ValueError` with a sentence where the plan is damaged or of a version this geocolor does not read.
    """

    def __init__(self, plan: Plan | dict[str, Any] | None = None, format_version: Any = FORMAT_VERSION, **_: Any):
        if type(format_version) is not int or format_version != FORMAT_VERSION:
            raise ValueError(
                f"config.json: the model was saved in geocolor format {format_version!r:.80}, this geocolor reads "
                f"{FORMAT_VERSION}; install the geocolor that saved it"
            )
        self.quant_method = QUANT_METHOD
        self.format_version = format_version
        self.plan = plan if isinstance(plan, Plan) else parse_plan(plan, "config.json, quantization_config.plan")

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "plan": self.plan.model_dump(mode="json"),
        }


def is_transformers_model(model: nn.Module) -> bool:
    return isinstance(model, PreTrainedModel)


def attach(model: PreTrainedModel, plan: Plan, names: dict[str, str]) -> None:
    """Give a model with factored layers what `save_pretrained` needs: the plan in its config, names, ties."""
    _forget_names(model)
    model.config.quantization_config = GeocolorConfig(plan)
    declare_ties(model, plan, names)
    model._weight_conversions = _own_conversions(model) + renamings(plan, names)


def detach(model: PreTrainedModel) -> None:
    """Undo `attach`, or what loading did."""
    _forget_names(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            if isinstance(getattr(module.config, "quantization_config", None), GeocolorConfig):
                del module.config.quantization_config
            quantizer = getattr(module, "hf_quantizer", None)
            if isinstance(getattr(quantizer, "quantization_config", None), GeocolorConfig):
                del module.hf_quantizer


def _forget_names(model: PreTrainedModel) -> None:
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [entry for entry in conversions if not _is_ours(entry)]
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        tied = model.__dict__.get(attribute)
        if tied:
            setattr(model, attribute, {key: value for key, value in tied.items() if not _BASIS_KEY.search(key)})


def names_in(model: PreTrainedModel, plan: Plan) -> dict[str, str]:
    """Where the layers of the plan are in this model.

    A model without the head of the one that was saved lacks the prefix of its base model, a model with another head has
    it; layers of the head itself may be missing. Raises `ValueError` where anything else is.
    """
    modules = {name for name, _ in model.named_modules()}
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    names: dict[str, str] = {}
    missing = []
    for name in plan.layers:
        candidates = (name, name.removeprefix(prefix), prefix + name)
        found = next((candidate for candidate in candidates if candidate in modules), None)
        if found is None:
            missing.append(name)
        else:
            names[name] = found
    headed = bool(prefix) and any(name.startswith(prefix) for name in plan.layers)
    lost = [name for name in missing if not headed or name.startswith(prefix)]
    if lost:
        raise ValueError(
            f"the plan was made for another model: {type(model).__name__} has no layer {lost[0]!r}; load it with the "
            "class under 'architectures' in config.json"
        )
    for cls in plan.classes:
        if cls.kind != "dense" and cls.layers[0] in missing and any(name in names for name in cls.layers):
            raise ValueError(
                f"the basis of {cls.layers[0]!r} is shared with layers that {type(model).__name__} has, but not this "
                "one; load the model with its head and take the base model from it"
            )
    return names


def ties(model: nn.Module, plan: Plan, names: dict[str, str]) -> dict[str, str]:
    """Every second name of a shared basis, and the one it is stored under: that of the first layer of its class."""
    tied = {}
    for cls in plan.classes:
        members = [names[name] for name in cls.layers if name in names]
        for member in members[1:]:
            factored = model.get_submodule(member)
            assert isinstance(factored, FactoredLayer)
            for side in factored.bases():
                tied[f"{member}.{side}.map.weight"] = f"{members[0]}.{side}.map.weight"
    return tied


def declare_ties(model: PreTrainedModel, plan: Plan, names: dict[str, str]) -> None:
    # With tie_word_embeddings=False transformers expands _tied_weights_keys (read on saving) to nothing,
    # so all_tied_weights_keys (read on loading) is filled by hand.
    tied = ties(model, plan, names)
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **tied}
    model.all_tied_weights_keys = {**getattr(model, "all_tied_weights_keys", {}), **tied}


def renamings(plan: Plan, names: dict[str, str]) -> list[WeightRenaming]:
    """One renaming `name.weight` → `name.coefficients.weight` for all layers, with and without the base prefix.

    transformers reverses it on saving; it expands `\\1` alone, and nested groups confuse it, hence whole names.
    """
    factored = plan.factored_layers
    spellings = sorted({*factored, *(names[name] for name in factored if name in names)})
    if not spellings:
        return []
    return [WeightRenaming(rf"^({'|'.join(map(re.escape, spellings))})\.weight", _TARGET)]


def _is_ours(entry: object) -> bool:
    return isinstance(entry, WeightRenaming) and entry._original_target_patterns == [_TARGET]


def _own_conversions(model: PreTrainedModel) -> list[Any]:
    """The renamings the model saves with anyway: those it was loaded with, else the defaults of its architecture."""
    loaded_with = getattr(model, "_weight_conversions", None)
    if loaded_with is not None:
        return list(loaded_with)
    defaults = get_model_conversion_mapping(model, add_legacy=False)
    return [entry for entry in defaults if not isinstance(entry, PrefixChange)]
