"""What installation stands on: the tested set fits the ranges, on every supported Python, from no index of ours."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from uniportrait_lite.toyworld.pretrain import report

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = {
    canonicalize_name(line.split("==")[0]): line.strip().split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_the_tested_set_satisfies_the_ranges():
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)]), text


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_the_tested_set_installs_on_every_supported_python(python):
    """Debian 12 has 3.11.2: a package that asks for 3.11.5 sends pip searching in vain."""
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    for name, version in PINNED.items():
        try:
            found = metadata(name)
        except PackageNotFoundError:
            continue  # not for this platform
        if found["Version"].split("+")[0] == version and found["Requires-Python"]:
            assert SpecifierSet(found["Requires-Python"]).contains(python), name


@pytest.mark.parametrize(
    "file", ["constraints.txt", "environment.yml", "pyproject.toml", "Makefile", ".ci/run", "binder/postBuild"]
)
def test_no_file_names_a_package_index_or_a_place_on_this_machine(file):
    text = (ROOT / file).read_text()
    text = re.sub(r'^Repository = "https://github.com/\S+"$', "", text, flags=re.MULTILINE)  # the project's own address
    assert not re.search(r"index-url|find-links|https?://|file://|@ /", text)


def test_the_page_about_the_data_says_what_the_records_say():
    assert report.page(ROOT / "data", report.HEAD) == (ROOT / "data" / "README.md").read_text()


def test_all_shipped_weights_are_at_most_eighty_megabytes():
    files = [path for path in (ROOT / "data" / "tiny").rglob("*") if path.suffix in (".safetensors", ".onnx", ".bin")]
    assert len(files) > 10 and sum(path.stat().st_size for path in files) <= 80e6
