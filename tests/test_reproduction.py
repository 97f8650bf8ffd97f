"""Under which variables a recorded run is replayed, and what a revision cannot make it delete."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from optlab.records import Choice, Environment, EpochMetrics, EvalRecord, RunFiles, TrainRecord, TuningFiles
from optlab.reproduce import output_diff, rerun
from optlab.reproduce.output_diff import compare_outputs
from optlab.reproduce.rerun import derive_isa_variables, list_extra_requirements, reproduce
from optlab.system import processes
from optlab.system.errors import RevisionError
from optlab.system.files import compute_md5
from optlab.system.git import Revision, checkout
from optlab.training.numerics import PORTABLE_VARIABLES

OFF = {"ATEN_CPU_CAPABILITY": None, "MKL_CBWR": None, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
KEPT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

EPOCH = EpochMetrics(epoch=1, train_loss=1.0, running_loss=7.0, validation_loss=1.0, validation_accuracy=0.4, lr=0.1)
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org")

CASES = {
    "AVX2 on AVX-512": ({"cpu_capability": "AVX2", "onednn_isa": "AVX2"}, "AVX512_CORE_BF16", AVX2),
    "AVX2 on AVX-512, oneDNN's not recorded": ({"cpu_capability": "AVX2"}, "AVX512_CORE", AVX2),
    "AVX2 on AVX2": ({"cpu_capability": "AVX2", "onednn_isa": "AVX2"}, "AVX2", {}),
    "AVX-512 on more": (
        {"cpu_capability": "AVX512", "onednn_isa": "AVX512_CORE_BF16"},
        "AVX512_CORE_AMX",
        {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    ),
    "AVX-512 on AVX2, which cannot": ({"cpu_capability": "AVX512", "onednn_isa": "AVX512_CORE"}, "AVX2", {}),
    "a CPU that nothing is known of": ({"cpu_capability": "SVE256", "onednn_isa": None}, "AVX2", {}),
}


@pytest.mark.parametrize(("recorded", "isa", "expected"), CASES.values(), ids=CASES)
def test_newer_cpu_instructions_are_disabled_for_replay(recorded, isa, expected):
    assert derive_isa_variables(Environment(**recorded, variables=OFF), isa) == KEPT | expected


def test_fresh_environment_installs_recorded_optimizer_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, packages in (
        ("lion-0", {"torch": "2", "pytorch_optimizer": "4.1.0"}),
        ("free-0", {"schedulefree": "1.4"}),
    ):
        place = RunFiles.from_id(tmp_path, run).environment
        place.parent.mkdir(parents=True)
        place.write_text(Environment(packages=packages | {"gone": None}).model_dump_json())
    commit()
    revision = Revision.parse("HEAD")
    assert list_extra_requirements(revision, ["lion-0", "free-0"]) == ["pytorch_optimizer==4.1.0", "schedulefree==1.4"]
    place = RunFiles.from_id(tmp_path, "lion-0").environment
    place.write_text(Environment(packages={"torch": "1", "schedulefree": "1.3"}).model_dump_json())
    commit()
    with pytest.raises(RevisionError, match=r"free-0 was made with schedulefree 1.4, others with 1.3: name the runs"):
        list_extra_requirements(Revision.parse("HEAD"), ["lion-0", "free-0"])
    installed = []

    def run(words, **more):
        installed.append(words)
        return 0

    monkeypatch.setattr(processes, "run", run)
    (tmp_path / "constraints.txt").touch()
    rerun._create_virtual_environment(revision, tmp_path, list_extra_requirements(revision, ["lion-0"]), quiet=True)
    assert installed[-1][-3:] == ["-e", ".", "pytorch_optimizer==4.1.0"]


def test_package_conflict_matters_only_for_fresh_environment(tmp_path, monkeypatch):
    stage = {"cmd": "true", "outs": [{"path": "here", "md5": "0"}]}
    stages = dict.fromkeys(["download", "train@lion-0", "train@free-0"], stage)
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": stages}))
    for run, version in (("lion-0", "1.3"), ("free-0", "1.4")):
        place = RunFiles.from_id(tmp_path, run).environment
        place.parent.mkdir(parents=True)
        place.write_text(Environment(packages={"schedulefree": version}).model_dump_json())
    monkeypatch.chdir(tmp_path)
    commit()

    def provide(*words):
        raise RevisionError("as far as the data")

    monkeypatch.setattr(rerun, "_restore_data", provide)
    with pytest.raises(RevisionError, match="as far as the data"):
        list(reproduce(Revision.parse("HEAD"), ["lion-0", "free-0"], quiet=True))
    with pytest.raises(RevisionError, match=r"free-0 was made with schedulefree 1.4, others with 1.3"):
        list(reproduce(Revision.parse("HEAD"), ["lion-0", "free-0"], fresh=True, quiet=True))


def test_package_differences_are_those_of_every_run(tmp_path, monkeypatch):
    """But for conditions of another training."""
    versions = {"adam-0": "1.9", "adam-1": "2.0", "adam-2": "1.8"}
    for run, version in versions.items():
        files = RunFiles.from_id(tmp_path, run)
        Environment(packages={"torch": version}, weights_sha256="former" if run == "adam-2" else run).write(
            files.environment
        )
        TrainRecord.from_training("completed", [EPOCH], [], [[1.0]], {}, run).write(files.training)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rerun, "get_installed_version", lambda name: "2.0")
    commit()
    revision = Revision.parse("HEAD")
    found = [rerun.find_package_differences(revision, runs) for runs in (["adam-0", "adam-1"], ["adam-1", "adam-2"])]
    assert found == [{"torch": ("1.9", "2.0")}, {}]


def test_revision_runs_exclude_entries_removed_from_params(tmp_path, monkeypatch):
    """DVC keeps its entries in dvc.lock: an optimizer that is gone could not be trained, a seed would be."""
    runs = ["sgd-0", "sgd-1", "gone-0", "gone-1"]
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {f"train@{run}": {"outs": []} for run in runs}}))
    (tmp_path / "params.yaml").write_text("seeds: [0]\noptimizers: {sgd: {class: SGD, lr: of an older version}}\n")
    monkeypatch.chdir(tmp_path)
    commit()
    assert rerun.select_runs(Revision.parse("HEAD"), []) == ["sgd-0"]
    for name in runs[1:]:
        with pytest.raises(RevisionError, match=f"^HEAD: has no run {name}: it has sgd-0$"):
            rerun.select_runs(Revision.parse("HEAD"), [name])
    for text in ("seeds: 0", "{", "\xff"):  # nothing that this version understands: all that there is
        (tmp_path / "params.yaml").write_text(text, encoding="latin-1")
        commit()
        assert rerun.select_runs(Revision.parse("HEAD"), []) == runs


def test_stages_of_revision_import_its_code(tmp_path, monkeypatch):
    """Not the caller's, which `PYTHONPATH` or the environment has."""
    code = f"import optlab, pathlib; pathlib.Path('{tmp_path}/seen').write_text(optlab.__file__)"
    (tmp_path / "top" / "src" / "optlab").mkdir(parents=True)
    (tmp_path / "top" / "src" / "optlab" / "__init__.py").touch()
    stages = {"train@adam-0": {"cmd": f'python -c "{code}"', "outs": [{"path": "here", "md5": "0"}]}}
    (tmp_path / "top" / "dvc.lock").write_text(json.dumps({"stages": {"download": {"outs": []}} | stages}))
    monkeypatch.chdir(tmp_path / "top")
    monkeypatch.setattr(rerun, "_restore_data", lambda *words: None)
    commit()
    list(reproduce(Revision.parse("HEAD"), ["adam-0"], quiet=True))
    imported = Path((tmp_path / "seen").read_text())
    assert imported.parts[-4:] == ("tree", "src", "optlab", "__init__.py")
    assert not imported.is_relative_to(tmp_path / "top")


