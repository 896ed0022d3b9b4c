import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_newest_version_is_the_packages():
    """The changelog's newest release is the version that pyproject.toml builds."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert HEADINGS[1] == version


def test_unreleased_stands_first():
    """There is always a place for the next change."""
    assert HEADINGS[0] == "Unreleased"
