import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "candid"
FLOW = [  # a module imports only from the left of itself
    "errors", "words", "randomness", "scratch", "durable", "locking", "manifest", "zoo", "paper_tables", "sizes",
    "notebook",
    "recipe_parts", "recipe", "recipes", "device", "out_of_memory", "data", "models", "explaining", "weights",
    "tensor_files", "checkpoint", "scores", "views", "evaluation", "kept_evaluation", "calibration", "comparison",
    "training", "audit", "report", "predict", "annotating", "video", "camera", "importing", "workflow",
    "model_tables", "recipe_tables", "printing", "plan_command", "audit_command", "compare_command",
    "camera_command", "video_command", "predict_command", "doctor_command", "cli", "__main__",
]  # fmt: skip
DATA_FLOW = [
    "download", "examples", "files", "png", "deep_grey", "decoding", "formats", "fashion_mnist_mini", "hashing",
    "folders", "catalog", "preprocessing", "ahead", "reading", "fetching", "sources", "duplicates", "survey",
    "diagnosis", "findings", "suggestion", "doctor", "quick_look", "picture_cache", "augmentation", "workers",
    "loading",
]  # fmt: skip
UNPICKLING = "pickle.UnpicklingError"
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


def used_names(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too, and of what it takes out of modules."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
    return names


def users_of(pattern: str) -> set[str]:
    """The files of the package that use a name which fits the regular expression from its beginning to its end."""
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(re.fullmatch(pattern, name) for name in used_names(path))
    }


DECODER = "data/decoding.py"
REPORT = {"report/pictures.py", "report/figures.py"}
"""It reads back the thumbnails that candid wrote into the run folder."""
FETCHERS = {"data/download.py", "data/fetching.py"}
"""The only modules that may open a connection."""


def test_only_the_decoder_opens_pictures():
    assert users_of(r"(PIL\.)?Image\.open|.*\.(imread|(read|decode)_image)") == REPORT
    assert users_of(r"PIL\.(.*Plugin|ImageFile)(\..*)?") == {DECODER}
    assert users_of(r"(cv2|imageio|skimage|tifffile|rawpy|pyvips|simplejpeg|turbojpeg)(\..*)?") == set()
    assert users_of(r"torchvision\.(io|datasets)(\..*)?") == set()


def test_only_the_fetchers_open_connections():
    assert users_of(r"(socket|ssl|ftplib|asyncio|urllib\.request|http\.client)(\..*)?") <= FETCHERS
    assert users_of(r"(requests|httpx|urllib3|aiohttp|pycurl|fsspec|huggingface_hub)(\..*)?") <= FETCHERS
    assert (
        users_of(r"torch\.hub(\..*)?|.*\.(urlopen|urlretrieve|load_state_dict_from_url|create_connection)") <= FETCHERS
    )


def test_nothing_can_run_code_from_a_file():
    for path in FILES:
        tree = ast.parse(path.read_text())
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        origins = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported |= {f"{node.module}" for node in origins}
        names = {f"{node.module}.{alias.name}" for node in origins for alias in node.names}
        if path == PACKAGE / "weights" / "reading.py":  # see the next test; of pickle, it knows an error by its class
            attributes -= {"torch.load"}
            imported -= {"pickle"} if {name for name in names if name.startswith("pickle.")} <= {UNPICKLING} else set()
        assert not called & {"eval", "exec", "compile", "__import__"}, path
        assert not (attributes | names) & {"torch.load", "torch.jit", "numpy.load", "np.load"}, path
        assert not imported & {"pickle", "marshal", "shelve", "yaml", "dill"}, path


def test_files_of_torch_are_read_as_weights_only_and_in_one_place():
    """Whatever the environment says: weights_only stands in the call itself."""
    tree = ast.parse((PACKAGE / "weights" / "reading.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"]
    assert len(calls) == len(uses) == 1
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0].keywords}
    assert options["weights_only"] == "True"
    assert None not in options  # no ** that could change it
