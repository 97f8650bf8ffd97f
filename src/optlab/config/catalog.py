"""Ready entries for well-known optimizers, with where they come from and where to look for their learning rate.

The learning rate is the one that the paper or its authors' code begins with, or the class's default, or, for variants
of gradient descent, the one that SGD has here. What an entry leaves out has the class's default, too. Few papers say
where they searched, and those that do not alike: the range goes from a tenth of that rate to a hundred times it.
"""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from optlab.system.errors import ConfigError
from optlab.system.text import suggest_similar

PACKAGES = {"pytorch_optimizer": "4.1.0", "schedulefree": "1.4.1"}  # name → version; torch comes with optlab

_LR_FACTOR_BELOW, _LR_FACTOR_ABOVE = (
    10,
    100,
)  # a small network and a short training often want more than what was published

_FALLBACK = "fallback: {class: AdamW, lr: 0.001}"
_MUON_GROUPS = '{ndim: 2, use_muon: true}, {match: "*", use_muon: false}'


@dataclass(frozen=True)
class CatalogEntry:
    """One of them.

    Attributes:
        name: as it is asked for, and as the entry is called.
        text: the entry's text.
        source: who published it, and where.
    """

    name: str
    text: str
    source: str

    @property
    def values(self) -> dict[str, Any]:
        """The entry, read."""
        found: dict[str, Any] = YAML(typ="safe", pure=True).load(self.text)
        return found

    @property
    def package(self) -> str:
        """What has its class."""
        return str(self.values["class"]).partition(".")[0] if "." in self.values["class"] else "torch"

    @property
    def lr_range(self) -> tuple[float, float] | None:
        """The learning rates to search between; None where the class finds its own."""
        values = self.values
        lr = values.get("lr", values.get("base", {}).get("lr"))
        return None if lr is None else compute_lr_range(lr)

    @property
    def lr_range_text(self) -> str:
        """The same in words."""
        return "{:g} to {:g}".format(*self.lr_range) if self.lr_range else ""

    @property
    def text_with_range(self) -> str:
        """The entry with the range in place of the learning rate, which becomes its default."""
        if not self.lr_range:
            return self.text
        ends = ", ".join(f"{end:g}" for end in self.lr_range)
        return re.sub(r"lr: ([\d.]+)", rf"lr: {{log: [{ends}]}}, default: {{lr: \1}}", self.text, count=1)

    @property
    def comment(self) -> str:
        """What stands beside the entry."""
        return f"{self.source}; search lr from {self.lr_range_text}" if self.lr_range_text else self.source


def compute_lr_range(lr: float) -> tuple[float, float]:
    """The learning rates to search between, where one of this size is usual."""
    return lr / _LR_FACTOR_BELOW, lr * _LR_FACTOR_ABOVE


def format_table() -> str:
    """All of them, a line each."""
    rows = [("name", "class", "search lr from", "source")]
    rows += [(each.name, str(each.values["class"]), each.lr_range_text, each.source) for each in ENTRIES]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    lines += [f"{name} is not installed: pip install '{name}=={PACKAGES[name]}'" for name in missing]
    return "\n".join(lines)


