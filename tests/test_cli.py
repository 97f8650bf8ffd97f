"""The command line: its help, and what a shell asks it for as words are typed."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from optlab.cli import ADD, COMPARE, RANK, REPRODUCE, RUN, TRACK, app

COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'optlab'; from optlab.cli import main; main()"]
WAYS = {
    "bash": lambda words: {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": " ".join(words)},
    "fish": lambda words: {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


def run_optlab(*words, folder=".", **environment):
    command = [*COMMAND, *words]
    own = os.environ | environment
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=240)


def shell_completions(*words, folder=".", shell="bash"):
    """What the shell is told when the last of these words is being typed."""
    result = run_optlab(folder=folder, _OPTLAB_COMPLETE=f"complete_{shell}", **WAYS[shell](["optlab", *words]))
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with the tags v1.0 and v2.0, the second of which has a run more."""
    top = tmp_path_factory.mktemp("repository")

    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words], cwd=top, check=True)

    git("init", "--quiet")
    for tag, run in (("v1.0", "adam-0"), ("v2.0", "sgd-0")):
        (top / "runs" / run).mkdir(parents=True)
        (top / "runs" / run / "train.json").touch()
        (top / "studies" / "tuned" / "runs" / "muon-7").mkdir(parents=True, exist_ok=True)
        (top / "studies" / "tuned" / "runs" / "muon-7" / "train.json").touch()
        git("add", ".")
        git("commit", "--quiet", "-m", tag)
        git("tag", tag)
    return top


@pytest.mark.parametrize("shell", WAYS)
def test_shell_completion_lists_commands(shell):
    told = shell_completions("re", shell=shell).replace('"', " ").split()
    named = [
        name for name in ("clean", "repro", "report", "show", "sync", "predict", "release", "reproduce") if name in told
    ]
    assert named == ["repro", "report", "release", "reproduce"]


TYPED = {
    "a command": (["re"], ["repro", "report", "release", "reproduce"]),
    "an option": (["reproduce", "v1.0", "--f"], ["--fresh-env"]),
    "a tag": (["reproduce", "v"], ["v1.0", "v2.0"]),
    "one of the tags": (["reproduce", "v2"], ["v2.0"]),
    "a tag to fill MLflow from": (["sync", "--from", "v"], ["v1.0", "v2.0"]),
    "a run": (["reproduce", "v2.0", ""], ["adam-0", "sgd-0"]),
    "a run of an older tag": (["reproduce", "v1.0", ""], ["adam-0"]),
    "a second run": (["reproduce", "v2.0", "adam-0", "s"], ["sgd-0"]),
    "a run of no revision": (["reproduce", "v3.0", ""], []),
    "a run of another pipeline": (["reproduce", "--pipeline", "studies/tuned", "v2.0", ""], ["muon-7"]),
}


@pytest.mark.parametrize(("words", "expected"), TYPED.values(), ids=TYPED)
def test_completion_suggests_options_tags_and_runs(repository, words, expected):
    assert shell_completions(*words, folder=repository).split() == expected


def test_completion_outside_repository_is_silent(tmp_path):
    assert shell_completions("reproduce", "", folder=tmp_path).split() == []


def test_completion_imports_no_slow_modules():
    command = [sys.executable, "-X", "importtime", *COMMAND[1:]]
    own = os.environ | {"_OPTLAB_COMPLETE": "complete_bash"} | WAYS["bash"](["optlab", "re"])
    result = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "optlab.cli" in imported
    assert imported.isdisjoint(
        {"torch", "mlflow", "dvc", "numpy", "matplotlib", "ruamel.yaml", "optlab.schema.parameters"}
    )


def test_installed_bash_completion_works(tmp_path):
    """In a home folder of its own; `_TYPER_…_DETECTION` lets the shell be named instead of looked for."""
    home = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    result = run_optlab("--install-completion", "bash", **home)
    assert result.returncode == 0, result.stderr
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "optlab").write_text(f"#!{sys.executable}\n{COMMAND[2]}\n")
    (programs / "optlab").chmod(0o755)
    script = (
        "source ~/.bashrc; complete -p optlab >&2; "
        "COMP_WORDS=(optlab re); COMP_CWORD=1; _optlab_completion optlab; echo ${COMPREPLY[@]}"
    )
    own = os.environ | home | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=own, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["repro", "report", "release", "reproduce"], done.stderr
    assert done.stderr.split()[:4] == ["complete", "-o", "default", "-F"]


def test_help_is_printed_in_ascii():
    """Frames and dots have characters of their own elsewhere."""
    result = run_optlab("predict", "--help", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert "+- Arguments -" in result.stdout


def test_help_lists_each_command_in_its_group():
    text = run_optlab("--help", COLUMNS="80", _TYPER_FORCE_DISABLE_TERMINAL="1").stdout
    lines = [line.strip("│ ") for line in text.splitlines()]
    assert len(lines) < 50 and "<" not in text
    groups = (RUN, ADD, COMPARE, RANK, REPRODUCE, TRACK)
    assert all(any(line[3:].startswith(name) for line in lines) for name in groups)
    assert len(app.registered_commands) > 10
    for command in app.registered_commands:
        (line,) = (line for line in lines if line.startswith(f"{command.callback.__name__} "))
        assert line.endswith("."), line
        assert command.epilog.startswith(f"Example: optlab {command.callback.__name__}"), line


def test_command_help_has_example_and_no_types():
    text = run_optlab("add", "--help", COLUMNS="80", _TYPER_FORCE_DISABLE_TERMINAL="1").stdout
    assert "Example: optlab add nadam --range" in text
    assert "<" not in text and "[[" not in text


@pytest.mark.parametrize("words", [["--at-most", "5"], ["--question", "best"]])
def test_options_of_until_decided_need_it(words):
    result = run_optlab("repro", *words)
    said = "error: --question and --at-most say when --until-decided ends: add it\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", said)


def test_version_is_printed_by_python_module():
    result = subprocess.run([sys.executable, "-m", "optlab", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"optlab {version('optlab')}\n" == run_optlab("--version").stdout


def test_sync_of_a_pipeline_needs_a_revision(tmp_path):
    result = run_optlab("sync", "--pipeline", "studies/tuned", folder=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "error: --pipeline works only with --from REV: add it\n"
