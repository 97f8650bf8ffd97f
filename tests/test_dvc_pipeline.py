"""Use of DVC's internals: in one module, and as DVC has them."""

import ast
import hashlib
import inspect
import io
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from dvc import rwlock
from dvc.dependency import param
from dvc.repo import Repo
from dvc.stage import Stage, create_stage
from dvc.stage.cache import StageCache, _get_cache_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile import transfer
from rich.console import Console
from rich.progress import Progress

import optlab
from optlab.orchestration.dvc_pipeline import DvcPipeline
from optlab.preflight import checks
from optlab.system.errors import ConfigError, RunsFailedError

TOP = Path(__file__).resolve().parents[1]
PIPELINE = """\
stages:
  copy:
    cmd: cp input output
    deps: [input]
    params: [factor]
    outs: [output]
"""


def test_dvc_internals_are_imported_in_one_module():
    """`dvc.api` is public, and `dvc.config` has no public equal."""
    package = Path(optlab.__file__).parent
    imports = {
        (path.relative_to(package).as_posix(), name)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        )
        if name.split(".")[0] in ("dvc", "dvc_data", "dvc_objects")
    }  # fmt: skip
    elsewhere = {each for each in imports if each[0] != "orchestration/dvc_pipeline.py"}
    assert elsewhere == {("system/repository.py", "dvc.api"), ("system/repository.py", "dvc.config")}


def test_dvc_internals_take_our_arguments():
    for function, arguments, options in (
        (rwlock.rwlock, ["tmp", None, "command", [], [], False], {}),
        (param.load_path, ["params.yaml", None], {}),
        (param.read_param_file, [None, "params.yaml", ["model"], True], {}),
        (Stage.changed, [None], {"allow_missing": True}),
        (Stage.remove_outs, [None], {"ignore_remove": False, "force": False}),
        (Stage.save_deps, [None], {}),
        (Stage.save, [None], {}),
        (Stage.commit, [None], {}),
        (StageCache.restore, [None, None], {}),
        (create_stage, [Stage, None, "dvc.yaml"], {"cmd": "", "wdir": None, "outs": []}),
        (to_single_stage_lockfile, [None], {}),
        (transfer._log_exception, ["digest", OSError()], {}),
    ):
        inspect.signature(function).bind(*arguments, **options)


