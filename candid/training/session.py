"""The epochs of a run: train, validate, save; stop at any step and go on from there."""

import gc
import math
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from candid.checkpoint import Checkpoint, RunFolder, TrainingState
from candid.data.examples import DataSet, pick_evenly
from candid.data.loading import EvaluationBatches, TrainingBatches, TrainingData
from candid.device import describe_device, peak_memory_mib
from candid.durable import write_file
from candid.errors import CandidError, DataError
from candid.evaluation import Evaluation, evaluate_model, join_evaluations
from candid.out_of_memory import OutOfMemory, free_memory, is_out_of_memory
from candid.recipe import Recipe
from candid.sizes import size
from candid.training.loop import Diverged, Trainer, train_one_epoch
from candid.training.memory import Prediction
from candid.training.progress import Reporter, table_text
from candid.training.ranks import Ranks
from candid.training.result import finish_run
from candid.training.saving import Saver
from candid.training.seeing import keep_first_pictures, write_summary
from candid.training.setup import describe_dense_blocks
from candid.training.stopping import Stop, Stopped, stop_for
from candid.training.whole_steps import TornStep
from candid.weights import Loaded

NUM_PICTURES_SEEN = 2000
"""Before training, by a first layer that learns from them."""
LESS_MEMORY = "Set training.memory=recompute, choose a smaller network or data.image_size, or close other programs."


