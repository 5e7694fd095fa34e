"""Which module may import which: leaves know no other room, the method knows neither trainings nor evaluations."""

import ast
from pathlib import Path

import pytest

import uniportrait_lite

PACKAGE = Path(uniportrait_lite.__file__).parent

# In order: each may import those before it.
LEAVES = (
    "errors", "checks", "folders", "muon", "provenance", "pictures", "quiet", "speed", "graphs", "loop", "controls",
    "parts", "places", "hardware", "cli_help", "pipelines",
)  # fmt: skip
METHOD = (
    "backbone",
    "id_embedding",
    "conditions",
    "id_routing",
    "image_prompt",
    "style_alignment",
    "regions",
    "assignment",
    "distinct",
    "attention",
    "lora",
    "faces",
    "features",
    "checkpoints",
    "published",
    "official",
    "injection",
    "adapter",
    "sd15",
    "profiles",
)

MAY_IMPORT = {
    **{room: set(LEAVES[:k]) for k, room in enumerate(LEAVES)},
    **{room: {*LEAVES, *METHOD[:k]} for k, room in enumerate(METHOD)},
    "provenance": {"__init__"},  # the version
    # its recipes train the backbone, an IP-Adapter of the method's own attention, a LoRA
    "toyworld": {*LEAVES, "backbone", "image_prompt", "attention", "lora", "features", "official"},
    "compose": {*LEAVES, *METHOD},
    "evaluation": {
        *LEAVES,
        *METHOD,
        "toyworld",
        "compose",
        "__init__",
    },  # __init__: the public names, as users have them
    "training": {*LEAVES, *METHOD, "toyworld", "evaluation"},
    "learn": {*LEAVES, *METHOD, "toyworld", "doctor"},
    "demo": {*LEAVES, *METHOD, "evaluation", "__init__"},
    "weights": {*LEAVES, "toyworld", "training"},
    "onward": {*LEAVES, "checkpoints", "toyworld", "training", "weights"},
    "gallery": {*LEAVES, *METHOD, "toyworld", "evaluation", "compose", "__init__"},
    "doctor": {*LEAVES, "__init__"},  # speaks where the rest cannot be imported
    "rehearsal": {*LEAVES, *METHOD, "toyworld"},
    "cli": {
        *LEAVES,
        *METHOD,
        "toyworld",
        "training",
        "evaluation",
        "demo",
        "doctor",
        "gallery",
        "onward",
        "rehearsal",
        "weights",
        "__init__",
    },  # fmt: skip
    "__main__": {"cli"},
    "__init__": set(),
}


def rooms_of(name: str) -> str:
    """The room of a dotted name, as faces of uniportrait_lite.faces.detect; __init__ of the package and its names."""
    room = name.split(".")[1] if "." in name else "__init__"
    return room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file() else "__init__"


def imported(path: Path) -> set[str]:
    """The rooms that a module imports anywhere in it, also inside functions and for type checking only."""
    package = ["uniportrait_lite", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {rooms_of(name) for name in names if name.split(".")[0] == "uniportrait_lite"}
    return found


def test_imports_are_found_however_they_are_written():
    assert imported(PACKAGE / "toyworld" / "scenes.py") == {"toyworld"}
    assert {"errors", "pictures", "__init__"} <= imported(PACKAGE / "cli.py")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).with_suffix("").as_posix()
)
def test_a_module_imports_only_rooms_below_its_own(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert room in MAY_IMPORT, f"say in this test what {room} may import"
    assert imported(path) - {room} <= MAY_IMPORT[room]
