"""A module of the repository with the name of another one is refused; what comes from elsewhere is recorded."""

import hashlib
import sys

import pytest
import torch

from optlab import environment
from optlab.environment import capture_environment
from optlab.preflight import checks
from optlab.system.errors import ConfigError
from optlab.training import class_import, models

MINE = "import torch\n\nclass Mine(torch.optim.SGD):\n    pass\n\ndef net():\n    return torch.nn.Flatten()\n"


@pytest.fixture
def project_dir(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "pipeline").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "path", "said"),
    (
        (
            "custom/schedulefree.py",
            "schedulefree.Mine",
            "custom/schedulefree.py has the name of the package schedulefree",
        ),
        ("custom/random.py", "random.Mine", "custom/random.py has the name of Python's own module random"),
        ("custom/torch/mine.py", "torch.mine.Mine", "custom/torch has the name of the package torch"),
        ("schedulefree.py", "schedulefree.Mine", "schedulefree.py has the name of the package schedulefree"),
        ("custom/train.py", "train.Mine", "custom/train.py has the name of one of the stages' modules"),
    ),
)
def test_module_with_conflicting_name_is_refused(project_dir, small_config, file, path, said):
    (project_dir / "pipeline" / "train.py").touch()
    place = project_dir / file
    place.parent.mkdir(exist_ok=True)
    place.write_text(MINE)
    with pytest.raises(ConfigError) as refused:
        checks.check_config(small_config(optimizers={"mine": {"class": path}}))
    assert f"optimizers.mine.class: {path}: {said}, which Python may import instead: rename it" in str(refused.value)
    with pytest.raises(ConfigError, match=f"model: {path}: "):
        models.build(path, seed=0)


def test_conflicting_module_imported_indirectly_is_refused(project_dir):
    (project_dir / "custom" / "random.py").write_text("def draw():\n    return 4\n")
    (project_dir / "custom" / "of_ours_1.py").write_text(MINE)
    (project_dir / "custom" / "of_ours_3.py").write_text("import random\n")
    class_import.resolve("of_ours_1.net", "model")  # it does not import the other one
    (project_dir / "custom" / "of_ours_1.py").write_text(f"import random\n{MINE}")
    with pytest.raises(ConfigError, match=r"^params.yaml: model: custom/random.py has the name of Python's own"):
        class_import.resolve("of_ours_1.net", "model")


def test_environment_records_uninstalled_modules(project_dir, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "not_installed.py").write_text(MINE)
    (project_dir / "beside_params.py").write_text(MINE)
    (project_dir / "custom" / "of_ours_2.py").write_text(MINE)
    paths = ["zilliax", "not_installed.net", "beside_params.Mine", "of_ours_2.Mine", "schedulefree.AdamWScheduleFree"]
    digest = hashlib.sha256(MINE.encode()).hexdigest()
    found = capture_environment(torch.device("cpu"), paths)
    assert found.modules == {"beside_params.py": digest, "not_installed.py": digest}
    assert found.packages["schedulefree"]


def test_installed_packages_are_read_once(project_dir, monkeypatch):
    """The metadata of all of them is."""
    real, calls = environment.packages_distributions, []
    monkeypatch.setattr(environment, "packages_distributions", lambda: calls.append(1) or real())
    capture_environment(torch.device("cpu"), ["schedulefree.AdamWScheduleFree"])
    assert len(calls) <= 1  # a test before this one may have made it read them
