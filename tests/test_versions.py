"""One version, wherever it stands; files for GitHub that can be read and name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import sdcore

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert {project["version"], citation["version"], newest[1]} == {sdcore.__version__}
    assert citation["keywords"] == project["keywords"]
    assert citation["license"] == project["license"]


def test_the_workflow_runs_what_every_change_must_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    assert {"run": ".ci/run"} in jobs["run"]["steps"] and (ROOT / ".ci/run").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for version in jobs["run"]["strategy"]["matrix"]["python"]:
        assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_forms_for_issues_have_what_github_asks_for() -> None:
    forms = [p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert len(forms) == 2
    for form in forms:
        said = yaml.safe_load(form.read_text("utf-8"))
        assert {"name", "description", "body"} <= set(said)
        for field in said["body"]:
            assert field["attributes"]["label"] and field["id"]
