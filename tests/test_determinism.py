"""The lines of docs/determinism.md: where the same bits are promised, and where they are not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optlab.environment import ENVIRONMENT_VARIABLES, detect_onednn_isa
from optlab.training import optimizer_factory
from optlab.training.numerics import PORTABLE_VARIABLES

TOP = Path(__file__).resolve().parents[1]
CLASSES = sorted(set(optimizer_factory.get_torch_classes()) - {"SparseAdam"})
CASES = [f"zilliax:{name}:fp32:64" for name in CLASSES]
CASES += ["zilliax:Adam:bf16:64", "resnet18:Adam:fp32:5", "zilliax:SGD:fp32:7"]
PORTABLE_CASES = [*CASES[: len(CLASSES)], *(f"zilliax:Adam:fp32:{size}" for size in (7, 50))]
PORTABLE_CASES += ["resnet18:SGD:fp32:7", "resnet18:SGD:fp32:19"]  # of 20 images: the last batch has 6, and 1
PORTABLE_CASES += [f"zilliax:{name}:fp32:64" for name in ("Lion", "MuonOfMatrices", "ScheduleFree")]
PORTABLE_CASES += ["conv6:SGD:fp32:128", "conv6:MuonOfFilters:fp32:128"]
SQUARE_ROOT = "sqrt, divide, addcmul"


def compute_digests(sample, threads, numerics, cases, cores=None, **variables):
    """What a process of its own computes, on the given cores only."""
    command = [sys.executable, TOP / "tests" / "digests.py", sample, threads, numerics, *cases]
    if cores is not None:
        command = ["taskset", "-c", cores, *command]
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT_VARIABLES}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"} | variables
    result = subprocess.run(map(str, command), capture_output=True, text=True, timeout=900, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def fast_digests(sample):
    return compute_digests(sample, 2, "fast", CASES)


def test_bits_do_not_depend_on_cores_or_load(sample, fast_digests):
    """All at once, and in the opposite order, so that what a process did before cannot matter either."""
    core = str(min(os.sched_getaffinity(0)))
    burn = ["taskset", "-c", core, "nice", "-n", "5", sys.executable, "-c", "while True: pass"]  # a third of the time
    load = subprocess.Popen(burn)
    try:
        assert compute_digests(sample, 2, "fast", CASES[::-1], cores=core) == fast_digests
    finally:
        load.kill()
        load.wait()


@pytest.fixture(scope="module")
def portable_digests(sample):
    return compute_digests(sample, 1, "portable", PORTABLE_CASES)


MOST_CASES = [case for case in PORTABLE_CASES if case != "resnet18:SGD:fp32:7"]  # the dearest is compared once


def test_portable_bits_do_not_depend_on_thread_count(sample, portable_digests):
    assert compute_digests(sample, 8, "portable", PORTABLE_CASES) == portable_digests


def test_fast_bits_depend_on_thread_count(sample, fast_digests):
    """Or else the tests above could not see a difference."""
    single = compute_digests(sample, 1, "fast", ["zilliax:Adam:fp32:64", "resnet18:Adam:fp32:5"])
    assert all(single[case] != fast_digests[case] for case in single)


def cpu_vendor():
    """The CPU's, as it calls itself."""
    found = re.search(r"^vendor_id\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "a make of its own"


def test_portable_bits_equal_recorded_digests(portable_digests):
    """The file was written on one machine. On a make that nobody has run it on, this finds out."""
    recorded = json.loads((TOP / "tests" / "data" / "portable.json").read_text())
    if cpu_vendor() not in recorded["measured_on"] and portable_digests != recorded["digests"]:
        pytest.xfail(f"never measured on a CPU of {cpu_vendor()}, and it differs there: correct docs/determinism.md")
    assert portable_digests == recorded["digests"]


@pytest.fixture(scope="module")
def mkl_vendor_override(tmp_path_factory):
    """The variables under which MKL takes the CPU to be of another make: Intel's, or not Intel's where it is one.

    With it, an AMD gives what was recorded on an Intel, as docs/determinism.md tells.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("mkl")
    answer = int(cpu_vendor() != "GenuineIntel")
    (folder / "make.c").write_text(f"int mkl_serv_intel_cpu_true(void) {{ return {answer}; }}\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "make.so", folder / "make.c"], check=True)
    return {"LD_PRELOAD": str(folder / "make.so")}


def test_portable_bits_ignore_mkl_cpu_detection(sample, portable_digests, mkl_vendor_override):
    """Nor, at the same time, on three threads, which share the work in other parts than eight."""
    found = compute_digests(sample, 3, "portable", MOST_CASES, **mkl_vendor_override)
    assert found == {case: portable_digests[case] for case in MOST_CASES}


def test_fast_bits_depend_on_mkl_cpu_detection(sample, mkl_vendor_override):
    """Or else the test above could not see a difference: the same training by MKL's own products."""
    cases, settings = ["zilliax:SGD:fp32:64"], PORTABLE_VARIABLES | {"MKL_CBWR": "AVX2"}
    here, there = (compute_digests(sample, 1, "fast", cases, **settings, **more) for more in ({}, mkl_vendor_override))
    if cpu_vendor() not in ("AuthenticAMD", "GenuineIntel") and here == there:
        pytest.xfail(f"never measured on a CPU of {cpu_vendor()}: MKL does there as it does on others")
    assert here != there


@pytest.fixture(scope="module")
def operation_digests():
    """Digests of single operations: the libraries' own, and with what `portable` replaces by number of threads."""
    result = subprocess.run(
        [sys.executable, TOP / "tests" / "operations.py", "1", "2", "3", "4", "8"], capture_output=True, text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_library_operations_equal_intel_digests(operation_digests):
    """Measured on an Intel Xeon: what `portable` leaves to the libraries is the same there."""
    there = json.loads((TOP / "tests" / "data" / "intel.json").read_text())["operations"]
    here = operation_digests["libraries"]
    assert {name for name in there if here[name] != there[name]} == {SQUARE_ROOT}  # MKL's is not rounded right
    assert operation_digests["1"][SQUARE_ROOT] == there[SQUARE_ROOT]


def test_portable_operations_do_not_depend_on_thread_count(operation_digests):
    assert all(operation_digests[threads] == operation_digests["1"] for threads in "2348")


LIMITS = [None, "AVX512_CORE_VNNI", "AVX2", "SSE41"]
# ATen's variable is set after the interpreter has started and before torch is imported. oneDNN reads its own when it is
# first used: in a child of its own for each limit.
LISTENER = """
import os
os.environ |= {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_VERBOSE": "1"}
import torch
print(torch.backends.cpu.get_cpu_capability(), flush=True)
for limit in %s:
    print(f"limit {limit}", flush=True)
    if os.fork() == 0:
        if limit:
            os.environ["ONEDNN_MAX_CPU_ISA"] = limit
        torch.nn.Conv2d(3, 32, 5)(torch.rand(64, 3, 32, 32))
        os.sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def instruction_sets():
    """What ATen calls its instruction set, and, by limit, the line in which oneDNN names its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT_VARIABLES}
    talk = subprocess.run(
        [sys.executable, "-c", LISTENER % LIMITS], capture_output=True, text=True, check=True, env=environment
    ).stdout
    capability, *parts = re.split(r"^limit .*\n", talk, flags=re.MULTILINE)
    lines = [[line for line in part.splitlines() if "cpu,isa:" in line] for part in parts]
    return capability.strip(), {limit: line for limit, (line,) in zip(LIMITS, lines, strict=True)}


@pytest.mark.parametrize("limit", LIMITS)
def test_recorded_instruction_set_matches_onednn(instruction_sets, limit):
    """oneDNN itself says so, in other words, when it is asked to talk."""
    said = {"AVX512_CORE_AMX": "AMX", "AVX512_CORE_BF16": "bfloat16", "AVX512_CORE_VNNI": "AVX-512 with Intel DL",
            "AVX512_CORE": "AVX-512", "AVX2_VNNI": "AVX2 with Intel DL", "AVX2": "AVX2", "SSE41": "SSE4.1"}  # fmt: skip
    name = detect_onednn_isa(limit)
    if name not in said:
        pytest.skip(f"this CPU has {name}, which this test does not know")
    assert said[name] in instruction_sets[1][limit]


def test_environment_variables_apply_before_torch_import(instruction_sets):
    assert instruction_sets[0] == "DEFAULT"
