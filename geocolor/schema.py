"""What is common to the schemas of the files: frozen, nothing unknown, no NaN, names and sizes within limits."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from geocolor.layers import Layer

#: Dotted name of a layer, or any other short text.
Text = Annotated[str, Field(max_length=1000)]
Size = Annotated[int, Field(gt=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LayerShape(Frozen):
    """What the backend must know of a layer to rebuild it: `W` is `m × n`; `geometry` as in `Layer`."""

    m: Size
    n: Size
    form: Literal["linear", "conv1d", "conv2d"]
    geometry: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(default=(), max_length=8)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.form != "conv2d":
            if self.geometry:
                raise ValueError(f"a layer of form {self.form!r} has no geometry")
        elif len(self.geometry) != 8 or not all(self.geometry[i] for i in (0, 1, 2, 3, 6, 7)):
            raise ValueError("geometry is kernel, stride, padding and dilation, two numbers each")
        elif self.n % (self.geometry[0] * self.geometry[1]):
            raise ValueError(f"width {self.n} is no multiple of the kernel's {self.geometry[0]} × {self.geometry[1]}")
        return self


class NamedShape(LayerShape):
    name: Text

    def layer(self) -> Layer:
        return Layer(self.name, self.m, self.n, self.form, self.geometry)


Schema = TypeVar("Schema", bound=BaseModel)


def validated(schema: type[Schema], document: Any, source: str, whole: str, remedy: str) -> Schema:
    """`document` as a `schema`. Raises `ValueError` naming `source` and the first place that is wrong."""
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(_shown(str(part)) for part in first["loc"]) or whole
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        problem = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{source}: {where}: {problem}{more}; {remedy}") from error


def _shown(part: str) -> str:
    return part[:80] if part.isprintable() else ascii(part)[:80]
