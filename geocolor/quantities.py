"""Quantities as people read them: 1.23 M, 4.2 MB, 3.1 ms, +3.2 %. What is not there reads "–"."""

import math
import re

MISSING = "–"

_TRAILING_ZEROS = re.compile(r"(?:\.0+|(\.\d*?)0+)(?=\D|$)")
_COUNT = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_TIME = ((1.0, " s"), (1e-3, " ms"), (1e-6, " µs"), (1e-9, " ns"))


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits; powers of ten only where the zeros would have to be counted.

    >>> number(0.031234), number(123.456), number(0.0000321), number(0), number(float("inf"))
    ('0.0312', '123', '3.21e-5', '0', '∞')
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    sign = "−" if value < 0 else ""
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if power < -4 or power > 6:
        return f"{sign}{mantissa}e{power}"
    return f"{sign}{float(f'{mantissa}e{power}'):.{max(0, digits - 1 - power)}f}"


def short(value: float) -> str:
    """A round number without its trailing zeros, for axes.

    >>> short(0.001), short(20.0), short(1e-7), short(0)
    ('0.001', '20', '1e-7', '0')
    """
    return _TRAILING_ZEROS.sub(r"\1", number(value))


def short_count(value: float) -> str:
    """A round number of parameters, for axes.

    >>> short_count(1_500_000), short_count(2000), short_count(0)
    ('1.5 M', '2 k', '0')
    """
    return _TRAILING_ZEROS.sub(r"\1", count(value))


def count(value: float | None) -> str:
    """A number of parameters.

    >>> count(1234567), count(999), count(12_000), count(999_999)
    ('1.23 M', '999', '12.0 k', '1.00 M')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if abs(value) < 1000:
        return f"{value:.0f}"
    return _scaled(value, _COUNT)


def size(value: float | None) -> str:
    """Bytes, in powers of 1000 as disks are sold.

    >>> size(4_200_000), size(17)
    ('4.20 MB', '17 B')
    """
    text = count(value)
    if text.endswith((MISSING, "∞")):
        return text
    return (text if " " in text else f"{text} ").replace(" k", " kB") + ("" if text.endswith("k") else "B")


def parse_size(text: str) -> int:
    """Bytes, as people write them; Ki, Mi, Gi and Ti are powers of 1024. Raises ValueError where it is no such size.

    >>> parse_size("8GB"), parse_size("1.5 GiB"), parse_size("300m"), parse_size("4096")
    (8000000000, 1610612736, 300000000, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(?:([KMGT])(I?))?B?\s*", text.upper())
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is not an amount of memory: write it like 8GB, 512MB or 1.5GiB")
    power = "KMGT".index(found[2]) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.0031), duration(42.3), duration(200), duration(7384)
    ('3.10 ms', '42.3 s', '3 min 20 s', '2 h 3 min')
    """
    if seconds is None or not math.isfinite(seconds) or seconds == 0:
        return number(seconds) + (" s" if seconds == 0 else "")
    if seconds >= 119.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
    return _scaled(seconds, _TIME)


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """
    >>> percent(0.8), percent(0.0321, signed=True), percent(-0.5, signed=True), percent(0.00004)
    ('80.0 %', '+3.2 %', '−50.0 %', '0.004 %')
    """
    if fraction is None or not math.isfinite(fraction):
        return number(fraction)
    value = 100 * fraction
    text = number(abs(value), 1) if 0 < abs(value) < 0.05 else f"{abs(value):.1f}"
    sign = "−" if value < 0 else "+" if signed and value > 0 else ""
    return f"{sign}{text} %"


def change(before: float | None, after: float | None) -> str:
    """From `before` to `after` in percent; nothing where that has no meaning.

    >>> change(200, 150), change(0, 1), change(None, 1)
    ('−25.0 %', '–', '–')
    """
    if before is None or after is None or before == 0:
        return MISSING
    return percent((after - before) / abs(before), signed=True)


def _scaled(value: float, scale: tuple[tuple[float, str], ...]) -> str:
    """Three significant digits in the largest unit that leaves at least 1 (after rounding) before the point."""
    factor, unit = next((pair for pair in scale if float(f"{abs(value):.3g}") >= pair[0]), scale[-1])
    return number(value / factor) + unit