def find_entry(name: str) -> CatalogEntry:
    """The one of that name.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    by_name = {each.name: each for each in ENTRIES}
    if name not in by_name:
        raise ConfigError(f"no entry is known as {name!r}{suggest_similar(name, by_name)}: `optlab add` lists them")
    found = by_name[name]
    if importlib.util.find_spec(found.package) is None:
        pinned = f"{found.package}=={PACKAGES[found.package]}"
        raise ConfigError(f"{name}: its package is not installed: pip install '{pinned}', then repeat the command")
    return found


def find_name(word: str) -> str | None:
    """Return the ready entry outside of torch that a bare word means, by its name or its class, regardless of case."""
    class_names = {
        each.name: each.values["class"].rpartition(".")[2] for each in reversed(ENTRIES) if each.package != "torch"
    }
    by_class = {class_.lower(): name for name, class_ in class_names.items()}
    return word.lower() if word.lower() in class_names else by_class.get(word.lower())


def _generate_torch_entries() -> Iterator[CatalogEntry]:
    """Every dense class of torch.optim."""
    kingma = "Kingma and Ba 2015, arXiv:1412.6980"
    yield CatalogEntry("sgd", "{class: SGD, lr: 0.01}", "Robbins and Monro 1951")
    yield CatalogEntry("momentum", "{class: SGD, lr: 0.01, momentum: 0.9}", "Polyak 1964")
    yield CatalogEntry("nesterov", "{class: SGD, lr: 0.01, momentum: 0.9, nesterov: true}", "Sutskever et al. 2013")
    yield CatalogEntry("adam", "{class: Adam, lr: 0.001}", kingma)
    yield CatalogEntry("amsgrad", "{class: Adam, lr: 0.001, amsgrad: true}", "Reddi et al. 2018, arXiv:1904.09237")
    yield CatalogEntry("adamax", "{class: Adamax, lr: 0.002}", kingma)
    yield CatalogEntry(
        "adamw", "{class: AdamW, lr: 0.001, weight_decay: 0.01}", "Loshchilov and Hutter 2019, arXiv:1711.05101"
    )
    yield CatalogEntry("nadam", "{class: NAdam, lr: 0.002}", "Dozat 2016")
    yield CatalogEntry("radam", "{class: RAdam, lr: 0.001}", "Liu et al. 2020, arXiv:1908.03265")
    yield CatalogEntry("rmsprop", "{class: RMSprop, lr: 0.001, alpha: 0.9}", "Tieleman and Hinton 2012")
    yield CatalogEntry("adagrad", "{class: Adagrad, lr: 0.01}", "Duchi et al. 2011")
    yield CatalogEntry("adadelta", "{class: Adadelta, lr: 1.0, rho: 0.95}", "Zeiler 2012, arXiv:1212.5701")
    yield CatalogEntry("adafactor", "{class: Adafactor, lr: 0.01}", "Shazeer and Stern 2018, arXiv:1804.04235")
    yield CatalogEntry("asgd", "{class: ASGD, lr: 0.01}", "Polyak and Juditsky 1992")
    yield CatalogEntry("rprop", "{class: Rprop, lr: 0.01}", "Riedmiller and Braun 1993; made for whole batches")
    yield CatalogEntry("lbfgs", "{class: LBFGS, lr: 0.1, max_iter: 4}", "Liu and Nocedal 1989; made for whole batches")
    yield CatalogEntry("muon", f"{{class: Muon, lr: 0.02, {_FALLBACK}}}", "Jordan et al. 2024; the rest by AdamW")


# name, class of pytorch_optimizer with what follows it, source
_PYTORCH_OPTIMIZER = (
    ("adabelief", "AdaBelief, lr: 0.001", "Zhuang et al. 2020, arXiv:2010.07468"),
    ("adabound", "AdaBound, lr: 0.001", "Luo et al. 2019, openreview.net/forum?id=Bkg3g2R9FX"),
    ("adahessian", "AdaHessian, lr: 0.1", "Yao et al. 2021, arXiv:2006.00719; second derivatives"),
    ("adam_mini", "AdamMini, lr: 0.001", "Zhang et al. 2024, arXiv:2406.16793"),
    ("adamp", "AdamP, lr: 0.001", "Heo et al. 2021, arXiv:2006.08217"),
    ("adan", "Adan, lr: 0.001", "Xie et al. 2022, arXiv:2208.06677"),
    ("adapnm", "AdaPNM, lr: 0.001", "Xie et al. 2021, arXiv:2103.17182"),
    ("ademamix", "AdEMAMix, lr: 0.001", "Pagliardini et al. 2024, arXiv:2409.03137"),
    ("adopt", "ADOPT, lr: 0.001", "Taniguchi et al. 2024, arXiv:2411.02853"),
    ("aggmo", "AggMo, lr: 0.001", "Lucas et al. 2019, arXiv:1804.00325"),
    ("amos", "Amos, lr: 0.001", "Tian and Parikh 2022, arXiv:2210.11693"),
    ("came", "CAME, lr: 0.0002", "Luo et al. 2023, arXiv:2307.02047"),
    ("dadapt_adam", "DAdaptAdam", "Defazio and Mishchenko 2023, arXiv:2301.07733; finds its rate"),
    ("dadapt_sgd", "DAdaptSGD", "Defazio and Mishchenko 2023, arXiv:2301.07733; finds its rate"),
    ("diffgrad", "DiffGrad, lr: 0.001", "Dubey et al. 2020, arXiv:1909.11015"),
    ("friendly_sam", "FriendlySAM, base: {class: SGD, lr: 0.01, momentum: 0.9}",
     "Li et al. 2024; two gradients a step"),
    ("fromage", "Fromage, lr: 0.01", "Bernstein et al. 2020, arXiv:2002.03432"),
    ("galore", "GaLore, lr: 0.001", "Zhao et al. 2024, arXiv:2403.03507"),
    ("grams", "Grams, lr: 0.001", "Cao et al. 2024, arXiv:2412.17107"),
    ("grokfast", "GrokFastAdamW, lr: 0.0001", "Lee et al. 2024, arXiv:2405.20233"),
    ("kron", f"Kron, lr: 0.001, memory_save_mode: one_diag, groups: [{{ndim: 2}}], {_FALLBACK}",
     "Li 2015, arXiv:1512.04202; without one_diag it takes 10 GB here, and convolutions take a second a step"),
    ("lamb", "Lamb, lr: 0.001", "You et al. 2020, arXiv:1904.00962; made for large batches"),
    ("laprop", "LaProp, lr: 0.0004", "Ziyin et al. 2020, arXiv:2002.04839"),
    ("lars", "LARS, lr: 0.001", "You et al. 2017, arXiv:1708.03888; made for large batches"),
    ("lion", "Lion, lr: 0.0001", "Chen et al. 2023, arXiv:2302.06675"),
    ("lookahead", "Lookahead, base: {class: Adam, lr: 0.001}", "Zhang et al. 2019, arXiv:1907.08610"),
    ("looksam", "LookSAM, base: {class: SGD, lr: 0.01, momentum: 0.9}", "Liu et al. 2022, arXiv:2203.02714"),
    ("madgrad", "MADGRAD, lr: 0.001", "Defazio and Jelassi 2021, arXiv:2101.11075"),
    ("mars", "MARS, lr: 0.003", "Yuan et al. 2024, arXiv:2411.10438"),
    ("nero", "Nero, lr: 0.01", "Liu et al. 2021, arXiv:2102.07227"),
    ("normuon", f"NorMuon, lr: 0.02, groups: [{_MUON_GROUPS}]", "Li et al. 2025, arXiv:2510.05491"),
    ("novograd", "NovoGrad, lr: 0.001", "Ginsburg et al. 2019, arXiv:1905.11286"),
    ("padam", "PAdam, lr: 0.1", "Chen et al. 2018, arXiv:1806.06763"),
    ("pnm", "PNM, lr: 0.001", "Xie et al. 2021, arXiv:2103.17182"),
    ("prodigy", "Prodigy", "Mishchenko and Defazio 2023, arXiv:2306.06101; finds its rate"),
    ("qhadam", "QHAdam, lr: 0.001, betas: [0.995, 0.999], nus: [0.7, 1.0]", "Ma and Yarats 2019, arXiv:1810.06801"),
    ("qhm", "QHM, lr: 0.01, momentum: 0.999, nu: 0.7", "Ma and Yarats 2019, arXiv:1810.06801"),
    ("ranger", "Ranger, lr: 0.001", "Wright 2019; RAdam within Lookahead"),
    ("ranger21", "Ranger21, lr: 0.001", "Wright and Demeure 2021, arXiv:2106.13731; has a schedule of its own"),
    ("sam", "SAM, rho: 0.05, base: {class: SGD, lr: 0.01, momentum: 0.9}",
     "Foret et al. 2021, arXiv:2010.01412; two gradients a step"),
    ("scion", "SCION, lr: 0.001", "Pethick et al. 2025, arXiv:2502.07529"),
    ("sgdp", "SGDP, lr: 0.01, momentum: 0.9", "Heo et al. 2021, arXiv:2006.08217"),
    ("shampoo", "ScalableShampoo, lr: 0.001", "Gupta et al. 2018, arXiv:1802.09568; in blocks: Anil et al. 2020"),
    ("signum", "SignSGD, lr: 0.001, momentum: 0.9", "Bernstein et al. 2018, arXiv:1802.04434"),
    ("sm3", "SM3, lr: 0.1, momentum: 0.9", "Anil et al. 2019, arXiv:1901.11150"),
    ("soap", "SOAP, lr: 0.003", "Vyas et al. 2024, arXiv:2409.11321"),
    ("sophia", "SophiaH, lr: 0.06", "Liu et al. 2023, arXiv:2305.14342; second derivatives"),
    ("splus", "SPlus, lr: 0.1", "Frans et al. 2025, arXiv:2506.07254"),
    ("stable_adamw", "StableAdamW, lr: 0.001", "Wortsman et al. 2023, arXiv:2304.13013"),
    ("swats", "SWATS, lr: 0.001", "Keskar and Socher 2017, arXiv:1712.07628"),
    ("tiger", "Tiger, lr: 0.001", "Su 2023"),
    ("wsam", "WSAM, base: {class: SGD, lr: 0.01, momentum: 0.9}",
     "Yue et al. 2023, arXiv:2305.15817; two gradients a step"),
    ("yogi", "Yogi, lr: 0.01", "Zaheer et al. 2018"),
)  # fmt: skip

# name, class of schedulefree with what follows it; they replace a schedule, so they are given a constant one
_SCHEDULE_FREE_SOURCE = "Defazio et al. 2024, arXiv:2405.15682"
_SCHEDULE_FREE = (
    ("schedule_free_sgd", "SGDScheduleFree, lr: 0.1"),
    ("schedule_free_adamw", "AdamWScheduleFree, lr: 0.0025"),
    ("schedule_free_radam", "RAdamScheduleFree, lr: 0.0025"),
)

ENTRIES = (
    *_generate_torch_entries(),
    *(
        CatalogEntry(name, f"{{class: pytorch_optimizer.{entry}}}", source)
        for name, entry, source in _PYTORCH_OPTIMIZER
    ),
    *(
        CatalogEntry(name, f"{{class: schedulefree.{entry}, schedule: {{name: constant}}}}", _SCHEDULE_FREE_SOURCE)
        for name, entry in _SCHEDULE_FREE
    ),
)
