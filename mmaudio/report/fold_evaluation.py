"""Evaluation of an experiment with folds: each fold on the videos that it held out, then one report on all of them.

EXPERIMENT/folds/K/metrics.json, clips.json.gz, report/     of each fold
EXPERIMENT/metrics.json, metrics.tsv, report/               of all held-out videos: the verdict of the recipe
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmaudio.data.clip_table import read_clips
from mmaudio.data.folds import FoldPlan, fold_folder, fold_table, read_fold_plan
from mmaudio.errors import ConfigError, DataError
from mmaudio.evaluation.clip_set import GENERAL, HELD_OUT
from mmaudio.evaluation.config import EvaluationConfig
from mmaudio.evaluation.evaluate import Evaluation, evaluate, is_report_whole, remove_old_results
from mmaudio.evaluation.fold_results import CLIPS_FILE, FoldResults, pool_results, read_fold_results, write_fold_results
from mmaudio.evaluation.inputs import VERSION, is_valid
from mmaudio.evaluation.result_files import inputs_json, results_json, write_json, write_results, write_tsv
from mmaudio.evaluation.results import Results
from mmaudio.evaluation.scalars import write_scalars
from mmaudio.evaluation.strength_sweep import default_strengths
from mmaudio.lora.checkpoint import AdapterFile, adapter_files, read_adapter
from mmaudio.report.clip_media import MEDIA_FOLDER, ClipMediaWriter
from mmaudio.report.fold_provenance import collect_fold_provenance, describe_recipe
from mmaudio.report.provenance import collect_provenance
from mmaudio.report.render import write_report
from mmaudio.report.summary import Summary
from mmaudio.utils.locks import FileLocks, wait_for_lock
from mmaudio.utils.terminal import print_lines
from mmaudio.weights.store import file_sha256

ADAPTER = Path("lora_checkpoints") / "best_lora.pt"
"""The adapter of an experiment or a fold."""
LOCK = "evaluation"
OF_ONE_ADAPTER = "it is of one adapter: the folds' own reports have it"
"""Why the pooled results have no generic prompts."""


def write_files(evaluation: Evaluation) -> None:
    """Write the report, then the other files; `metrics.json`, which marks results as complete, comes last."""
    held_out, general = evaluation.results[HELD_OUT], evaluation.results.get(GENERAL)
    write_report(evaluation.inputs.config.report_path, held_out, general, collect_provenance(evaluation))
    write_results(evaluation)


def open_experiment(config: EvaluationConfig, root: Path) -> FoldedExperiment:
    """The experiment in the folder `root`, whose settings `config` has; DataError where it is not trained.

    ConfigError for settings that are of one adapter.
    """
    plan = read_fold_plan(root)
    assert plan is not None
    if config.check_data:
        example = f"--lora_checkpoint {fold_folder(root, 1) / ADAPTER} --clips {fold_table(root, 1)}"
        raise ConfigError(f"--check-data: it is of the training clips of one adapter, such as {example}")
    adapters = [fold_folder(root, number) / ADAPTER for number in plan.numbers]
    absent = [str(path) for path in [*adapters, root / ADAPTER] if not path.is_file()]
    if absent:
        raise DataError(
            f"{root}: {len(absent)} of its {len(plan)} folds' adapters and the one of all videos are not trained yet, "
            f"as {absent[0]}; the same training command goes on"
        )
    return FoldedExperiment(config, root, plan, [read_adapter(path) for path in adapters])


def fold_share(limit: int, number: int, num_folds: int) -> int:
    """The part of fold `number`, from 1 on, of a number of clips for all folds together: 1 at least."""
    return max(1, limit // num_folds + (number <= limit % num_folds))


@dataclass(frozen=True)
class FoldedExperiment:
    """An experiment with folds, and the settings of its evaluation."""

    config: EvaluationConfig
    """The adapter is that of all videos, the table that of all clips; results go to its output folder."""
    root: Path
    plan: FoldPlan
    adapters: Sequence[AdapterFile]
    """Of the folds."""

    def fold_config(self, number: int) -> EvaluationConfig:
        """The settings of one fold's evaluation."""
        limit, strengths = self.config.max_clips, self.config.strengths
        return replace(
            self.config,
            checkpoint=fold_folder(self.root, number) / ADAPTER,
            clips_tsv=fold_table(self.root, number),
            output_dir=fold_folder(self.config.output_dir, number),
            shared_dir=self.config.output_dir,
            max_clips=None if limit is None else fold_share(limit, number, len(self.plan)),
            report_clips=fold_share(self.config.report_clips, number, len(self.plan)),
            strengths=default_strengths(sum(map(len, self.plan.videos))) if strengths is None else strengths,
        )

    def evaluate_folds(self, numbers: Sequence[int]) -> None:
        """Evaluate those folds whose results are not valid; first the ones that no other process evaluates."""
        remaining = list(numbers)
        for is_waiting in (False, True):
            for number in list(remaining):
                folder = self.fold_config(number).output_dir
                with FileLocks(folder) as locks:
                    if is_waiting:
                        locks.wait(LOCK, f"another process evaluates into {folder}")
                    elif not locks.acquire(LOCK):
                        continue
                    self.evaluate_fold(number)
                    remaining.remove(number)

    def evaluate_fold(self, number: int) -> None:
        """Evaluate one fold, where its results are not valid."""
        config = self.fold_config(number)
        results_path = config.output_dir / CLIPS_FILE
        print_lines(f"-- fold {number} of {len(self.plan)}: {', '.join(self.plan.videos[number - 1])}", flush=True)
        results = read_fold_results(results_path)
        if results is None or not is_valid(config.metrics_path, results.inputs_key):
            config.metrics_path.unlink(missing_ok=True)
        evaluation = evaluate(config, ClipMediaWriter(config.report_path))
        if evaluation is not None:
            write_fold_results(results_path, evaluation)
            write_files(evaluation)

    def pool(self) -> Summary | None:
        """Pool the folds' results and write the experiment's own; None where those are still valid."""
        paths = [self.fold_config(number).output_dir / CLIPS_FILE for number in self.plan.numbers]
        folds = [results for results in map(read_fold_results, paths) if results is not None]
        if len(folds) < len(paths):
            raise DataError(f"{self.root}: a fold's results were removed meanwhile; the same command goes on")
        with wait_for_lock(self.config.output_dir, LOCK, f"another process evaluates into {self.config.output_dir}"):
            key = self.pooled_key(folds)
            if is_valid(self.config.metrics_path, key) and is_report_whole(self.config.report_path):
                return None
            return self.write_pooled(folds, key)

    def pooled_key(self, folds: Sequence[FoldResults]) -> str:
        """A hash of everything that the pooled results depend on."""
        final = [file_sha256(path) for path in adapter_files(self.config.checkpoint)]
        dependencies = [VERSION, final, [fold.inputs_key for fold in folds], self.plan.videos]
        return hashlib.sha256(json.dumps(dependencies).encode()).hexdigest()

    def write_pooled(self, folds: Sequence[FoldResults], key: str) -> Summary:
        """Write the report on all held-out videos and the other files; `metrics.json` comes last."""
        config, general = self.config, folds[0]
        order = {clip.id: index for index, clip in enumerate(read_clips(config.clips_tsv))}
        sets = pool_results(folds, order)
        provenance = collect_fold_provenance(config, self.root, self.plan, self.adapters, sets[HELD_OUT])
        provenance = replace(
            provenance,
            no_general_reason=general.no_general_reason,
            general_description=general.general_description,
        )
        remove_old_results(config, ClipMediaWriter(config.report_path))
        copy_media(sets[HELD_OUT], self.plan, config)
        write_report(config.report_path, sets[HELD_OUT], sets.get(GENERAL), provenance)
        write_tsv(config.output_dir / "metrics.tsv", sets)
        write_scalars(config, sets, provenance.step or 0)
        recipe = describe_recipe(self.plan, provenance.step)
        contents = results_json(sets, general.no_general_reason) | inputs_json(config, key, provenance.model)
        write_json(
            config.metrics_path,
            contents | {"folds": len(self.plan), "recipe": recipe, "generic_prompts": {"reason": OF_ONE_ADAPTER}},
        )
        return summarize(sets, general.no_general_reason, recipe)


