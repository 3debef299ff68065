"""Packed modules opened where that brings layers into scope, before a command measures or compresses a model."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from geocolor.layers import find_layers
from geocolor.summary import plural
from geocolor.unpacking import is_packed, pack, unpack


def opened(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = (), files: Path | None = None
) -> tuple[nn.Module, str | None]:
    """The model with its packed modules opened, in place, and a line that says so.

    Where none is packed, or none of their layers would be in scope, the model stays as it is and there is nothing to
    say. With a folder `files` what is opened lies in files there (`geocolor.mapped`). A saved model loads again on the
    packed one: `load` and transformers open what the plan names. Raises `ValueError` where the model itself is a packed
    module: then no name in the plan would say what to open.
    """
    packed = [name for name, module in model.named_modules() if is_packed(module)]
    if "" in packed:
        raise ValueError(
            f"the model is itself a packed module ({type(model).__name__}), and a compressed one could not be loaded "
            "again: put it into a module of your own, or compress geocolor.unpack(model)"
        )
    if not packed:
        return model, None
    model = unpack(model, inplace=True, files=files)
    found = [layer.name for layer in find_layers(model, include, exclude)]
    inside = [name for name in found if name.startswith(tuple(f"{module}." for module in packed))]
    if not inside:
        return pack(model, files), None
    return model, (
        f"opened {plural(len(packed), 'packed module')} (the first is {packed[0]}) into {plural(len(inside), 'layer')} "
        "in scope; the smaller model keeps them open, and loads as any other"
    )
