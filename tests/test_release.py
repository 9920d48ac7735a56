"""One version, wherever it is said; a citation that readers of CFF 1.2 accept."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from reasoning import __version__
from reasoning.runtime.provenance import versions

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere():
    told = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )
    assert told.stdout.split()[-1] == __version__
    assert versions()["reasoning"] == __version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"\[(Unreleased\]: )?{re.escape(__version__)}.*", headings[0])
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_citation_has_what_the_format_requires():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["version"] == __version__
    assert cited["message"] and cited["title"] and cited["type"] == "software"
    assert cited["license"] == "Apache-2.0"
    papers = cited["references"]
    assert all(paper["title"] and paper["type"] for paper in papers)
    for people in (cited["authors"], *(paper["authors"] for paper in papers)):
        assert people
        for person in people:
            assert set(person) in ({"name"}, {"given-names", "family-names"})
