"""What `optlab check` remembers, and what makes it look again."""

import re
import resource
import subprocess
import sys

import psutil
import pytest

from optlab.orchestration import preflight_cache
from optlab.preflight import checks
from optlab.system import processes, repository
from optlab.system.errors import ConfigError, ResourceError


@pytest.fixture
def project_dir(tmp_path, monkeypatch):
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "of_mine.py").write_text("from torch.optim import SGD\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_preflight_cache_is_read_without_torch(project_dir, small_config):
    config = small_config()
    assert preflight_cache.load_cached(config) is None
    found = preflight_cache.run_checks(config)
    assert found.environment.threads == 2 and found.environment.cpu_capability != "unknown"
    program = (
        "import sys\nfrom optlab.schema.parameters import Config\nfrom optlab.orchestration import preflight_cache\n"
        f"print(preflight_cache.load_cached(Config.model_validate_json({config.model_dump_json(by_alias=True)!r})).model_dump_json())\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=project_dir, capture_output=True, text=True)
    assert result.stdout.strip() == found.model_dump_json(), result.stderr


def test_preflight_cache_is_invalidated_by_dependencies(project_dir, small_config, monkeypatch):
    own = {"sgd": {"class": "of_mine.SGD", "lr": 0.01}}
    config = small_config(optimizers=own)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(project_dir / "custom")])
        preflight_cache.run_checks(config)
    assert preflight_cache.load_cached(config)
    for unread in ({"seeds": [3, 4]}, {"verdict": {"looks": [2]}}, {"tuning": {"trials": 9}}):  # by the checks
        assert preflight_cache.load_cached(small_config(optimizers=own, **unread)), unread
    assert preflight_cache.load_cached(small_config(optimizers=own, training={"epochs": 7})) is None
    with monkeypatch.context() as patch:
        patch.setenv("ATEN_CPU_CAPABILITY", "default")
        assert preflight_cache.load_cached(config) is None
    with monkeypatch.context() as patch:
        patch.setattr(repository, "list_installed_packages", lambda: ["torch-1.0.dist-info"])
        assert preflight_cache.load_cached(config) is None
    with monkeypatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # only how long it takes
        assert preflight_cache.load_cached(config)
    (project_dir / "custom" / "of_mine.py").write_text("from torch.optim import Adam as SGD\n")
    assert preflight_cache.load_cached(config) is None


def test_damaged_preflight_cache_entry_is_recomputed(project_dir, small_config):
    config = small_config()
    preflight_cache.run_checks(config)
    for path in project_dir.glob(".optlab/checked/*.json"):
        path.write_text("{")
    assert preflight_cache.load_cached(config) is None
    assert preflight_cache.run_checks(config) == preflight_cache.load_cached(config)


def test_preflight_rechecks_only_edited_optimizer(project_dir, small_config, monkeypatch):
    adam = {"class": "Adam", "lr": 0.001}
    preflight_cache.run_checks(small_config(optimizers={"adam": adam, "sgd": {"class": "SGD", "lr": 0.01}}))
    looked = []
    monkeypatch.setattr(checks, "check_config", lambda config: looked.extend(config.optimizers) or [])
    preflight_cache.run_checks(small_config(optimizers={"adam": adam, "sgd": {"class": "SGD", "lr": 0.02}}))
    assert looked == ["sgd"]


GREEDY = """
import torch

class Greedy(torch.optim.SGD):
    def step(self, closure=None):
        torch.ones({numbers}, dtype=torch.uint8)
        return super().step(closure)
"""


@pytest.fixture
def write_greedy_optimizer(project_dir, monkeypatch):
    """A function that writes an optimizer whose step takes so many bytes, and returns its entry."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(project_dir / "custom")])

    def write(taken):
        name = f"greedy_{taken}"
        (project_dir / "custom" / f"{name}.py").write_text(GREEDY.format(numbers=taken))
        return {"class": f"{name}.Greedy", "lr": 0.01}

    return write


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a step took")
def test_memory_hungry_step_warning_is_cached(write_greedy_optimizer, small_config, monkeypatch):
    monkeypatch.setattr(processes, "get_total_memory", lambda: 2**27)
    monkeypatch.setattr(processes, "limit_memory", lambda: None)  # this process is larger already
    greedy = write_greedy_optimizer(2**26 + 2**24)
    config = small_config(optimizers={"sgd": {"class": "SGD", "lr": 0.01}, "mine": greedy})
    (sentence,) = preflight_cache.run_checks(config).warnings
    assert sentence.startswith("warning: optimizers.mine: its first step took 0.1 GiB of memory, more than half")
    assert preflight_cache.load_cached(config).warnings == [sentence]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process can write to")
def test_step_exceeding_memory_gives_one_line_error(write_greedy_optimizer, small_config):
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        with pytest.raises(ResourceError) as refused:
            memory = processes.get_total_memory() + psutil.swap_memory().total
            preflight_cache.run_checks(small_config(optimizers={"mine": write_greedy_optimizer(4 * memory)}))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    message = r"params.yaml: optimizers.mine: greedy_\d+.Greedy needs more than the [\d.]+ GiB of available memory"
    assert re.fullmatch(message, str(refused.value))


def test_failed_preflight_is_not_cached(project_dir, small_config):
    config = small_config(optimizers={"adam": {"class": "Adam", "betas": [2.0, 0.9]}})
    with pytest.raises(ConfigError, match="betas"):
        preflight_cache.run_checks(config)
    assert preflight_cache.load_cached(config) is None and not list(project_dir.glob(".optlab/checked/*"))


def test_preflight_cache_drops_oldest_entries(project_dir, small_config, monkeypatch):
    monkeypatch.setattr(preflight_cache, "_MAX_FILES", 2)
    for epochs in (1, 2, 3):
        preflight_cache.run_checks(small_config(training={"epochs": epochs}))
    assert len(list(project_dir.glob(".optlab/checked/*.json"))) == 2
    assert preflight_cache.load_cached(small_config(training={"epochs": 3}))
