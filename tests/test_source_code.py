"""Which code a stage depends on, and what an edit of it makes unusable."""

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from optlab.records import Environment
from optlab.system import source_code
from optlab.system.errors import RunsFailedError
from optlab.training import checkpoint, class_import
from optlab.tuning.trial import TrialRequest

TOP = Path(__file__).resolve().parents[1]
CUSTOM_MODULES = {
    "custom/mine.py": "import torch\nfrom helpers import of_mine\nfrom torch.optim import SGD as Mine\n",
    "custom/helpers/__init__.py": "",
    "custom/helpers/of_mine.py": "def late():\n    from . import deeper\n",
    "custom/helpers/deeper.py": "import at_root.part\n",
    "custom/other.py": "import mine\n",
    "at_root/__init__.py": "",
    "at_root/part.py": "from .sibling import value\n",
    "at_root/sibling.py": "value = 1\n",
    "at_root/unused.py": "",
}
OF_MINE = [
    "at_root/__init__.py", "at_root/part.py", "at_root/sibling.py", "custom/helpers/__init__.py",
    "custom/helpers/deeper.py", "custom/helpers/of_mine.py", "custom/mine.py",
]  # fmt: skip


def write(modules):
    for name, text in modules.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The working directory: this repository's code, with modules of a user."""
    for name in ("src/optlab", "pipeline"):
        shutil.copytree(TOP / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source_code, "_PACKAGE_FOLDER", tmp_path / "src" / "optlab")
    write(CUSTOM_MODULES)
    return tmp_path


@pytest.fixture
def compute_keys(small_config, monkeypatch):
    """A function that returns the fingerprint of a run of mine.Mine, and the key of a trial with it."""
    monkeypatch.setattr(class_import, "resolve", lambda *words: None)  # keys are made of text
    config = small_config(optimizers={"mine": {"class": "mine.Mine", "lr": 0.01}})

    def compute():
        train, tune = (source_code.hash_code(Path(), stage, ["mine.Mine"]) for stage in ("train", "tune"))
        request = TrialRequest.from_config(config, "mine", 0, 10, tune)
        return checkpoint.compute_fingerprint(config, "mine", 0, Environment(), train), request.compute_key()

    return compute


@pytest.mark.parametrize("folder", [".", "tutorial", "studies/conv6"])
def test_stage_files_are_those_of_dvc_yaml(folder, monkeypatch):
    """As DVC itself resolves them; custom/ as a whole is replaced by the modules that a class needs."""
    from dvc.repo import Repo

    monkeypatch.chdir(TOP)
    with Repo(str(TOP / folder)) as repo:  # a study is a project of its own, with links to the code
        dependencies = {each.name.partition("@")[0]: {Path(dep.fs_path).resolve() for dep in each.deps}
                        for each in repo.stage.load_all(str(TOP / folder / "dvc.yaml"))}  # fmt: skip
    for stage in ("tune", "train", "evaluate"):
        paths = dependencies[stage]
        code = {path for path in paths if path.is_relative_to(TOP / "src") or path.is_relative_to(TOP / "pipeline")}
        assert code and TOP / "data" / "cifar10" in paths - code
        expected = {file.relative_to(TOP) for path in code for file in (path.rglob("*") if path.is_dir() else [path])
                    if file.is_file() and "__pycache__" not in file.parts}  # fmt: skip
        assert source_code.list_stage_files(Path(folder), stage) == sorted(expected)


def test_studies_of_former_layout_depend_on_same_files(copied):
    """Those are part of the DVC project at the top, and name its files by ../../."""
    study = Path("studies") / "former"
    study.mkdir(parents=True)
    text = (copied / "dvc.yaml").read_text()
    for name in ("data/cifar10", "pipeline/", "custom", "src/"):
        text = text.replace(f" {name}", f" ../../{name}")
    (study / "dvc.yaml").write_text(text)
    for stage in ("tune", "train", "evaluate"):
        assert source_code.list_stage_files(study, stage) == source_code.list_stage_files(Path(), stage) != []


@pytest.mark.parametrize("name", ["src/optlab/training/loop.py", "custom/mine.py", "at_root/sibling.py"])
def test_edited_code_makes_checkpoint_and_trial_unusable(copied, compute_keys, name):
    before = compute_keys()
    Path(name).write_text(Path(name).read_text() + "\n# an edit\n")
    assert all(key != other for key, other in zip(compute_keys(), before, strict=True))