class Session:
    """What `train` and `resume` share: the state between epochs and what happens to it."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        data_set: DataSet,
        data: TrainingData,
        device: torch.device,
        reporter: Reporter,
        ranks: Ranks,
        stop: Stop,
        predicted: Prediction | None = None,
    ) -> None:
        """Build the network; nothing is read or written yet. `predicted` is the memory that it was said to need."""
        self.run, self.data_set, self.data = run, data_set, data
        self.device, self.reporter, self.ranks, self.stop = device, reporter, ranks, stop
        num_classes = len(data_set.class_names)
        self.batches = TrainingBatches(data, recipe, num_classes, device)
        self.trainer = Trainer(recipe, num_classes, self.batches.steps_per_epoch, device, ranks)
        self.saver = Saver(run, in_background=predicted is None)  # which takes copies of all that is saved
        self.predicted = predicted
        self.history: list[dict[str, Any]] = []
        self._epoch_began_at_s = self._saved_at_s = time.perf_counter()
        self._saved_step = -1
        self._announce()

    @property
    def recipe(self) -> Recipe:
        """What the run goes by; where memory ran out, no longer what it began with."""
        return self.trainer.recipe

    def begin(self, start: Loaded | None) -> None:
        """Begin from weights, and say what they are; from random ones where there are none."""
        if self.ranks.is_first:
            write_summary(self.data, self.data_set, self.run.path)
        if start is None:
            self.trainer.show(self._pictures_to_see())
        else:
            self.trainer.begin(start.state)
            self.reporter.say(start.report.text())

    def _pictures_to_see(self) -> Iterator[Tensor]:
        """Training pictures [N, C, H, W] spread over the classes, without variations; read when they are asked for."""
        seen = pick_evenly(self.data.train, NUM_PICTURES_SEEN)
        for inputs, _ in EvaluationBatches(seen, self.data.preprocessing, self.device):
            yield inputs

    def restore(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        """Go to where a checkpoint stands, perhaps in the middle of an epoch."""
        self.trainer.restore(checkpoint, state)
        self.history, self._saved_step = state.history, checkpoint.step
        self._epoch_began_at_s = time.perf_counter() - state.epoch_seconds
        if self.ranks.is_first:  # a process killed after its last save had not come to write the table
            write_file(self.run.path / "results.csv", table_text(state.history))

    def train(self) -> None:
        """The remaining epochs.

        Raises:
            Stopped: if a signal or the end of the time asked for it; what was done is saved.
            DataError: if a picture or a worker failed; what was done is saved.
            OutOfMemory: if there is too little even for the smallest micro-batch; what was done is saved.
            CandidError: if training diverged or a checkpoint could not be written.
        """
        epochs, done = self.recipe.training.epochs, self.trainer.step / self.batches.steps_per_epoch
        try:
            with self.reporter.watch(epochs, done, self.batches.num_examples):
                while len(self.history) < epochs:
                    self._train_epoch()
        except (Stopped, DataError, OutOfMemory) as error:
            traceback.clear_frames(error.__traceback__)  # ends what was half read, and the workers that read it
            if self._saved_step != self.trainer.step:
                self._save()
            raise error.__class__(*self._explain_stop(error)) from None
        finally:
            self.saver.wait()

    def finish(self) -> None:
        """Look at the test split once and write the result; stopped here, a run is finished when it is resumed."""
        del self.trainer, self.batches  # the evaluation needs room
        gc.collect()  # a network that recomputes refers to itself
        predicted_mib = None if self.predicted is None else round(self.predicted.total / 2**20, 1)
        if self.ranks.is_first:
            self.reporter.say(finish_run(self.run, self.data_set, self.data, self.device, self.history, predicted_mib))

    def _train_epoch(self) -> None:
        losses = [row["train_loss"] for row in self.history]
        while self.trainer.step < (len(self.history) + 1) * self.batches.steps_per_epoch:
            self._take_steps(losses)
        seconds, tally = time.perf_counter() - self._epoch_began_at_s, self.trainer.tally.over(self.ranks)
        validation, images = self._validate(), int(tally.images)
        row: dict[str, Any] = {
            "epoch": len(self.history) + 1,
            "step": self.trainer.step,
            "images": images,
            "learning_rate": self.trainer.schedule.rate(self.trainer.step - 1, losses),
            "train_loss": float(tally.loss) / images,
            "train_accuracy": int(tally.correct) / images,
            "validation_loss": None if validation is None else validation.loss,
            "validation_accuracy": None if validation is None else validation.accuracy,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1),
            "peak_memory_mib": round(peak_memory_mib(self.device), 1),
        }
        self._end_epoch(row)

    def _take_steps(self, losses: list[float]) -> None:
        """The epoch's remaining steps, or those before memory ran out, with micro-batches that are smaller then."""
        epoch = len(self.history)
        first = self.trainer.step - epoch * self.batches.steps_per_epoch
        batches = self.batches.epoch(epoch, first, self.ranks.rank, self.ranks.number)
        if self.trainer.step == 0 and self.ranks.is_first:
            batches = keep_first_pictures(batches, self.data, self.data_set.class_names, self.run.path)
        try:
            train_one_epoch(self.trainer, batches, losses, self._after_step)
        except Diverged as error:
            raise CandidError(self._explain_divergence(error)) from None
        except TornStep:
            raise CandidError(self._explain_torn_step()) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            free_memory(error)
            self._use_less_memory()

    def _use_less_memory(self) -> None:
        """Halve the micro-batches and say so.

        Raises:
            OutOfMemory: if they cannot be smaller.
            CandidError: if other ranks wait for this one, in a step that they cannot take back.
        """
        where, smaller = f"Out of memory at step {self.trainer.step + 1}", self.trainer.shrink()
        if self.ranks.number > 1:
            advice = f"--set training.micro_batch_size={smaller}" if smaller else "--set training.memory=recompute"
            raise CandidError(
                f"{where}, on rank {self.ranks.rank}: the other ranks wait for its gradients, so that it cannot take "
                "the step again in smaller parts. Earlier checkpoints are whole: start the ranks again, with "
                f"--resume and {advice}."
            )
        if smaller is None:
            size = self.recipe.training.micro_batch_size or self.recipe.training.batch_size
            raise OutOfMemory(f"{where} with micro-batches of {size}, which cannot be smaller. {LESS_MEMORY}")
        self.run.record_recipe(self.recipe)
        self._saved_at_s = -math.inf  # a save is due at once, so that what goes on from it takes the same parts
        statistics = f" Batch normalisation takes its statistics from {smaller} at a time."
        self.reporter.say(
            f"{where}: micro-batches of {smaller} from here on; every step still learns from the same "
            f"{self.recipe.training.batch_size} examples.{statistics if self.trainer.takes_statistics else ''}"
        )

    def _after_step(self, images: int) -> None:
        """Between two steps: the place to stop, and to save within an epoch."""
        self.reporter.advance(images)
        self.saver.check()
        reason, is_due = self.ranks.agree(self.stop.reason(self.trainer.step), self._save_is_due())
        stop_for(reason)
        if is_due:
            self._save()

    def _save_is_due(self) -> bool:
        limits, step = self.recipe.limits, self.trainer.step
        if step % self.batches.steps_per_epoch == 0:  # the end of an epoch is saved after its validation
            return False
        waited_s = time.perf_counter() - self._saved_at_s
        by_steps = limits.steps_between_saves and step % limits.steps_between_saves == 0
        return bool(by_steps) or waited_s >= limits.seconds_between_saves

    def _validate(self) -> Evaluation | None:
        examples = self.data.validation
        if examples is None:
            return None
        parts = torch.arange(len(examples)).tensor_split(self.ranks.number)
        mine = examples if self.ranks.number == 1 else examples.select(parts[self.ranks.rank])
        batch_size = self.recipe.limits.evaluation_batch_size
        batches = EvaluationBatches(mine, self.data.preprocessing, self.device, batch_size)
        model, names = self.trainer.evaluated_model, self.data_set.class_names
        try:
            part = evaluate_model(model, batches, names, "validation", lambda: stop_for(self.stop.reason(0)))
        except Stopped:
            if self.ranks.number == 1:
                raise
            part = None  # said to the others where all of them meet
        gathered = self.ranks.gather(part)
        evaluations = [evaluation for evaluation in gathered if evaluation is not None]
        if len(evaluations) < len(gathered):
            stop_for(*self.ranks.agree(self.stop.reason(0)))
        return join_evaluations(evaluations)

    def _end_epoch(self, row: dict[str, Any]) -> None:
        is_best = _score(row) > max(map(_score, self.history), default=-math.inf)
        self.history.append(row)
        self.trainer.start_tally()
        self._epoch_began_at_s = time.perf_counter()
        self._save(row["validation_accuracy"], is_best=is_best)
        self.reporter.epoch_line(row)

    def _save(self, accuracy: float | None = None, *, is_best: bool = False) -> None:
        tensors = self.trainer.state_tensors()
        self._saved_step, self._saved_at_s = self.trainer.step, time.perf_counter()
        if not self.ranks.is_first:
            return
        checkpoint = Checkpoint(
            weights=self.trainer.evaluated_model.state_dict(),
            recipe=self.recipe,
            class_names=self.data_set.class_names,
            preprocessing=self.data.preprocessing,
            step=self.trainer.step,
            epoch=len(self.history),
            validation_accuracy=accuracy,
        )
        epoch_seconds = self._saved_at_s - self._epoch_began_at_s
        state = TrainingState(tensors, self.history, self.trainer.scaler.state_dict(), epoch_seconds)
        self.saver.save(checkpoint, state, is_best=is_best)

    def _explain_stop(self, error: Stopped | DataError | OutOfMemory) -> tuple[Any, ...]:
        where = f"step {self.trainer.step} of {self.recipe.training.epochs * self.batches.steps_per_epoch} is saved"
        advice = f"go on with `candid train --resume --out {self.run.path}`."
        if isinstance(error, Stopped):
            return f"{error}: {where}; {advice}", error.exit_code
        return (f"{error}\nEverything up to {where}; when that is mended, {advice}",)

    def _explain_torn_step(self) -> str:
        return (
            f"Out of memory at step {self.trainer.step + 1}, while the weights were being changed, which cannot be "
            f"taken back; nothing of this step was saved. Earlier checkpoints are whole. {LESS_MEMORY} Go on with "
            f"`candid train --resume --out {self.run.path}`."
        )

    def _explain_divergence(self, error: Diverged) -> str:
        files = [self.data.train.files[index] for index in error.batch.indices.tolist()]
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return (
            f"Training diverged at step {self.trainer.step + 1} (epoch {len(self.history) + 1}, rate {rate:g}): "
            f"{error}. The batch: {', '.join(files[:3])}{more}. Nothing of this step was saved. "
            f"Lower optimizer.rate (now {self.recipe.optimizer.rate:g}), or set schedule.warmup or training.clip_norm."
        )

    def _announce(self) -> None:
        """Say what is about to be trained, on what, and where."""
        parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        validation = 0 if self.data.validation is None else len(self.data.validation)
        self.reporter.say(
            f"{self.recipe.model.name} ({parameters:,} parameters) on {self.recipe.data.name}: "
            f"{len(self.data.train):,} pictures to train, {validation:,} to validate, "
            f"{len(self.data_set.class_names)} classes, {self.recipe.data.image_size} px"
        )
        self.reporter.say(
            f"{describe_device(self.device)}, {self.recipe.training.precision}, "
            f"{self.recipe.training.memory_format}; run folder {self.run.path}"
        )
        dense_blocks = describe_dense_blocks(self.recipe, self.device)
        if dense_blocks is not None:
            self.reporter.say(f"Dense blocks: {dense_blocks}")
        if self.predicted is not None:
            self.reporter.say(
                f"Predicted to need {size(self.predicted.total)} of {size(self.recipe.limits.memory_bytes)} of memory"
            )
        if self.ranks.number > 1:
            share = math.ceil(self.recipe.training.batch_size / self.ranks.number)
            self.reporter.say(
                f"{self.ranks.number} ranks, each with up to {share} examples of every batch; batch normalisation "
                f"takes its statistics {'over all ranks' if self.recipe.training.sync_batch_norm else 'per rank'}"
            )


def _score(row: Mapping[str, Any]) -> float:
    """What the best epoch is chosen by: the validation accuracy, which says nothing where the loss is no number."""
    loss = row["validation_loss"]
    return row["validation_accuracy"] if loss is not None and math.isfinite(loss) else -math.inf
