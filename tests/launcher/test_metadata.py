"""pyproject.toml as ComfyUI's registry reads it, and requirements.txt as ComfyUI Manager does."""

import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registrys_fields():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (ROOT / project["license"]["file"]).is_file() and (ROOT / project["readme"]).is_file() and project["description"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", comfy["PublisherId"]) and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert {"Repository", "Documentation", "Issues"} == set(project["urls"]) and project["classifiers"]
    urls = [*project["urls"].values(), comfy["Icon"], comfy["Banner"]]
    assert all(url.startswith("https://") and "example" not in url for url in urls)
    assert all((ROOT / "docs" / "pictures" / Path(url).name).is_file() for url in urls[3:])


def test_both_lists_of_dependencies_agree():
    assert PROJECT["project"]["dependencies"] == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


def test_the_changelog_knows_the_version():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in log or f"## [{PROJECT['project']['version']}]" in log


def test_links_in_the_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
