"""Bad and odd params.yaml files: each kind takes a random generator and a good file's text, and changes it."""

import random
import re
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]

# These modules lie beside the file under test. Whoever calls what `trap` holds leaves a file behind.
TRAPS = {
    "trap.py": "import pathlib\ndef touch(*a, **k):\n    pathlib.Path('executed').touch()\n"
    "class Touch:\n    __init__ = __call__ = touch\n",
    "leaves.py": "import sys\nsys.exit()\n",
    "breaks.py": "raise ValueError('one line\\nand another')\n",
}
TOUCH = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [executed]]"

PAIR = re.compile(r"(?<![\w#.])(\w+): ([^\s,{}\[\]#]+)")  # `key: scalar`, wherever it stands
ENTRY = re.compile(r"^  (\w+): (\{class: (\w+).*\})$", re.MULTILINE)  # an optimizer

# fmt: off
SCALARS = [
    "null", "~", "''", '""', "[]", "{}", "[1]", "0", "-1", "1", "00", "007", "0o17", "0x1F", "0b11", "1_000", "+5",
    "-_", "-0.0", "0.5", "1.", ".5", "1e-3", '"1e-3"', "1E5", "1e400", ".nan", ".inf", "-.inf", "NaN", "inf", "nan",
    "1e308", "1e-400", "9223372036854775808", "-9223372036854775809", "true", "True", "yes", "no", "on", "off", "n",
    '"true"', "'on'", "1:30", "1e", "0x", "12:30:45", "2024-01-01", "1/2", "two", "3px", "５", "é", '"\\ud800"',
    '"\\0"', '"a\\nb"', "<<", "=", "-", "?", "%", "@", "`", "|", ">", "&", "*", "!", "#", "zilliax", "resnet18",
    "fp16", "FP32", "portable", "AdamW", "test", "../../etc/passwd", "/dev/zero", "${HOME}", "{{x}}", "[0.9, 0.999]",
    "[[1]]", "[true]", "[a]", "[null]", "[.nan]", "{a: 1}", "{class: SGD}", "two words", "1, 5",
]
HUGE = [
    "9" * 30, "9" * 5000, "0x" + "f" * 5000, "-0x" + "f" * 5000, "1" + "0" * 299, "1e" + "9" * 30, "0." + "3" * 5000,
]
TAGGED = [
    '!!int ""', '!!float ""', "!!bool x", "!!int x", "!!float x", "!!timestamp x", "!!binary x", "!!binary YQ==",
    "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str 1", '!!int "1"', '!!float "0.1"', "!!null x", "!own 1",
    "!<x> 1", "!!merge <<", "!!python/name:trap.touch", "!!python/object/new:trap.Touch []",
    "!!python/object/apply:trap.touch []", TOUCH,
]
CLASSES = [
    "sgd", "Sgd", "SDG", "Adamm", "adamw", "ADAM", "Optimizer", "SparseAdam", "LBFGS", "Muon", "torch.optim.Adam",
    "torch.optim", "torch.optim.Optimizer", "torch.optim.", ".SGD", "..SGD", "torch..SGD",
    "torch.optim.lr_scheduler.StepLR", "torch.nn.Linear", "torch.zeros", "builtins.print", "builtins.dict",
    "collections.OrderedDict", "optlab.training.models.zilliax", "nowhere.Adam", "trap.touch", "trap.Touch", "trap",
    "leaves.Adam", "breaks.Adam", "os.path", "math.pi", "mlflow.Adam", "torch.ops.x",
]
MODELS = [
    "resnet18", "resnet", "Zilliax", "zilliaks", "optlab.training.models.zilliax", "optlab.training.models.nothing",
    "torch.nn.Identity", "trap", "torch.nn.Linear", "torch.nn.Module", "math.pi", "builtins.dict",
    "collections.OrderedDict", "nowhere.model", "leaves.model", "sys.exit",
]
SCHEDULES = [
    "cosine", "[]", "{}", "{name: cosine}", "{name: Cosine}", "{name: linear}", "{name: step}",
    "{name: step, step_epochs: 1}", "{name: step, step_epochs: 0}", "{name: step, step_epochs: 2, gamma: 2}",
    "{name: one_cycle, warmup_epochs: 0.5}", "null", "{name: constant, gamma: 0.1}",
    "{name: one_cycle, warmup_epochs: 1e9}", "{name: [a]}", "{name: }", "{name: 1, name: 2}",
    "{name: cosine, warmup_epochs: 0x" + "f" * 400 + "}",
]
HYPERPARAMETERS = [
    "momentum: 0.9", "momentum: -1", "nesterov: true", "betas: [0.9, 0.999]", "betas: [0.9]", "betas: 0.9",
    "betas: []", "betas: [2, 3]", "betas: [0.9, 0.99, 0.999]", "eps: -1", "eps: 0", "weight_decay: .inf",
    "weight_decay: 1e308", "params: 1", "self: 1", "lr: 0.1", "wieght_decay: 0.1", "momentum: high", "amsgrad: 3",
    "foreach: true", "fused: true", "maximize: yes", "defaults: 1", "max_iter: 1000000000", "fallback: {class: SGD}",
    "fallback: null", "fallback: SGD", "ключ: 1", "1: 2", "fallback: {class: SGD, fallback: {class: SGD}}",
    "class: Adam", "class_: Adam", "<<: {lr: 1}", "true: 1", "null: 1", "[a]: 1",
]
NAMES = [
    "sgd.fast", "sgd-fast", "SGD", "1", "1e3", "true", "null", "on", "é", "''", '"a b"', "../a", "_a", "a",
    "a" * 5000, "<<", "[a]", "? a",
]
ALPHABET = ":{}[],\"'#&*!|>%@-?\\\t\r\n \x00\x7f\x85\ufeff\u2028éа９\U0001f600"
# fmt: on


