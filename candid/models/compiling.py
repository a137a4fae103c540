"""C++ that is compiled where it runs, on first use, and kept."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from candid.durable import cache_folder

FOLDER = Path(__file__).parent
HEADER = FOLDER / "pieces.h"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math")
"""Nothing that lets the compiler forget what is no number: divergence has to show."""
COMPILE_TIMEOUT_S = 120


def load_pieces(name: str) -> str | None:
    """Compile a file beside this one, or take what was compiled before, and load it; what is wrong, or None."""
    if sys.platform != "linux":
        return f"compiled ones are for Linux, and this is {sys.platform}"
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"there is no C++ compiler ({', '.join(COMPILERS)})"
    source = FOLDER / name
    try:
        library = _library(source, compiler)
        if not library.is_file():
            _compile(source, compiler, library)
        torch.ops.load_library(library)
    except subprocess.CalledProcessError as error:
        return f"{compiler} fails: {(error.stderr.strip().splitlines() or ['it says nothing'])[0]}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"they could not be compiled ({error})"
    return None


def _library(source: Path, compiler: str) -> Path:
    """Where the compiled pieces are kept: a name for each source, compiler, processor and version of torch."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    facts = [version, torch.__version__, str(torch.cpu.get_capabilities()), *FLAGS]
    text = "\n".join(facts).encode() + HEADER.read_bytes() + source.read_bytes()
    return cache_folder() / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.so"


def _compile(source: Path, compiler: str, library: Path) -> None:
    """Compile the pieces beside their place and move them there whole: others may be doing the same."""
    torch_folder = Path(torch.__file__).parent
    include = torch_folder / "include"
    library.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [compiler, *FLAGS, "-fopenmp", "-std=c++20", "-shared", "-fPIC", f"-I{include}"]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        command += [f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}", str(source), "-o", str(built)]
        command += [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILE_TIMEOUT_S)
        built.replace(library)
