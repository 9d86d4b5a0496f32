"""Releases: the version, the changes and the tag are one commit's, the files are that commit's, and what fails changes
nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dnc
from tests import ROOT
from tools import release
from tools.packages import files

CHANGES = "# Changes\n\n## Unreleased\n\n- **New** all of it.\n\n## 0.0.9 (2026-01-01)\n\n- Before.\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The checkout as a repository of its own, at a commit."""
    folder = tmp_path / "repository"
    for path in files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    for command in (
        ["init", "-q"],
        ["config", "user.name", "A"],
        ["config", "user.email", "a@b.c"],
        ["add", "-A"],
        ["commit", "-q", "-m", "All"],
    ):
        git(folder, *command)
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def run(repository: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.release", *arguments, "--only", "darknet-runtime"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, env={**os.environ, **variables})


def test_changes() -> None:
    """What is unreleased is the version's; the heading stays, for what comes."""
    dated = release.date_changes(CHANGES, "0.1.0", "2026-02-03")
    assert dated == CHANGES.replace("## Unreleased\n", "## Unreleased\n\n## 0.1.0 (2026-02-03)\n")
    assert re.findall("^## (.*)", dated, re.MULTILINE) == ["Unreleased", "0.1.0 (2026-02-03)", "0.0.9 (2026-01-01)"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (CHANGES.replace("Unreleased", "Later"), "no heading"),
        (CHANGES.replace("- **New** all of it.", ""), "nothing of what changed"),
        (CHANGES.replace("0.0.9", "0.1.0"), "version 0.1.0 already"),
    ],
)
def test_changes_that_are_not_in_order(text: str, what: str) -> None:
    with pytest.raises(SystemExit, match=what):
        release.date_changes(text, "0.1.0", "2026-02-03")


def test_version_is_written_where_it_stands(tmp_path: Path) -> None:
    for name in release.VERSIONS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    release.set_version(tmp_path, "7.8.9rc1")
    for name, form in release.VERSIONS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.count(form.format(dnc.__version__)) == 1
        changed = text.replace(form.format(dnc.__version__), form.format("7.8.9rc1"))
        assert (tmp_path / name).read_text(encoding="utf-8") == changed
    (tmp_path / "dnc" / "__init__.py").write_text("")
    with pytest.raises(SystemExit, match="has 0 lines as"):
        release.set_version(tmp_path, "7.8.9")


@pytest.mark.slow
def test_release(repository: Path, tmp_path: Path) -> None:
    """A dry run leaves the repository alone; then there is a commit with a tag, and dist/ has what sha256sum knows."""
    pytest.importorskip("build.__main__")
    before = git(repository, "rev-parse", "HEAD")
    result = run(repository, "7.8.9", "--dry-run", "--out", str(tmp_path / "dry"))
    assert result.returncode == 0, result.stderr
    assert "Version 7.8.9" in result.stderr
    assert (git(repository, "rev-parse", "HEAD"), git(repository, "tag"), git(repository, "status", "-s")) == (
        before,
        "",
        "",
    )
    result = run(repository, "7.8.9")
    assert result.returncode == 0, result.stderr
    # The same command gave the same bytes: all has the time of the commit before.
    assert (tmp_path / "dry" / "SHA256SUMS").read_text() == result.stdout
    assert len(set(git(repository, "log", "-2", "--format=%ct").split())) == 1
    assert git(repository, "log", "-1", "--format=%s").strip() == "Version 7.8.9"
    assert git(repository, "rev-parse", "v7.8.9^{commit}") == git(repository, "rev-parse", "HEAD")
    assert git(repository, "rev-parse", "HEAD^") == before
    assert git(repository, "status", "-s") == ""
    changed = git(repository, "diff", "--name-only", "HEAD^").split()
    assert changed == sorted(["CHANGELOG.md", *release.VERSIONS])
    dist = repository / "dist"
    assert sorted(path.name for path in dist.iterdir()) == [
        "SHA256SUMS",
        "darknet_runtime-7.8.9-py3-none-any.whl",
        "darknet_runtime-7.8.9.tar.gz",
    ]
    assert result.stdout == (dist / "SHA256SUMS").read_text()
    for line in result.stdout.splitlines():
        digest, name = line.split()
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
    with zipfile.ZipFile(dist / "darknet_runtime-7.8.9-py3-none-any.whl") as archive:
        assert b'__version__ = "7.8.9"' in archive.read("dnc/__init__.py")


@pytest.mark.slow
def test_refused(repository: Path) -> None:
    """With what to do, and nothing is changed."""
    git(repository, "tag", "v1.0.0")
    before = git(repository, "rev-parse", "HEAD")
    cases = {"1.0": "is no version", "01.0.0": "is no version", "1.0.0": "there is a tag v1.0.0 already"}
    cases |= {"0.0.9": "is older than", f"{dnc.__version__}rc1": "is older than"}
    for version, what in cases.items():
        result = run(repository, version)
        assert result.returncode != 0
        assert what in result.stderr
    (repository / "README.md").write_text("other")
    assert "changes that are not committed" in run(repository, "2.0.0").stderr
    git(repository, "checkout", "-q", "README.md")
    (repository / "dist").mkdir()
    (repository / "dist" / "old.whl").touch()
    assert "has files already: remove them" in run(repository, "2.0.0").stderr
    shutil.rmtree(repository / "dist")
    for name in ("user.name", "user.email"):
        git(repository, "config", "--unset", name)
    nobody = {f"GIT_{who}_{what}": "" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    result = run(repository, "2.0.0", GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, **nobody)
    assert result.returncode == 1
    assert result.stderr.startswith("git commit failed: ")
    assert git(repository, "rev-parse", "HEAD") == before
    assert git(repository, "tag").split() == ["v1.0.0"]


@pytest.mark.slow
def test_failed_build(repository: Path) -> None:
    """Of a version that cannot be built there is no commit and no tag."""
    (repository / "packages" / "runtime" / "README.md").unlink()
    git(repository, "commit", "-q", "-a", "-m", "Broken")
    before = git(repository, "rev-parse", "HEAD")
    result = run(repository, "7.8.9", "--only", "darknet-compiler")
    assert result.returncode != 0
    assert "nothing was changed" in result.stderr
    # The other one had been built.
    assert not (repository / "dist").exists()
    assert git(repository, "rev-parse", "HEAD") == before
    assert git(repository, "tag") == ""