def _edit(pattern: re.Pattern[str], group: int, values: list[str]) -> Callable[[random.Random, str], str]:
    """A kind that replaces a group of one match by one of these values."""

    def change(draw: random.Random, text: str) -> str:
        start, end = draw.choice(list(pattern.finditer(text))).span(group)
        return text[:start] + draw.choice(values) + text[end:]

    return change


def _typo(draw: random.Random, text: str) -> str:
    start, end = draw.choice(list(PAIR.finditer(text))).span(1)
    word, at = text[start:end], draw.randrange(end - start)
    shorter, longer = word[:at] + word[at + 1 :], word[: at + 1] + word[at:]
    changed = [shorter, longer, word.upper(), word[::-1], f"{word} ", f'"{word}"']
    return text[:start] + draw.choice(changed) + text[end:]


def _type(draw: random.Random, text: str) -> str:
    """The same value as text, as a fraction, in a list: nothing is to be converted unasked."""
    start, end = draw.choice(list(PAIR.finditer(text))).span(2)
    value = text[start:end]
    return text[:start] + draw.choice([f'"{value}"', f"!!str {value}", f"{value}.0", f"[{value}]", "true"]) + text[end:]


def _swap(draw: random.Random, text: str) -> str:
    one, two = sorted(draw.sample(list(PAIR.finditer(text)), 2), key=lambda each: each.start())
    return text[: one.start(2)] + two[2] + text[one.end(2) : two.start(2)] + one[2] + text[two.end(2) :]


def _lines(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    at, to = draw.randrange(len(lines)), draw.randrange(len(lines))
    cut = [*lines[:at], *lines[at + 1 :]]
    return "".join(draw.choice([cut, [*lines, lines[at]], [*cut[:to], lines[at], *cut[to:]], lines[:at], lines[at:]]))


def _pairs(draw: random.Random, text: str) -> str:
    start, end = draw.choice(list(PAIR.finditer(text))).span()
    return draw.choice([text[:start] + text[end:], text[:end] + ", " + text[start:end] + text[end:]])


def _indentation(draw: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    lines[at] = draw.choice(["", " ", "   ", "\t", "- ", "\u00a0 "]) + lines[at].lstrip()
    return "".join(lines)


def _character(draw: random.Random, text: str) -> str:
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(ALPHABET) + text[at + draw.randrange(2) :]


def _bytes(draw: random.Random, text: str) -> bytes:
    content = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 3])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content[: draw.choice([None, None, draw.randrange(len(content))])])


