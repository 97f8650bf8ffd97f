"""The protocol of a ranking, in protocol.yaml of its folder: what every record of the ranking has in common.

The folder has one folder for each record, a pipeline like a study. The seeds of a record are derived from a digest of
the protocol and of the optimizer, so that nobody chooses them: each edit of the optimizer draws others.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from ruamel.yaml.error import YAMLError

from optlab.config import loader
from optlab.orchestration.versus_pipeline import dump_yaml
from optlab.schema.optimizer import OptimizerSpec, StrictModel
from optlab.schema.parameters import PARAMS_FILE, Config
from optlab.system import repository, source_code
from optlab.system.errors import ConfigError, summarize_error
from optlab.system.text import parse_yaml
from optlab.tuning import selection

DEFAULT_RANKING = Path("ranking")
PROTOCOL_FILE = Path("protocol.yaml")
CODE_STAGES = ("tune", "train", "evaluate")

_SEED_LIMIT = 1_000_000  # six digits, because a seed is part of file names
_FREE_KEYS = ("seeds", "optimizers")  # of params.yaml, which each record has of its own


class Protocol(StrictModel):
    """Content of protocol.yaml.

    Attributes:
        version: of the protocol; another one has a folder of its own.
        study: folder of the study whose optimizers are the references.
        replicates: number of seeds of each record, each with a search of its own.
        code: accepted digests of the code that searches, trains and evaluates, as `compute_code_digest` returns them.
        params: sections of params.yaml that all records share; the seed of `tuning` is the record's own.
    """

    version: int = Field(ge=1)
    study: str = Field(min_length=1)
    replicates: int = Field(ge=2, le=1000)
    code: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    params: dict[str, Any]

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        own = next((key for key in _FREE_KEYS if key in params), None)
        if own:
            raise ValueError(f"has {own}, which each record has of its own: remove it")
        tuning = params.get("tuning")
        if isinstance(tuning, dict) and "seed" in tuning:
            raise ValueError("tuning has a seed, which is derived for each record: remove it")
        verdict, looks = params.get("verdict"), [info.data.get("replicates")]
        if not isinstance(verdict, dict) or verdict.get("looks") != looks:
            raise ValueError(f"verdict.looks: has to be {looks}: places come from one look with all replicates")
        return params


@dataclass(frozen=True)
class Ranking:
    """A folder with a protocol and records.

    Attributes:
        folder: relative to the root of the repository, which is the working directory.
    """

    folder: Path
    protocol: Protocol

    @classmethod
    def load(cls, folder: Path) -> "Ranking":
        """Read and check the protocol of a ranking.

        Raises:
            ConfigError: the folder has none, or it cannot be used.
        """
        path = folder / PROTOCOL_FILE
        if not path.is_file():
            raise ConfigError(
                f"{folder}: has no {PROTOCOL_FILE}: name the folder of a ranking, such as {DEFAULT_RANKING}"
            )
        try:
            protocol = Protocol.model_validate(parse_yaml(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({summarize_error(error)})") from None
        except YAMLError as error:
            raise ConfigError(f"{path}: no YAML: {summarize_error(error)}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
        return cls(folder, protocol)

    @property
    def study(self) -> Path:
        """Folder of the reference study."""
        return Path(self.protocol.study)

    def list_records(self) -> list[Path]:
        """List the folders of the records, by name."""
        return sorted(path.parent for path in self.folder.glob(f"*/{PARAMS_FILE}"))

    def make_params(self, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of params.yaml of a record.

        Args:
            entry: of the optimizer, as params.yaml has it.

        Raises:
            ConfigError: the entry cannot be used with the protocol.
        """
        params, where = self.protocol.params, self.folder / name / PARAMS_FILE
        optimizers = {name: dict(entry)}
        config = parse_params(params | {"seeds": [0], "optimizers": optimizers}, where)
        spec = config.get_optimizer(name)
        modules = selection.hash_modules(config.list_class_paths(name))
        search_seed, *seeds = self.derive_seeds(name, spec, modules)
        tuning = (params.get("tuning") or {}) | {"seed": search_seed}
        return params | {"seeds": seeds, "tuning": tuning, "optimizers": optimizers}

    def derive_seeds(self, name: str, spec: OptimizerSpec, modules: Mapping[str, str]) -> list[int]:
        """Return the seed of the searches' points, then those of the replicates: distinct, below a million.

        They are parts of SHA-256 digests of protocol, name, entry and modules.

        Args:
            modules: as `selection.hash_modules` returns them for the optimizer and the model.
        """
        protocol = self.protocol.model_dump(include={"version", "replicates", "params"})
        content = {"protocol": protocol, "name": name, "entry": selection.dump_entry(spec), "modules": dict(modules)}
        text = json.dumps(content, sort_keys=True)
        seeds: dict[int, None] = {}
        counter = 0
        while len(seeds) <= self.protocol.replicates:
            digest = hashlib.sha256(f"{counter} {text}".encode()).digest()
            seeds[int.from_bytes(digest[:8], "big") % _SEED_LIMIT] = None
            counter += 1
        return list(seeds)

    def check_study(self) -> Config:
        """Check that the reference study has the protocol's parameters.

        Returns:
            its configuration, with the protocol's verdicts: a study may have further looks.

        Raises:
            ConfigError: it has others, or cannot be used.
        """
        path = self.study / PARAMS_FILE
        study = loader.load(path)
        params = self.protocol.params | {"seeds": [0], "optimizers": {"sgd": {"class": "SGD", "lr": 0.1}}}
        wanted = parse_params(params, self.folder / PROTOCOL_FILE)
        for key in type(study).model_fields:
            ours, theirs = getattr(wanted, key), getattr(study, key)
            if key == "tuning":
                theirs = theirs.model_copy(update={"seed": ours.seed})
            if key not in (*_FREE_KEYS, "verdict") and ours != theirs:
                raise ConfigError(f"{path}: {key} is not what {self.folder / PROTOCOL_FILE} has: it is no reference")
        return study.model_copy(update={"verdict": wanted.verdict})


def parse_params(values: dict[str, Any], path: Path) -> Config:
    """Check the content of a params.yaml.

    Raises:
        ConfigError: it cannot be used; the message names the file by `path`.
    """
    return loader.parse(dump_yaml(values), path)


def compute_code_digest(folder: Path) -> str:
    """Return the SHA-256 of the code that searches, trains and evaluates by the dvc.yaml in a folder.

    The modules of custom/ do not count: they are part of the optimizer.
    """
    names = [path for stage in CODE_STAGES for path in source_code.list_stage_files(folder, stage)]
    names = [path for path in names if not path.is_relative_to(repository.CUSTOM)]
    return hashlib.sha256(json.dumps(source_code.hash_files(names), sort_keys=True).encode()).hexdigest()
