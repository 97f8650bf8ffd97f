"""Texts in two languages: each template of the code has a translation, with the same values in it."""

import ast
import re
from pathlib import Path

import pytest

from optlab.analysis.chinese import CHINESE
from optlab.analysis.tables import COLUMNS
from optlab.analysis.translation import BilingualText, build_bilingual, translate, translate_count, use_language
from optlab.schema.parameters import CLASS_NAMES

ANALYSIS = Path(__file__).resolve().parents[1] / "src" / "optlab" / "analysis"


def list_constants():
    """All strings of the modules, and those that the report's template has translated."""
    trees = [ast.parse(path.read_text()) for path in ANALYSIS.glob("*.py") if path.name != "chinese.py"]
    found = {each.value for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Constant)}
    template = "".join(path.read_text() for path in ANALYSIS.glob("*.jinja"))
    return found, set(re.findall(r'\bt\("([^"]+)"', template))


def list_translated_literals():
    """Literals that a call of `translate` or `translate_both` names."""
    for path in ANALYSIS.glob("*.py"):
        for each in ast.walk(ast.parse(path.read_text())):
            if isinstance(each, ast.Call) and getattr(each.func, "id", "") in ("translate", "translate_both"):
                yield from (
                    word.value
                    for word in ast.walk(each.args[0])
                    if isinstance(word, ast.Constant) and isinstance(word.value, str)
                )


def test_every_template_has_translation():
    literals, in_page = set(list_translated_literals()), list_constants()[1]
    assert len(literals) > 60 and len(in_page) > 40
    pieces = {"{name} ", "_", " ", "train_", "training_"}  # of templates that are put together
    assert (literals | in_page) - pieces - CHINESE.keys() == set()


def test_every_translation_is_used():
    constants, in_page = list_constants()
    metrics = {each.replace("train_", "training_").replace("_", " ") for each in (*COLUMNS, "mirrored_test_accuracy")}
    together = {
        "{name} better",
        "{name} better, by less than the margin",
        "{name} {value} ({low} to {high}), meaningful",
        "{trials} of {names}{each} in a search for each seed",
        "{trials} of {names}{each} in one search for all seeds",
    }
    assert CHINESE.keys() - constants - in_page - metrics - together - {*CLASS_NAMES} == set()


@pytest.mark.parametrize("template", CHINESE)
def test_translation_has_same_values(template):
    names = [sorted(set(re.findall(r"\{(\w+)\}", text))) for text in (template, CHINESE[template])]
    assert names[0] == names[1]


def test_language_holds_within_its_block():
    with use_language("zh"):
        assert translate("optimizer") == "优化器" and translate_count(2, "seed") == "2 个种子"
    assert translate("optimizer") == "optimizer" and translate_count(1, "seed") == "1 seed"


def test_bilingual_text_is_escaped_and_marked():
    text = BilingualText("a < b", "甲")
    assert text.__html__() == '<span class="en" lang="en">a &lt; b</span><span class="zh" lang="zh">甲</span>'
    assert BilingualText("<", "<").__html__() == "&lt;"


def test_bilingual_structures_must_agree():
    assert build_bilingual(lambda: {"a": [translate("optimizer"), 1]}) == {
        "a": [BilingualText("optimizer", "优化器"), 1]
    }
    with pytest.raises(ValueError, match="shorter"):
        build_bilingual(lambda: ["one"] if translate("optimizer") == "optimizer" else [])
