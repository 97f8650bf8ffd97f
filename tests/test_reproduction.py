"""Under which variables a recorded run is replayed."""

import pytest

from optlab.record.contents import Conditions
from optlab.reproduce.rerun import replay_variables
from optlab.training.numerics import PORTABLE

OFF = {"ATEN_CPU_CAPABILITY": None, "MKL_CBWR": None, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
KEPT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

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
def test_what_this_cpu_has_more_is_held_back(recorded, isa, expected):
    assert replay_variables(Conditions(**recorded, variables=OFF), isa) == KEPT | expected


def test_what_the_program_held_back_itself_is_replayed_and_nothing_else():
    """A `portable` run says nothing of the CPU that it ran on."""
    recorded = {"cpu_capability": "AVX2", "onednn_isa": "AVX2", "variables": OFF | PORTABLE}
    assert replay_variables(Conditions(**recorded), "AVX512_CORE_BF16") == KEPT | PORTABLE


def test_what_was_set_is_set_again():
    recorded = {"cpu_capability": "AVX2", "onednn_isa": "AVX2", "variables": {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI"}}
    assert replay_variables(Conditions(**recorded), "AVX512_CORE")["ONEDNN_MAX_CPU_ISA"] == "AVX2_VNNI"