def _encoding(draw: random.Random, text: str) -> bytes:
    if draw.random() < 0.3:
        return text.replace("\n", draw.choice(["\r", "\r\n", "\u2028", "\x85"])).encode()
    encoding = draw.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "cp500"])
    return (text + draw.choice(["", "# é\n"])).encode(encoding)


def _aliases(draw: random.Random, text: str) -> str:
    laughs = "1"
    for i in range(10):
        laughs = f"[&l{i} {laughs}{f', *l{i}' * 9}]"  # ten billion leaves, if they are all written out
    seeds = draw.choice(["&s [*s]", "&s [0, *s]", "*s", "&s [0]\nmore: *s", laughs])
    entry = draw.choice(
        ["*a", "{<<: *a, lr: 0.5}", "{<<: [*a, *a]}", "{<<: {class: SGD, lr: x}}", "*b", "{class: SGD, lr: &l [*l]}"]
    )
    return draw.choice([
        re.sub(r"^seeds: \[.*?\]", lambda _: f"seeds: {seeds}", text, count=1, flags=re.MULTILINE),
        ENTRY.sub(rf"  \1: &a \2\n  more: {entry}", text, count=1),
        _edit(PAIR, 2, [laughs])(draw, text),
        text.replace("data: {", "data: &d {more: *d, "),
    ])  # fmt: skip


def _deep(draw: random.Random, text: str) -> str:
    n = draw.choice([5, 50, 100, 200, 400, 1000, 20_000])
    deep = ["[" * n + "]" * n, "{a: " * n + "1" + "}" * n, "[" * n, "- " * n + "1"]
    return _edit(PAIR, draw.choice([1, 2]), [*deep, "x" * 100_000, '"' + "é " * 50_000 + '"'])(draw, text)


def _directive(draw: random.Random, text: str) -> str:
    return (
        draw.choice(
            ["%YAML 1.1\n---\n", "%YAML 9.9\n---\n", "%TAG ! x\n---\n", "---\n", "--- |\n", "...\n", "a\n---\n", "[\n"]
        )
        + text
    )


def _nothing(draw: random.Random, text: str) -> str:
    return draw.choice(
        ["", "\n", "null", "[]", "{}", "# only\n", "text", "1", "\x00", " " * 99, text * 2, TOUCH, f"a: {TOUCH}"]
    )


KINDS: dict[str, Callable[[random.Random, str], str | bytes]] = {
    "typo in a key": _typo,
    "another value": _edit(PAIR, 2, SCALARS),
    "another type": _type,
    "huge number": _edit(PAIR, 2, HUGE),
    "tag": _edit(PAIR, 2, TAGGED),
    "tag on a key": _edit(PAIR, 1, TAGGED),
    "swapped values": _swap,
    "lines": _lines,
    "pairs": _pairs,
    "indentation": _indentation,
    "character": _character,
    "flipped bits": _bytes,
    "encoding": _encoding,
    "aliases": _aliases,
    "deep or long": _deep,
    "class": _edit(re.compile(r"class: (\w+)"), 1, CLASSES),
    "hyperparameter": _edit(
        re.compile(r"^  \w+: \{class: \w+()", re.MULTILINE), 1, [f", {each}" for each in HYPERPARAMETERS]
    ),
    "name": _edit(ENTRY, 1, NAMES),
    "model": _edit(re.compile(r"^model: (\w+)", re.MULTILINE), 1, MODELS),
    "schedule": _edit(re.compile(r"schedule: (\{.*?\})"), 1, SCHEDULES),
    "directive": _directive,
    "nothing": _nothing,
}


def originals() -> list[str]:
    """The good files: the repository's two, and the first with its commented optimizers in force."""
    default = (TOP / "params.yaml").read_text()
    every = re.sub(r"^  # (\w+: \{class: .*?\})( +#.*)?$", r"  \1", default, flags=re.MULTILINE)
    return [default, (TOP / "tutorial" / "params.yaml").read_text(), every]


def make(draw: random.Random, number: int) -> tuple[str, bytes]:
    """The kind and the content of one file; the kinds take turns."""
    kind = list(KINDS)[number % len(KINDS)]
    changed = KINDS[kind](draw, draw.choice(originals()))
    return kind, changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass")
