"""What evaluating a model and racing solvers will take: as `geocolor.forecast`, from short probes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from geocolor.forecast import PICTURE_MEMORY, SMALL_FILES, Forecast, timed_work, typical
from geocolor.losses import Batch, Loss, device_of, loss_for, move
from geocolor.memory import forget_peak, peak, resident
from geocolor.modes import evaluating
from geocolor.pace import Timer, positions_in
from geocolor.parameters import parameter_bytes
from geocolor.settings import Settings

#: Passes over the first batch by which `evaluate` finds the latency, those to warm up among them.
LATENCY_PASSES = 7


def forecast_evaluation(
    model: nn.Module,
    test: Sequence[Batch],
    *,
    reference: nn.Module | None = None,
    loss: Loss | None = None,
    timer: Timer = time.perf_counter,
) -> Forecast:
    """Of `evaluate`, or with the dense model as `reference` of `evaluate_pair`. Costs two passes over one batch."""
    loss = loss_for(model if reference is None else reference, test[0], loss)
    batch = typical(test)
    models = [each for each in (reference, model) if each is not None]
    seconds = 0.0
    forget_peak()
    before = resident()
    with evaluating(*models):
        for index in range(2):  # the first pass warms up
            started = timer()
            outputs = [loss.forward(each, move(batch, device_of(each))) for each in models]
            passing = timer() - started
            held = move(batch, outputs[-1].device)
            expected = outputs[0].to(outputs[-1].device) if reference is not None else None
            for each in outputs:
                loss.total(each.to(outputs[-1].device), held, expected if loss.compares else None)
            if expected is not None:
                loss.divergence(outputs[-1], expected, held)
            del expected
            seconds = timer() - started if index else 0.0
            del outputs
    size, total, first = (positions_in(batches) for batches in ([batch], test, test[:1]))
    largest = max(positions_in([each]) for each in test)
    memory = before + max(peak() - before, 0) * largest / size
    expected_seconds = {"evaluate": seconds * total / size + LATENCY_PASSES * passing * first / size}
    return Forecast(expected_seconds, 0.0, round(max(peak(), memory)), 0)


def forecast_race(
    model: nn.Module,
    calibration: Sequence[Batch],
    settings: Settings,
    form: str,
    searches: int,
    *,
    loss: Loss | None = None,
    timer: Timer = time.perf_counter,
) -> Forecast:
    """Of `compare` with so many `searches`, each counted with all of its time limit, though most stop sooner."""
    work = timed_work(model, calibration, settings, loss, timer)
    seconds = {"measure": work.pace.measured * positions_in(calibration)}
    if settings.rounds:
        seconds["calibrate"] = work.calibrating()
    seconds["price"] = work.reading()
    search = searches * settings.time_limit
    seconds["race"] = search + (work.lending() if form == "medoid" else work.pace.pairs)
    return Forecast(seconds, search, work.memory(form != "medoid", False, None, False) + PICTURE_MEMORY, SMALL_FILES)


def without_journal(expected: Forecast, model: nn.Module, keep: float, seconds: Mapping[str, float]) -> Forecast:
    """The forecast of a run that keeps nothing to go on with, saves in half precision, and then takes more steps."""
    disk = round(parameter_bytes(model) * keep / 2) + SMALL_FILES
    return replace(expected, seconds={**expected.seconds, **seconds}, disk=disk)
