import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "candid"
FLOW = [  # a module imports only from the left of itself
    "errors", "words", "randomness", "durable", "recipe", "recipes", "device", "data", "models", "weights",
    "checkpoint", "evaluation", "training", "report", "predict", "workflow", "cli", "__main__",
]  # fmt: skip
DATA_FLOW = [
    "download", "examples", "decoding", "formats", "fashion_mnist_mini", "folders", "catalog", "preprocessing",
    "augmentation", "loading",
]  # fmt: skip
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(path: Path) -> set[str]:
    """Dotted names below candid that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("candid.") for name in names if name.startswith("candid.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upstream(path: Path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for imported in imported_modules(path):
        stage, _, rest = imported.partition(".")
        assert FLOW.index(stage) <= FLOW.index(parts[0]), f"{path} imports {imported}, which lies downstream of it"
        within = rest.partition(".")[0]
        if parts[0] == "data" and stage == "data" and len(parts) > 1 and within in DATA_FLOW:
            assert DATA_FLOW.index(within) <= DATA_FLOW.index(parts[1]), f"{path} imports {imported}, downstream of it"


def test_every_module_has_a_place_in_the_flow():
    stages = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    assert stages == set(FLOW)


def test_only_the_decoder_opens_pictures():
    openers = {str(path.relative_to(PACKAGE)) for path in FILES if "Image.open" in path.read_text()}
    assert openers - {"report/pictures.py"} == {"data/decoding.py"}  # the report reads back candid's own thumbnails


def test_nothing_can_run_code_from_a_file():
    for path in FILES:
        tree = ast.parse(path.read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not called & {"eval", "exec", "compile", "__import__"}, path
        assert not attributes & {"torch.load", "torch.jit", "numpy.load", "np.load"}, path
        assert not imported & {"pickle", "marshal", "shelve", "yaml", "dill"}, path
