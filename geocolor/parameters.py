"""Parameters of a live model, each place in memory counted once however many names it has."""

from torch import Tensor, nn

from geocolor.layers import storage_key


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, shared storage counted once."""
    return sum(parameter.numel() for parameter in _unique(model))


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in memory, shared storage counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in _unique(model))


def _unique(model: nn.Module) -> list[Tensor]:
    unique: dict[tuple[str, int], Tensor] = {}
    for parameter in model.parameters():
        key = storage_key(parameter)
        if key not in unique or unique[key].numel() < parameter.numel():
            unique[key] = parameter
    return list(unique.values())
