"""The end of a run: one look at the test split, and the result in figures and in words."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from candid.calibration import calibrate
from candid.checkpoint import RunFolder
from candid.data.examples import DataSet
from candid.data.loading import TrainingData, decode_once
from candid.device import peak_memory_mib
from candid.durable import write_file
from candid.evaluation import describe_measurement, evaluate_checkpoint, explain_mistakes
from candid.kept_evaluation import save_evaluation
from candid.sizes import size
from candid.training.progress import command_line
from candid.words import count, interval, percent


def finish_run(
    run: RunFolder,
    data_set: DataSet,
    data: TrainingData,
    device: torch.device,
    history: Sequence[Mapping[str, Any]],
    predicted_memory_mib: float | None = None,
) -> str:
    """Calibrate on the validation split, look at the test split once, and write result.json.

    The look is one with the chosen and with the last checkpoint. Returns the result in words. Without a test split,
    what the report shows is the validation split.
    """
    validation = data.validation
    unreadable = data.unreadable
    chosen, last = run.load(), run.load("latest")
    provenance = describe_measurement(chosen, chosen.recipe.data.name)
    temperature = 1.0
    if validation is not None:
        calibration, evaluation = calibrate(chosen, validation, device)
        calibration.save(run.path)
        explained = explain_mistakes(evaluation, chosen, validation, device)
        save_evaluation(evaluation, run.path / "evaluation-validation", validation, provenance, explained)
        temperature = calibration.temperature
    result: dict[str, object] = {
        "test_accuracy": None,
        "test_accuracy_interval": None,
        "test_images": None,
        "last_test_accuracy": None,
        "validation_accuracy": chosen.validation_accuracy,
        "best_step": chosen.step,
        "best_epoch": chosen.epoch,
        "steps": last.step,
        "train_seconds": round(sum(row["seconds"] for row in history), 3),
        "images_per_second": round(sum(r["images"] for r in history) / sum(r["seconds"] for r in history), 1),
    }
    if "test" in data_set.openers:
        examples = decode_once(data_set.openers["test"](), chosen.preprocessing, run.recipe.data)
        test = evaluate_checkpoint(chosen, examples, "test", device, temperature=temperature)
        last_test = test if last.name == chosen.name else evaluate_checkpoint(last, examples, "test", device)
        run.record_test_look(chosen.name, test.num_images, test.accuracy, command_line())
        explained = explain_mistakes(test, chosen, examples, device)
        save_evaluation(test, run.path / "evaluation-test", examples, provenance, explained)
        unreadable |= {"test": examples.unreadable}
        result |= {
            "test_accuracy": test.accuracy,
            "test_accuracy_interval": list(test.accuracy_interval),
            "test_images": test.num_images,
            "last_test_accuracy": last_test.accuracy,
        }
    peaks = [round(peak_memory_mib(device), 1), *(row["peak_memory_mib"] for row in history)]
    result |= {"predicted_memory_mib": predicted_memory_mib, "peak_memory_mib": max(peaks)}
    result["unreadable_pictures"] = {split: len(problems) for split, problems in unreadable.items()}
    write_file(run.path / "result.json", json.dumps(result, indent=2) + "\n")
    return describe_result(result, run.chosen) + _describe_left_out(result) + _describe_memory(result)


def _describe_left_out(result: Mapping[str, Any]) -> str:
    """Of a test split that was not whole, how much of it the result is about."""
    lost = result["unreadable_pictures"].get("test", 0)
    return f" Not counted: {count(lost, 'file')} of the test split that cannot be used." if lost else ""


def _describe_memory(result: Mapping[str, Any]) -> str:
    """Of a run with a budget, what was predicted and what was held."""
    if result["predicted_memory_mib"] is None:
        return ""
    peak, predicted = (size(result[key] * 2**20) for key in ("peak_memory_mib", "predicted_memory_mib"))
    return f" Memory: at most {peak} were held, {predicted} predicted."


def describe_result(result: Mapping[str, Any], chosen: str) -> str:
    """The result in one or two sentences for people."""
    validation = result["validation_accuracy"]
    if result["test_accuracy"] is None:
        return "This data set has no test split, so there is no independent number. " + (
            "Nothing was held out to validate on either."
            if validation is None
            else f"Validation accuracy {percent(validation)}; it chose the checkpoint, which flatters it."
        )
    how = (
        f"chosen on validation ({percent(validation)}), epoch {result['best_epoch']}; "
        f"the last epoch gives {percent(result['last_test_accuracy'])}"
        if chosen == "best"
        else "the last epoch: nothing was held out to choose by"
    )
    return (
        f"Test accuracy {percent(result['test_accuracy'])} (95 % interval "
        f"{interval(result['test_accuracy_interval'])}, {result['test_images']:,} pictures); {how}."
    )