def test_dvc_at_top_reads_no_lock_of_a_study(tmp_path):
    """DVC reads every dvc.lock of its project for each command: those of the studies would make them all slower."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True).stdout
    pipelines = [Path(name) for name in listed.split("\0") if Path(name).name == "dvc.yaml"]
    assert len(pipelines) > 5
    for path in pipelines:
        for name in (path, path.with_name("params.yaml"), path.with_name(".dvc") / "config"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, tmp_path / name)
    Repo.init(str(tmp_path), no_scm=True, force=True).close()
    with Repo(str(tmp_path)) as repo:
        assert {stage.dvcfile.relpath for stage in repo.index.stages} == {os.path.relpath(tmp_path / "dvc.yaml")}


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A pipeline of one stage that has not been run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    for name, text in (("dvc.yaml", PIPELINE), ("params.yaml", "factor: 1\n"), ("input", "some")):
        Path(name).write_text(text)
    return DvcPipeline(Path("dvc.yaml"), ["copy"])


def run_copy(pipeline):
    assert pipeline.prepare("copy")
    shutil.copy("input", "output")
    pipeline.commit("copy")


@pytest.mark.parametrize(
    ("cmd", "printed", "status"),
    [
        ("echo one # note\n# note\n\necho two\n", "one\ntwo\n", 0),
        ("echo one; false\necho two", "one\n", 1),
        (["echo one", "echo two"], "one\ntwo\n", 0),
        ("echo one\n", "one\n", 0),
    ],
)
def test_all_commands_of_a_stage_are_run_up_to_one_that_fails(cmd, printed, status):
    stages = {"x": SimpleNamespace(cmd=cmd, wdir=str(Path.cwd()))}
    command, folder = DvcPipeline.get_command(SimpleNamespace(_stages=stages), "x")
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == (printed, status)


def test_stage_lifecycle_equals_dvc_repro(pipeline):
    """Staleness, run cache and the bytes of dvc.lock are those of DVC; it finds nothing left to do."""
    assert pipeline.names == ["copy"] and pipeline.is_stale("copy")
    assert pipeline.get_command("copy") == ("cp input output", Path())
    with pipeline.lock_stages(["copy"]):
        run_copy(pipeline)
    assert not pipeline.is_stale("copy")
    lock = Path("dvc.lock").read_bytes()
    with Repo() as repo:
        assert repo.status() == {} and repo.reproduce() == []
    Path("params.yaml").write_text("factor: 2\n")
    assert pipeline.is_stale("copy")
    assert pipeline.prepare("copy") and not Path("output").exists()
    Path("params.yaml").write_text("factor: 1\n")
    assert not DvcPipeline(Path("dvc.yaml"), ["copy"]).prepare("copy")  # DVC's run cache has it
    assert Path("output").read_text() == "some" and Path("dvc.lock").read_bytes() == lock
    Path("dvc.lock").unlink()
    with Repo() as repo:
        assert len(repo.reproduce()) == 1
    assert Path("dvc.lock").read_bytes() == lock


def test_interrupted_commit_can_be_repeated(pipeline, monkeypatch):
    assert pipeline.prepare("copy")
    shutil.copy("input", "output")
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "commit", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipeline.commit("copy")
    pipeline.commit("copy")
    assert not pipeline.is_stale("copy")


def test_dvc_warnings_are_printed_above_open_display(pipeline):
    """As on an entry of the run cache that a power failure has damaged."""
    run_copy(pipeline)
    (entry,) = (path for path in Path(".dvc/cache/runs").rglob("*") if path.is_file())
    entry.write_text("")
    Path("dvc.lock").unlink()
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True, soft_wrap=True)):
        assert DvcPipeline(Path("dvc.yaml"), ["copy"]).prepare("copy")
    assert f"warning: DVC: corrupted cache file '{entry}'.\n" in screen.getvalue()


def test_failed_copy_to_cache_is_an_error_with_its_cause(pipeline, monkeypatch, capsys):
    """DVC would log the cause, and ask the user whether it may remove the output that it could not copy."""
    assert pipeline.prepare("copy")
    Path("output").write_text("some")
    md5 = hashlib.md5(b"some").hexdigest()
    folder = Path(".dvc/cache/files/md5") / md5[:2]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to("/proc/self/task")  # a folder in which no file can be made
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    with pytest.raises(RunsFailedError, match=rf"^DVC's cache does not .* \(\[Errno 2\] .*: '.*/{md5[2:]}'\): mend it"):
        pipeline.commit("copy")
    assert Path("output").read_text() == "some" and not Path("dvc.lock").exists()
    assert capsys.readouterr() == ("", "")
    folder.unlink()
    run_copy(DvcPipeline(Path("dvc.yaml"), ["copy"]))
    assert Path("dvc.lock").exists()


@pytest.mark.parametrize("key", checks._RUN_CACHE_IGNORES)
def test_key_ignored_by_run_cache_is_refused(small_config, key):
    """DVC would restore the run with the former value; a key of any other name makes another digest."""
    assert _get_cache_hash({"params": {key: 1}}) == _get_cache_hash({"params": {key: 2}})
    assert _get_cache_hash({"params": {"lr": 1}}) != _get_cache_hash({"params": {"lr": 2}})
    entry = {"class": "SGD", "lr": 0.1, "groups": [{"ndim": 1, key: 3}]}
    message = (
        rf"^params.yaml: optimizers.mine.groups.0.{key}: DVC ignores a key named {key} when it looks for a cached run"
    )
    with pytest.raises(ConfigError, match=message):
        checks.check_config(small_config(optimizers={"mine": entry}))