def test_edits_of_other_code_leave_keys(copied, compute_keys):
    """Logging, checks and commands decide no weight; nor does the optimizer of another entry."""
    before = compute_keys()
    counted = {name for stage in ("train", "tune") for name in source_code.list_stage_files(Path(), stage)}
    package = source_code.PACKAGE
    edited = {each for pattern in ("tracking/*.py", "cli/*.py", "**/*preflight*.py", "**/preflight/*.py")
              for each in package.glob(pattern)}  # fmt: skip
    assert len(edited) > 10 and not edited & counted
    for path in (*edited, Path("custom/other.py"), Path("at_root/unused.py")):
        path.write_text(path.read_text() + "\n# an edit\n")
    assert compute_keys() == before


def test_keys_do_not_depend_on_the_folder_of_the_package(copied, compute_keys, monkeypatch):
    """It is in site-packages, or at the root of what a cluster's worker gets."""
    before = compute_keys()
    shutil.move("src/optlab", "site-packages/optlab")
    monkeypatch.setattr(source_code, "_PACKAGE_FOLDER", copied / "site-packages" / "optlab")
    assert compute_keys() == before


def test_mirrored_test_images_change_no_key_of_a_trial(small_config):
    plain, mirrored = (small_config(data={"mirror_test": each}) for each in (False, True))
    requests = [TrialRequest.from_config(each, "adam", 0, 10, {}) for each in (plain, mirrored)]
    assert requests[0] == requests[1] and "mirror_test" not in requests[0].config["data"]


def test_trial_of_other_code_is_refused(copied, small_config):
    code = source_code.hash_code(Path(), "tune", ["mine.Mine"])
    request = TrialRequest.from_config(small_config(), "adam", 0, 10, code)
    request.check_code()
    for name in ("src/optlab/training/loop.py", "custom/helpers/deeper.py"):
        text = Path(name).read_text()
        Path(name).write_text(text + "\n# an edit\n")
        with pytest.raises(RunsFailedError, match="the code has changed since the tuning began"):
            request.check_code()
        Path(name).write_text(text)
        request.check_code()
    with pytest.raises(RunsFailedError, match="the code has changed"):
        request.model_copy(update={"packages": request.packages | {"torch": "1.0"}}).check_code()


def test_user_modules_are_found_by_imports(copied):
    assert [name.as_posix() for name in source_code.find_user_modules(["zilliax", "torch.optim.SGD", "mine.Mine"])] == (
        OF_MINE
    )
    assert source_code.find_user_modules(["zilliax", "SGD", "torch.optim.SGD"]) == []
    assert source_code.find_user_modules(["at_root.unused.Mine"]) == [
        Path("at_root/__init__.py"),
        Path("at_root/unused.py"),
    ]
    write({"custom/at_root.py": ""})  # it comes first
    assert source_code.find_user_modules(["at_root.unused.Mine"]) == [Path("custom/at_root.py")]


def test_user_files_are_whole_folders(copied):
    """Of a package at the root, its modules; data files and bytecode of it are left out."""
    write(
        {"custom/table.csv": "1", "custom/__pycache__/mine.pyc": "", "custom/.mine.py.swp": "", "at_root/big.bin": "1"}
    )
    names = {name.as_posix() for name in source_code.list_user_files(["mine.Mine"])}
    assert names == {*CUSTOM_MODULES, "custom/table.csv"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"deps": ["src/optlab/records.py", "data/cifar10", "custom", "runs/${item}"]}, ["src/optlab/records.py"]),
        ({"deps": ["../src/optlab/records.py"], "wdir": "pipeline"}, ["src/optlab/records.py"]),
        ({"foreach": [1], "do": {"deps": ["custom/mine.py", "pipeline"]}}, ["custom/mine.py", "pipeline/stage.py"]),
    ],
)  # fmt: skip
def test_every_form_of_stage_is_read(tmp_path, monkeypatch, stage, expected):
    monkeypatch.chdir(tmp_path)
    write({"custom/mine.py": "", "pipeline/stage.py": "", "data/cifar10": "", "runs/${item}": ""})
    YAML().dump({"stages": {"train": stage}}, Path("dvc.yaml"))
    assert [name.as_posix() for name in source_code.list_stage_files(Path(), "train")] == expected


@pytest.mark.parametrize(
    "text", [None, "", "stages:\n  other: {cmd: a}\n", "stages: [", "stages:\n  train: {cmd: a}\n"]
)
def test_whole_package_counts_without_stage(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("dvc.yaml").write_text(text)
    names = source_code.list_stage_files(Path(), "train")
    assert names == sorted(source_code.list_files(source_code.PACKAGE))
    assert {Path("src/optlab/training/loop.py"), Path("src/optlab/analysis/report.html.jinja")} < set(names)


def test_changed_and_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write({"custom/a.py": "1", "custom/b.py": "1", "custom/c.py": "1"})
    digests = source_code.hash_files(source_code.list_files(Path("custom")))
    write({"custom/a.py": "2", "custom/new.py": "1"})
    Path("custom/b.py").unlink()
    assert source_code.find_changed(digests) == ["custom/a.py", "custom/b.py"]
