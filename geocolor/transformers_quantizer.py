"""How transformers loads a compressed model: geocolor registers as a quantization method (DESIGN §8)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)

from geocolor.backend import merge_to_dense, skeleton
from geocolor.manifest import check_manifest
from geocolor.placement import check_placement
from geocolor.transformers_format import QUANT_METHOD, GeocolorConfig, declare_ties, names_in, renamings
from geocolor.unpacking import unpack_as_planned
from geocolor.weight_files import CONFIG_FILE, SUFFIX, check_depth, no_safetensors


class GeocolorQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds the factored layers before the weights are read, renames coefficients, restores the sharing."""

    is_trainable = True
    is_qat_trainable = True
    is_compileable = True

    def __init__(self, quantization_config: GeocolorConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.names: dict[str, str] = {}
        if not self.pre_quantized:
            raise ValueError(
                "a dense checkpoint cannot be compressed while it loads: load it without quantization_config, apply "
                "the plan with geocolor.apply, then save it"
            )

    def is_serializable(self) -> bool:
        return True

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Called with the map that was asked for, and of "auto" once more, with what was made of it."""
        if isinstance(device_map, Mapping):
            check_placement(device_map, self.quantization_config.plan, self.names)

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Nothing is changed: it is the one step that is shown the config before its layers are built."""
        layers = len(self.quantization_config.plan.layers)
        file = Path(config.name_or_path) / CONFIG_FILE
        check_depth(config.to_dict(), layers, f"the plan has only {layers} layers", file)
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, device_map: Any = None, **_: Any
    ) -> None:
        files = [Path(file) for file in checkpoint_files or ()]
        for file in files:
            if file.suffix != SUFFIX:
                raise ValueError(no_safetensors(file.parent, file.name))
        for folder in {file.parent for file in files}:
            check_manifest(folder, read=[file.name for file in files if file.parent == folder])
        plan = self.quantization_config.plan
        unpack_as_planned(model, plan.layers)
        self.names = names_in(model, plan)
        self.validate_environment(device_map=device_map)
        skeleton(model, plan, self.names)
        declare_ties(model, plan, self.names)

    def get_weight_conversions(self) -> list[WeightRenaming]:
        return renamings(self.quantization_config.plan, self.names)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        # Factors are ordinary floats: .half(), .float() and training are as allowed as on the dense model.
        model.is_quantized = False
        if hasattr(model, "quantization_method"):
            del model.quantization_method
        model.geocolor_plan = self.quantization_config.plan
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> PreTrainedModel:
        # save_pretrained leaves the dtype in the config as text
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        dense: PreTrainedModel = merge_to_dense(model, inplace=True).to(wanted)
        return dense


def register() -> None:
    """Make transformers' Auto classes know the method; a second call changes nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(GeocolorConfig)
        register_quantizer(QUANT_METHOD)(GeocolorQuantizer)


register()
