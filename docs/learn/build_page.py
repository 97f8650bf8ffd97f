"""The page docs/learn.html, built from the record: one file with data, scripts and styles, in English and Chinese.

    python docs/learn/build_page.py     # writes docs/learn.html

The texts are in texts.yaml. A {name} in them is a number of `facts.compute_facts`, and what they say in words is
checked by `facts.check_statements`: where the record no longer supports a text, the build stops and names it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import facts
import jinja2
from facts import TOP
from landscape import RESULT, Landscape
from ruamel.yaml import YAML

import optlab.analysis
from optlab.analysis import comparison, presentation
from optlab.analysis.comparison import Comparison
from optlab.analysis.tuning_results import OptimizerTuning, get_final_accuracy
from optlab.config import loader
from optlab.records import TrialRecord, ValidationMetrics
from optlab.schema.parameters import PARAMS_FILE
from optlab.system import errors, files
from optlab.system.errors import OptlabError

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "learn.html"
TEXTS = HERE / "texts.yaml"
STUDY, TUTORIAL = TOP / "studies" / "optimizers", TOP / "tutorial"
VENDOR = Path(optlab.analysis.__path__[0]) / "vendor"
LIBRARIES = ("d3.min.js", "plot.umd.min.js")
SCRIPTS = ("rules.js", "slopes.js", "page.js", "walk.js", "rates.js", "seeds.js", "claims.js")  # in this order
LABELS = {
    "sgd": "SGD", "momentum": "Momentum", "nesterov": "Nesterov", "rmsprop": "RMSprop", "adam": "Adam",
    "adamw": "AdamW", "nadam": "NAdam", "lion": "Lion", "muon": "Muon", "schedule_free": "Schedule-Free",
}  # fmt: skip


def main() -> None:
    files.write_atomic(PAGE, build().encode())


def build() -> str:
    """Return the page.

    Raises:
        OptlabError: a text names a number that there is not, or says what the record does not support.
        RecordError: a file of the record is missing or damaged.
    """
    study, tutorial = (comparison.collect(loader.load(folder / PARAMS_FILE), folder) for folder in (STUDY, TUTORIAL))
    landscape = Landscape.read(RESULT)
    content = YAML(typ="safe").load(TEXTS)
    check_texts(content["claims"], facts.check_statements(study, tutorial))
    numbers = facts.compute_facts(study, tutorial, landscape)
    claims, texts = fill(content["claims"], numbers), fill(content["texts"], numbers)
    data = {
        "landscape": landscape.model_dump(mode="json"),
        "study": describe_study(study),
        "tutorial": describe_tutorial(tutorial),
        "claims": [
            {key: claim[key] for key in ("id", "figure", "alternative")} for claim in claims if "figure" in claim
        ],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("template.html").render(
        texts=texts,
        claims=claims,
        colours=study.colours | {"adam_fast": presentation.assign_colours(["adam_fast"])["adam_fast"]},
        style=(HERE / "style.css").read_text(),
        licences=[(VENDOR / f"{name}.LICENSE").read_text() for name in ("d3", "plot")],
        libraries=[(VENDOR / name).read_text().strip() for name in LIBRARIES],
        scripts=[(HERE / name).read_text().strip() for name in SCRIPTS],
        data=to_json(data),
        texts_json=to_json(texts),
    )


def to_json(value: Any) -> str:
    """Return JSON that can stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def check_texts(claims: list[dict[str, Any]], supported: Mapping[str, bool]) -> None:
    """Check that the record supports the texts, and that there is a check for each claim with a figure.

    Raises:
        OptlabError: it does not.
    """
    unchecked = {claim["id"]: False for claim in claims if "figure" in claim}
    for key, is_supported in (unchecked | dict(supported)).items():
        if not is_supported:
            raise OptlabError(f"{TEXTS}: {key}: the record does not support this text: change it")


def fill(value: Any, numbers: Mapping[str, str]) -> Any:
    """Return texts with their placeholders filled in; {{doubled}} ones are for the scripts, and become {single}.

    Raises:
        OptlabError: there is no number of that name.
    """
    if isinstance(value, dict):
        return {key: fill(each, numbers) for key, each in value.items()}
    if isinstance(value, list):
        return [fill(each, numbers) for each in value]
    if not isinstance(value, str):
        return value
    try:
        return value.format_map(numbers)
    except KeyError as error:
        raise OptlabError(f"{TEXTS}: there is no number {{{error.args[0]}}}: facts.compute_facts has them") from None


def describe_study(study: Comparison) -> dict[str, Any]:
    """Return the trials, the runs and the pairs of the study."""
    return {
        "optimizers": [
            {
                "name": row.optimizer,
                "label": LABELS.get(row.optimizer, row.optimizer),
                "has_own_searches": row.optimizer in study.tunings and set(study.tunings[row.optimizer].choices) != {0},
                "trials": describe_trials(study.tunings[row.optimizer]) if row.optimizer in study.tunings else [],
                "runs": [
                    {
                        "seed": run.files.seed,
                        "accuracy": run.tested.test_accuracy,
                        "validations": describe_validations(run.trained.all_validations),
                    }
                    for run in study.get_completed_runs(row.optimizer)
                ],
                "train_loss": row.train_loss and round(row.train_loss.mean, 4),
                "test_loss": row.test_loss and round(row.test_loss.mean, 4),
            }
            for row in study.rows
        ],
        "pairs": [
            {
                "names": list(names),
                "difference": round(pair.difference, 6),
                "low": round(pair.low, 6),
                "high": round(pair.high, 6),
                "verdict": pair.verdict,
                "first_is_better": pair.first_is_better,
                "wrong": [
                    round(share, 6) for share in facts.compute_wrong_shares(*(study.get_values(name) for name in names))
                ],
            }
            for names, pair in study.pairs.items()
        ],
        "steps": study.config.steps_per_epoch * study.config.training.epochs,
        "margin": study.plan.margin,
    }


def describe_trials(tuning: OptimizerTuning) -> list[dict[str, Any]]:
    """Return the trials of all searches whose learning rate is known."""
    return [
        {
            "search": trial.search,
            "rate": rate,
            "others": {key: value for key, value in trial.values.items() if key != tuning.learning_rate_key},
            "status": trial.status,
            "accuracy": get_final_accuracy(trial),
            "is_default": trial.index is None,
            "is_chosen": is_chosen(tuning, trial),
            "validations": describe_validations(trial.looks),
        }
        for trial in tuning.trials
        if (rate := facts.get_rate(tuning, trial)) is not None
    ]


def is_chosen(tuning: OptimizerTuning, trial: TrialRecord) -> bool:
    """Return whether a search has chosen the values of this trial."""
    return tuning.get_chosen_trial(trial.search) is trial


def describe_validations(validations: list[ValidationMetrics]) -> list[tuple[int, float, float | None]]:
    """Return (step, loss, accuracy) of each validation that has them."""
    return [(each.step, float(f"{each.loss:.5g}"), each.accuracy) for each in validations if each.loss is not None]


def describe_tutorial(tutorial: Comparison) -> dict[str, Any]:
    """Return the running losses of the tutorial's experiment, by the names in its params.yaml."""
    return {
        run.files.optimizer: {
            "label": f"{tutorial.config.optimizers[run.files.optimizer].class_} {run.trained.history[0].lr:g}",
            "losses": [epoch.running_loss for epoch in run.trained.history],
        }
        for run in tutorial.runs
    }


if __name__ == "__main__":
    errors.run_main(main)
