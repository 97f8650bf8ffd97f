"""Git merges of a record, by the drivers that .gitattributes names; and what a merge without them has left.

A merge by lines mixes two records. `optlab-lock` merges dvc.lock stage by stage, `optlab-record` keeps ours of a file
that a stage writes. Files and entries that do not fit together are stale for DVC, which compares their digests.
"""

import shlex
import sys
from pathlib import Path

from optlab.orchestration import dvc_lock
from optlab.system import errors, git, repository
from optlab.system.text import find_conflict_marker

# Of a pipeline, in its folder. Reports are not checked: the next `dvc repro` writes them anew.
_CHECKED_PATHS = ("dvc.lock", "runs", "tuning")
_REPORTS = "reports"


def merge_entries(
    base: dict[str, str], ours: dict[str, str], theirs: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Merge the entries of three dvc.lock files: stage → text.

    Returns:
        The entries, ours first, then the new ones of theirs; and the names of those that both sides changed, each in
        its own way, of which ours are kept: `dvc repro` runs these stages where they do not match params.yaml.
    """
    merged, conflicts = {}, []
    for name in dict.fromkeys([*ours, *theirs]):
        before, here, there = (each.get(name) for each in (base, ours, theirs))
        entry = there if here == before else here
        if here != before and there not in (before, here):
            conflicts.append(name)
            entry = here or there  # what one side deleted and the other changed is kept
        if entry:
            merged[name] = entry
    return merged, conflicts


def install() -> None:
    """Add the drivers to the configuration of this clone, unless it has them.

    It never fails: without them, git merges by lines, and `check_conflicts` has the remedy.
    """
    key = "merge.optlab-lock.driver"
    installed = git.get_output("config", "--get", key)
    settings = {
        "merge.optlab-lock.name": "dvc.lock, stage by stage",
        "merge.optlab-record.name": "a file that a stage writes: ours",
        "merge.optlab-record.driver": "true",
        key: _make_command(),
    }
    if installed == settings[key] or repository.is_experiment_copy():
        return
    written = [git.get_output("config", name, value) for name, value in settings.items()]
    if installed is None and None not in written:
        print(
            "note: git merges dvc.lock stage by stage from now on: see merge.optlab-lock in .git/config",
            file=sys.stderr,
        )


def _make_command() -> str:
    """Return the driver's command line for the shell; if this Python is gone, or fails, git's merge by lines."""
    python = shlex.quote(sys.executable).replace("%", "%%")
    by_lines = "git merge-file -q -L ours -L base -L theirs %A %O %B"
    return f"{python} -m optlab.orchestration.merge_driver %O %A %B %P || {by_lines}"


def check_conflicts(folder: Path) -> None:
    """Check that no merge has left conflict markers in a pipeline's dvc.lock or records.

    Raises:
        RecordError: it has; with the remedy.
    """
    conflicts = _list_unmerged(folder, [*_CHECKED_PATHS, _REPORTS])
    checked = [path for path in conflicts if path.relative_to(folder).parts[0] != _REPORTS]
    for path in checked:
        line = find_conflict_marker(path.read_text("utf-8", "replace")) if path.is_file() else None
        if line:
            tops = dict.fromkeys((folder / each.relative_to(folder).parts[0]).as_posix() for each in conflicts)
            paths = shlex.join(tops)
            raise errors.RecordError(
                f"{path}:{line}: conflict markers of a git merge: `git checkout --merge {paths}` merges it again, "
                f"without any; then `git add {paths}`"
            )


def _list_unmerged(folder: Path, names: list[str]) -> list[Path]:
    listing = git.get_output("ls-files", "--unmerged", "-z", "--", *(str(folder / each) for each in names)) or ""
    return [Path(each) for each in dict.fromkeys(line.partition("\t")[2] for line in listing.split("\0") if line)]


def main() -> None:
    """Merge one dvc.lock for git, or install the drivers where there are no arguments."""
    if len(sys.argv) == 1:
        install()
        return
    *files, name = map(Path, sys.argv[1:])
    base, ours, theirs = (
        dvc_lock.parse_entries(file.read_bytes(), Path(f"{side}:{name}"))
        for side, file in zip(("base", "ours", "theirs"), files, strict=True)
    )
    merged, conflicts = merge_entries(base, ours, theirs)
    dvc_lock.write_entries(files[1], merged.values())
    if conflicts:
        names = ", ".join(conflicts)
        print(f"{name}: both sides changed {names}: ours is kept; `dvc repro` runs what is stale", file=sys.stderr)


if __name__ == "__main__":
    errors.run_main(main)