def copy_media(held_out: Results, plan: FoldPlan, config: EvaluationConfig) -> None:
    """Put the folds' media into the folder of the report on all of them, under the fold's number."""
    folds = {video: number for number, videos in zip(plan.numbers, plan.videos, strict=True) for video in videos}
    folder = config.report_path.parent / MEDIA_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for clip in held_out.clips:
        number = folds[clip.clip.video]
        source = fold_folder(config.output_dir, number) / "report"
        files = {}
        for name, file in clip.media.files.items():
            target = folder / f"{number}_{Path(file).name}"
            try:
                os.link(source / file, target)
            except OSError:  # no hard links there, as on FAT and some network folders
                shutil.copyfile(source / file, target)
            files[name] = f"{MEDIA_FOLDER}/{target.name}"
        clip.media = replace(clip.media, files=files)


def summarize(sets: Mapping[str, Results], no_general_reason: str, recipe: str = "", prompts: str = "") -> Summary:
    """The summary of an evaluation for the terminal."""
    held_out, general = sets[HELD_OUT], sets.get(GENERAL)
    forgetting = {} if general is None else general.comparisons()
    return Summary(
        held_out.comparisons(),
        forgetting,
        no_general_reason,
        held_out.recommended,
        held_out.recommendation,
        prompts,
        recipe,
    )
