"""The two trees of benchmarks/compare.py, each laid out as it is once installed: the intake and the
scripts inside of the package. A directory like that goes before whatever else is installed.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from benchmarks.compare_buyers import Failed

__all__ = ["default_base", "resolve", "tree_of", "working_tree"]

# Where each lies in a checkout, and in a package.
_PARTS: Final = {"seckill": "seckill", "server": "seckill/server", "lua": "seckill/lua"}
_MAINS: Final = ("origin/main", "main", "origin/master", "master")
_REMEDY: Final = "name a commit, a branch or a tag: make bench-compare BASE=main"


def default_base(root: Path) -> str:
    """Where this branch has left the main branch. On the main branch itself the last commit, if the
    working tree differs from it, else the one before. Raises Failed."""
    head = resolve(root, "HEAD")
    for name in _MAINS:
        asked = _git(root, "merge-base", "HEAD", name)
        if asked.returncode == 0 and (fork := asked.stdout.decode().strip()) != head:
            return fork
    changed = _git(root, "status", "--porcelain", "--", *_PARTS).stdout.strip()
    return "HEAD" if changed else "HEAD~1"


def resolve(root: Path, revision: str) -> str:
    """The commit that a revision names. Raises Failed."""
    asked = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
    )
    if asked.returncode == 0:
        return asked.stdout.decode().strip()
    if _git(root, "rev-parse", "--git-dir").returncode:
        raise Failed(f"{root} is no checkout of git, so there is nothing to compare with")
    raise Failed(f"git knows no revision {revision!r} here; {_REMEDY}")


def tree_of(root: Path, commit: str, folder: Path) -> Path:
    """The tree of a commit, as a directory for PYTHONPATH. Raises Failed."""
    asked = _git(root, "archive", "--format=tar", commit, *_PARTS)
    if asked.returncode:
        raise Failed(f"{commit[:12]} has not all of {', '.join(_PARTS)}, so it can't be measured")
    source = folder / "source"
    with tarfile.open(fileobj=io.BytesIO(asked.stdout)) as archive:
        archive.extractall(source, filter="data")
    return working_tree(source, folder)


def working_tree(root: Path, folder: Path) -> Path:
    """What lies in a checkout now, committed or not, as a directory for PYTHONPATH."""
    tree = folder / "tree"
    for part, place in _PARTS.items():
        shutil.copytree(root / part, tree / place, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=False
        )
    except FileNotFoundError:
        raise Failed("git is not installed, and only git has the other tree") from None
