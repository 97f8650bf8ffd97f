"""The command line: `optlab check`, `optlab show`, `optlab predict`."""

from pathlib import Path
from typing import Annotated

import typer

from optlab import config, errors, project

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which optimizer should I use on CIFAR-10, by how much is it better, and can I prove it?",
)


@app.command()
def check() -> None:
    """Check the params.yaml of this folder, whole, before anything is run."""
    settings = config.load(project.enter() / config.PARAMS)
    from optlab import optimizers

    optimizers.check(settings)
    count = len(settings.runs())
    print(f"{config.PARAMS}: {count} run{'s' if count > 1 else ''}: {', '.join(settings.optimizers)}")


@app.command()
def show() -> None:
    """Print the comparison again, and the addresses to open in MLflow."""
    folder = project.enter()
    from optlab import comparison, report, views

    compared = comparison.collect(config.load(folder / config.PARAMS), folder)
    print(report.text_table(compared))
    print(views.publish(compared, folder))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files of any size and format.")],
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file; default: the champion's.")] = None,
) -> None:
    """Name the class of each image, with the probabilities of the three likeliest classes."""
    from optlab import prediction

    model = prediction.load(weights or prediction.champion_weights())
    for path, ranked in prediction.predict(model, images):
        print(f"{path}  " + ", ".join(f"{name} {probability:.1%}" for name, probability in ranked[:3]))


def main() -> None:
    """Entry point of the `optlab` command."""
    errors.run(app)