def worktrees():
    told = subprocess.run(["git", "worktree", "list", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return {Path(line.removeprefix("worktree ")) for line in told.splitlines() if line.startswith("worktree ")}


def test_stale_checkout_is_removed_by_next_reproduction(tmp_path, monkeypatch):
    top = tmp_path / "top"
    top.mkdir()
    monkeypatch.chdir(top)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (top / "file").touch()
    commit()
    revision = Revision.parse("HEAD")
    child = os.fork()
    if child == 0:
        try:
            with checkout(revision):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (killed,) = tmp_path.glob("optlab-reproduce-*")
    assert (killed / "tree" / "file").exists()
    users = [tmp_path / "optlab-reproduce-notes" / "mine", tmp_path / "optlab-reproduce-old" / "tree"]
    elsewhere = tmp_path / "optlab-reproduce-elsewhere"  # of another machine that has this repository, too
    for tree in (*users, elsewhere / "tree"):
        subprocess.run(["git", "worktree", "add", "-q", "--detach", tree], check=True)
    elsewhere.rename(tmp_path / "away")
    with checkout(revision) as at_work:
        assert not killed.exists()
        with checkout(revision) as other:
            assert (at_work / "file").exists() and (other / "file").exists()
    assert worktrees() == {top, *users, elsewhere / "tree"}
    assert all((tree / "file").exists() for tree in users)
    assert {each.name for each in tmp_path.iterdir()} == {"top", "away", *(tree.parent.name for tree in users)}
    assert not elsewhere.exists() and [each.name for each in top.iterdir() if each.name != ".git"] == ["file"]


def test_portable_run_replays_only_its_own_variables():
    """A `portable` run says nothing of the CPU that it ran on."""
    recorded = {"cpu_capability": "AVX2", "onednn_isa": "AVX2", "variables": OFF | PORTABLE_VARIABLES}
    assert derive_isa_variables(Environment(**recorded), "AVX512_CORE_BF16") == KEPT | PORTABLE_VARIABLES


def test_recorded_environment_variables_are_restored():
    recorded = {"cpu_capability": "AVX2", "onednn_isa": "AVX2", "variables": {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}}
    assert derive_isa_variables(Environment(**recorded), "AVX512_CORE")["ONEDNN_MAX_CPU_ISA"] == "AVX2_VNNI"


def test_record_cannot_set_other_variables():
    """A record may be a stranger's: it must not name a library to load."""
    recorded = {"cpu_capability": "AVX2", "variables": {"LD_PRELOAD": "theirs.so", "PYTHONPATH": "theirs"}}
    assert not {"LD_PRELOAD", "PYTHONPATH"} & set(derive_isa_variables(Environment(**recorded), "AVX2"))


def create_outside_file(folder):
    """A file outside of the checkout that must stay."""
    folder.mkdir(parents=True)
    (folder / "kept").write_text("mine")
    return folder / "kept"


def commit():
    """All that is in the working directory, as the first revision."""
    for words in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-qm", "record"]):
        subprocess.run(["git", *words], check=True)


# The path in dvc.lock, and what it is that the checkout has under a name that leads to the folder outside.
OUTSIDE = {
    "absolute": ("{outside}/kept", None),
    "up": ("../outside/kept", None),
    "up, and down again": ("models/../kept", None),
    "a folder that is a link": ("runs/kept", "runs"),
    "a folder of the conditions that is a link": ("kept", "runs/adam-0"),
    "a file that is a link": ("models/kept", "models/kept"),
    "the data's folder is a link": ("kept", "data"),
}


@pytest.mark.parametrize(("path", "link"), OUTSIDE.values(), ids=OUTSIDE)
def test_output_paths_outside_checkout_are_rejected(tmp_path, monkeypatch, path, link):
    top, victim = tmp_path / "top", create_outside_file(tmp_path / "outside")
    path = path.format(outside=victim.parent)
    stage = {"cmd": f"touch {tmp_path}/ran", "outs": [{"path": "here", "md5": "0"}, {"path": path, "md5": "0"}]}
    top.mkdir()
    (top / "dvc.lock").write_text(json.dumps({"stages": {"download": stage, "train@adam-0": stage}}))
    if link:
        (top / link).parent.mkdir(parents=True, exist_ok=True)
        (top / link).symlink_to(victim if link.endswith("kept") else victim.parent)
    monkeypatch.chdir(top)
    commit()
    named = {"runs/adam-0": "runs/adam-0/conditions.json", "data": "data/cifar10"}.get(link, path)
    with pytest.raises(RevisionError, match=f"^HEAD: .*{named}.* outside"):
        list(reproduce(Revision.parse("HEAD"), ["adam-0"], quiet=True))
    assert victim.read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["outside", "top"]


def test_repeated_search_finds_no_recorded_trials(tmp_path, monkeypatch):
    """A search for all seeds has its trials in the files of each seed, and would take them from there."""
    top, seen = tmp_path / "top", tmp_path / "seen"
    stages = {name: {"cmd": "true", "outs": []} for name in ("download", "train@adam-0")}
    for seed in (0, 1):
        tuning_files = TuningFiles(Path(), "adam", seed)
        Choice(is_tuned=True, entry={"class": "Adam"}, modules={}).write(top / tuning_files.choice)
        (top / tuning_files.trials).write_text("{}")
        paths = [tuning_files.choice.as_posix(), tuning_files.trials.as_posix()]
        stages[tuning_files.stage] = {
            "cmd": f"ls tuning/* >> {seen}; false", "outs": [{"path": path, "md5": "0"} for path in paths]
        }  # fmt: skip
    (top / "dvc.lock").write_text(json.dumps({"stages": stages}))
    monkeypatch.chdir(top)
    commit()
    results = list(reproduce(Revision.parse("HEAD"), ["adam-0"], quiet=True, tuning=True))
    assert [each.run for each in results] == ["adam-0", "tune@adam-0"]
    assert seen.exists() and "trials.json" not in seen.read_text()


@pytest.mark.parametrize("command", ["echo one; false\necho two", ["echo one; false", "echo two"]])
def test_commands_of_a_stage_are_run_up_to_one_that_fails(tmp_path, capfd, command):
    reason = rerun._run_stage(command, tmp_path, dict(os.environ), quiet=False)
    assert capfd.readouterr().out == "one\n" and reason.endswith("` ended with exit status 1")


def test_altered_file_of_a_commit_is_different(tmp_path, monkeypatch):
    """Training again gives the file of dvc.lock; those who read the record read the one in git."""
    files = RunFiles(Path(), "adam", 0)
    record = EvalRecord(status="completed", test_accuracy=0.5, test_loss=1.0, expected_calibration_error=0.1)
    monkeypatch.chdir(tmp_path)
    record.write(files.test)
    outs = [{"path": files.test.as_posix(), "md5": compute_md5(files.test)}]
    record.model_copy(update={"test_accuracy": 0.99}).write(files.test)
    (tmp_path / "dvc.lock").write_text('{"stages": {}}')
    commit()
    (tmp_path / "tree").mkdir()
    record.write(tmp_path / "tree" / files.test)
    Environment().write(tmp_path / "tree" / files.environment)
    result = compare_outputs(Revision.parse("HEAD"), tmp_path / "tree", files, outs)
    assert result.verdict == "different" and result.reason.startswith("runs/adam-0/test.json in the commit is not")
    record.write(files.test)
    subprocess.run(["git", *IDENTITY, "commit", "-qam", "again"], check=True)
    assert compare_outputs(Revision.parse("HEAD"), tmp_path / "tree", files, outs).verdict == "identical"


def test_password_of_unreachable_mlflow_is_not_printed(monkeypatch, capsys):
    address = "postgresql://ada:pa@sse-secret@127.0.0.1:1/db"

    def fail(*_):
        raise OSError(f"no answer from {address}, host 'sse-secret@127.0.0.1'")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(output_diff.mlflow_store, "find_run_ids", fail)
    assert output_diff._find_original_run(Revision("HEAD", "0" * 40, Path()), "adam-0", "0") is None
    said = capsys.readouterr().err
    assert "warning: MLflow was not reached" in said and "secret" not in said


def test_checkout_runs_no_hook_of_the_user(tmp_path, monkeypatch):
    """DVC's fetches data there, and fails."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    commit()
    hook = tmp_path / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho the moon >&2\nexit 1\n")
    hook.chmod(0o755)
    with checkout(Revision.parse("HEAD")) as tree:
        assert (tree / "file").exists()


def test_tuning_output_paths_are_checked_before_first_run(tmp_path, monkeypatch):
    top, victim = tmp_path / "top", create_outside_file(tmp_path / "outside")
    stage = {"cmd": f"touch {tmp_path}/ran", "outs": [{"path": "here", "md5": "0"}]}
    tuned = stage | {"outs": [{"path": "../outside/kept", "md5": "0"}]}
    tuning_files = TuningFiles(top, "adam", 0)
    Choice(is_tuned=True, entry={"class": "Adam"}, modules={}).write(tuning_files.choice)
    (top / "dvc.lock").write_text(
        json.dumps({"stages": dict.fromkeys(["download", "train@adam-0"], stage) | {tuning_files.stage: tuned}})
    )
    monkeypatch.chdir(top)
    commit()
    with pytest.raises(RevisionError, match="outside/kept may lead outside"):
        list(reproduce(Revision.parse("HEAD"), ["adam-0"], quiet=True, tuning=True))
    assert victim.read_text() == "mine" and not (tmp_path / "ran").exists()
