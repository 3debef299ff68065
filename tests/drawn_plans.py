"""Plans of several namings and sizes, made without a model: what figures and tables are shown."""

import math
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from geocolor.plans import Fingerprint, Kind, Plan
from geocolor.schema import LayerShape
from tests.handmade import planned_class

Shapes = Mapping[str, tuple[int, int]]


def draw_up(
    shapes: Shapes, shared: Sequence[tuple[Kind, Sequence[str]]] = (), dense: Collection[str] = (), **fields: Any
) -> Plan:
    """A plan with the given classes; other layers get a basis of their own, on either side, unless `dense`."""
    chance = random.Random(0)
    layers = {name: LayerShape(m=m, n=n, form="linear") for name, (m, n) in shapes.items()}
    taken = {name for _, names in shared for name in names}
    groups: list[tuple[Kind, Sequence[str]]] = [
        *shared,
        *(("dense" if name in dense else chance.choice(("in", "out")), [name]) for name in shapes if name not in taken),
    ]
    classes = []
    for kind, names in groups:
        limit = min(min(shapes[name]) for name in names)
        rank = None if kind == "dense" else max(1, int(limit * chance.uniform(0.1, 0.5)))
        right_rank = max(1, rank - 1) if kind == "both" and rank else None
        damage = {name: 0.0 if kind == "dense" else 10 ** chance.uniform(-5, -2) for name in names}
        classes.append(planned_class(kind, names, layers, rank, right_rank, damage))
    settings = {
        "keep": 0.5,
        "price": 1e-8,
        "objective": 0.03,
        "lower_bound": 0.0291,
        "gap": 0.03,
        "solver": "greedy",
        "curvature": {"unit": "nats per token"},
    }
    return Plan(
        fingerprint=Fingerprint(sha256="0", dtype="float32"), layers=layers, classes=tuple(classes), **settings | fields
    )


def decoder(blocks: int = 8) -> Plan:
    """Seven matrix kinds a block; q and k share, sometimes v; gate and up share; o across blocks."""
    wide, narrow, hidden = (192, 192), (96, 192), (512, 192)
    kinds = {
        "self_attn.q_proj": wide,
        "self_attn.k_proj": narrow,
        "self_attn.v_proj": narrow,
        "self_attn.o_proj": wide,
        "mlp.gate_proj": hidden,
        "mlp.up_proj": hidden,
        "mlp.down_proj": hidden[::-1],
    }
    shapes = {f"model.layers.{b}.{kind}": shape for b in range(blocks) for kind, shape in kinds.items()}
    shared: list[tuple[Kind, Sequence[str]]] = []
    for b in range(blocks):
        prefix = f"model.layers.{b}."
        shared.append(("in", [f"{prefix}self_attn.{x}_proj" for x in ("qkv" if b % 2 else "qk")]))
        shared.append(("in", [f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"]))
    output = "model.layers.{}.self_attn.o_proj".format
    shared += [("both", [output(b), output(b + 1)]) for b in range(0, blocks - 1, 4)]
    return draw_up(shapes, shared, dense=["model.layers.0.self_attn.v_proj"])


def deep() -> Plan:
    """More layers than can be named one by one."""
    return decoder(16)


def encoder() -> Plan:
    """Names of which one is the end of another, and a pooler outside of the blocks."""
    width, hidden = 48, 96
    kinds = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
    }
    shapes = {f"bert.encoder.layer.{b}.{kind}": shape for b in range(6) for kind, shape in kinds.items()}
    shapes["bert.pooler.dense"] = (width, width)
    shared: list[tuple[Kind, Sequence[str]]] = [
        ("in", [f"bert.encoder.layer.{b}.attention.self.{x}" for x in ("query", "key")]) for b in range(6)
    ]
    return draw_up(shapes, shared, dense=["bert.pooler.dense"], gap=math.inf, lower_bound=-math.inf)


def residual() -> Plan:
    """Three stages of nine blocks with projections in a Sequential, and a stem."""
    shapes, width = {"conv1": (16, 27)}, 16
    for stage, channels in enumerate((16, 32, 64), start=1):
        for b in range(9):
            shapes[f"layer{stage}.{b}.conv1"] = (channels, 9 * width)
            shapes[f"layer{stage}.{b}.conv2"] = (channels, 9 * channels)
            if channels != width:
                shapes[f"layer{stage}.{b}.downsample.0"] = (channels, width)
            width = channels
    return draw_up(
        shapes,
        [("in", [f"layer1.{b}.conv1" for b in range(4)]), ("both", ["layer3.4.conv2", "layer3.5.conv2"])],
        dense=["conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"],
    )


def wide() -> Plan:
    """Twelve matrix kinds with long names."""
    shapes = {
        f"decoder.block.{b}.branch.SomeQuiteLongName{kind}.projection_matrix": (64, 64)
        for b in range(5)
        for kind in range(12)
    }
    return draw_up(shapes, [("both", [name for name in shapes if f".{b}." in name][2:5]) for b in range(5)])


def plain() -> Plan:
    """No blocks, and a name that a formula could be mistaken for."""
    shapes = {"stem": (64, 40), "first": (256, 64), "second": (256, 256), "third": (256, 256), "out$x$": (12, 256)}
    return draw_up(shapes, [("both", ["second", "third"])], dense=["stem"])


def single() -> Plan:
    return draw_up({"fc": (10, 784)})


def untouched() -> Plan:
    return draw_up({"0": (10, 784), "2": (10, 10)}, dense=["0", "2"], keep=1.0, gap=0.0, curvature={})


#: What the tests of tables and figures draw.
PLANS = [decoder, encoder, residual, wide, plain, single, untouched]
