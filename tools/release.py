"""A release by one command:

    python -m tools.release 0.2.0 [--dry-run]         or: make release VERSION=0.2.0 [DRY_RUN=1]

The version is written where it stands (dnc/__init__.py, and dnc.h for C), what CHANGELOG.md has under "Unreleased" is
this version's, dated, a commit and a tag v0.2.0 are made, and dist/ gets the distributions of that commit and their
SHA256SUMS. Nothing is published: `twine upload dist/*` and `git push --follow-tags` do that.

All of it has the time of the commit that it is made of, or SOURCE_DATE_EPOCH: whoever repeats it gets the same bytes.

With --dry-run all of it happens in a copy of the repository, which is thrown away; dist/ stays.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import dnc
from tools import native
from tools.packages import STAGES, epoch

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = {"dnc/__init__.py": '__version__ = "{}"', "embed/include/dnc.h": '#define DNC_VERSION "{}"'}
"""Where the version stands, and how."""
HEADING = "## Unreleased\n"


def set_version(root: Path, version: str) -> None:
    """Writes the version into a checkout. Ends the program if it is not as it should be."""
    for name, form in VERSIONS.items():
        path = root / name
        text, found = re.subn(
            re.escape(form).replace(r"\{\}", '[^"]+'), form.format(version), path.read_text(encoding="utf-8")
        )
        if found != 1:
            sys.exit(f"{name} has {found} lines as {form.format('…')}, not one")
        path.write_text(text, encoding="utf-8")


def date_changes(text: str, version: str, date: str) -> str:
    """CHANGELOG.md with what is unreleased as a version's. Ends the program if there is nothing, or it is there."""
    if text.count(HEADING) != 1:
        sys.exit(f'CHANGELOG.md has no heading "{HEADING.strip()}", or several')
    if f"\n## {version} " in text:
        sys.exit(f"CHANGELOG.md has version {version} already")
    before, after = text.split(HEADING)
    if not after.split("\n## ")[0].strip():
        sys.exit("CHANGELOG.md says nothing of what changed since the last version")
    return f"{before}{HEADING}\n## {version} ({date})\n{after}"


def commit(root: Path, version: str, time: int) -> None:
    """Sets the version, dates the changes, commits and tags, all as of a time in seconds."""
    set_version(root, version)
    changes = root / "CHANGELOG.md"
    date = datetime.datetime.fromtimestamp(time, datetime.UTC).date().isoformat()
    changes.write_text(date_changes(changes.read_text(encoding="utf-8"), version, date), encoding="utf-8")
    then = {f"GIT_{who}_DATE": f"@{time} +0000" for who in ("AUTHOR", "COMMITTER")}
    _git(root, "add", "CHANGELOG.md", *VERSIONS)
    _git(root, "commit", "-q", "-m", f"Version {version}", more=then)
    _git(root, "tag", "-a", f"v{version}", "-m", f"Version {version}", more=then)


def write_sums(folder: Path) -> Path:
    """SHA256SUMS of the files in a folder, as sha256sum -c reads it."""
    paths = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    return folder / "SHA256SUMS"


def _git(root: Path, *arguments: str, more: Mapping[str, str] | None = None) -> str:
    """What git prints; `more` is for its environment. Ends the program where git fails, by what it says."""
    environment = {**os.environ, **(more or {})}
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _order(version: str) -> tuple[int, ...]:
    """What versions are sorted by. Ends the program if it is none."""
    number = "(0|[1-9][0-9]*)"
    found = re.fullmatch(rf"{number}\.{number}\.{number}(?:(a|b|rc){number})?", version)
    if found is None:
        sys.exit(f"{version!r} is no version: 1.2.3, or 1.2.3rc1")
    major, minor, patch, stage, step = found.groups()
    return int(major), int(minor), int(patch), ("a", "b", "rc", None).index(stage), int(step or 0)


def _check(root: Path, version: str) -> None:
    """Whether there may be a release."""
    order = _order(version)
    if _git(root, "status", "--porcelain", "--untracked-files=no"):
        sys.exit("there are changes that are not committed")
    if _git(root, "tag", "--list", f"v{version}").strip():
        sys.exit(f"there is a tag v{version} already")
    if order < _order(dnc.__version__):
        sys.exit(f"{version} is older than {dnc.__version__}, the version of this commit")


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes a release, and prints the digests of its files."""
    parser = argparse.ArgumentParser(description="Make a release.")
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="leave the repository as it is")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--only", action="append", choices=list(STAGES), help="this distribution; several times: these")
    given = parser.parse_args(arguments)
    out = given.out.absolute()
    _check(ROOT, given.version)
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} has files already: remove them")
    with tempfile.TemporaryDirectory() as scratch:
        # The distributions are of what git has, whatever else lies in the checkout.
        copy = Path(scratch, "dnc")
        _git(ROOT, "clone", "-q", "--no-hardlinks", str(ROOT), str(copy))
        # Who commits may be configured in this repository alone.
        for name in ("user.name", "user.email"):
            if configured := _git(ROOT, "config", "--default", "", name).strip():
                _git(copy, "config", name, configured)
        commit(copy, given.version, int(epoch()))
        native.CACHE.mkdir(parents=True, exist_ok=True)
        (copy / "build").mkdir()
        (copy / "build" / "native").symlink_to(native.CACHE)
        made = Path(scratch, "dist")
        command = [sys.executable, "-m", "tools.packages", *(given.only or STAGES), "--out", str(made)]
        if subprocess.run(command, cwd=copy, stdout=subprocess.DEVNULL).returncode:
            sys.exit("it cannot be built, as is said above; nothing was changed")
        sums = write_sums(made).read_text(encoding="utf-8")
        if not given.dry_run:
            _git(ROOT, "pull", "-q", "--ff-only", "--tags", str(copy), "HEAD")
        out.mkdir(parents=True, exist_ok=True)
        for path in made.iterdir():
            shutil.move(path, out / path.name)
        print(sums, end="")
        if given.dry_run:
            print(f"\n{_git(copy, 'show', '--stat', 'HEAD')}\nThe repository is as it was.", file=sys.stderr)


if __name__ == "__main__":
    main()
