"""Who may import whom, read from the source, and what a process ends up loading."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("siglip_jax", "input_pipeline", "eval", "tools", "configs")
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(source: str) -> set[str]:
    """Dotted names that a file imports anywhere in it: "a.b" for `import a.b`, "a.b.c" for `from a.b import c`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide who is imported"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def late_imports(source: str) -> set[str]:
    """Dotted names of a file that calls import_module, which may import any of them."""
    if "import_module(" not in source:
        return set()
    constants = (
        n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )
    return {value for value in constants if "." in value and all(map(str.isidentifier, value.split(".")))}


def violations(package: str, allowed) -> list[str]:
    return [
        f"{path} imports {name}"
        for path, source in SOURCES.items()
        if path.startswith(f"{package}/")
        for name in sorted(imports(source))
        if name.split(".")[0] in PACKAGES and not allowed(name)
    ]


def below(*prefixes: str):
    return lambda name: any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("siglip_jax", ("siglip_jax",)),
        (
            "input_pipeline",
            (
                "input_pipeline",
                "siglip_jax.preprocessing",
                "siglip_jax.errors",
            ),
        ),
        ("eval", ("eval", "input_pipeline", "siglip_jax")),
        ("configs", ("configs", "siglip_jax.training.config")),
        ("tools", ("tools", "eval", "input_pipeline", "siglip_jax", "configs")),
    ],
)
def test_arrows(package, allowed):
    assert any(path.startswith(f"{package}/") for path in SOURCES)
    assert violations(package, below(*allowed)) == []


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("tensorflow", "siglip_jax/export/savedmodel.py"),
        ("scann", "eval/search/scann_index.py"),
        ("orbax", "siglip_jax/checkpoints.py"),
        ("grain", "input_pipeline/loader/batches.py"),
    ],
)
def test_one_module_owns_each_heavy_library(library, owner):
    found = {path: imports(source) | late_imports(source) for path, source in SOURCES.items()}
    importers = [path for path, names in found.items() if any(map(below(library), names))]
    assert importers == [owner]


def test_programs_do_not_call_one_another():
    from siglip_jax.cli import PROGRAMS

    programs = below(*(f"tools.{name}" for name in PROGRAMS))
    assert [path for path, source in SOURCES.items() if any(map(programs, imports(source)))] == []
    assert all(f"tools/{name}.py" in SOURCES for name in PROGRAMS)


def test_nothing_is_unpickled():
    for path, source in SOURCES.items():
        assert not any(map(below("pickle", "joblib", "dill", "cloudpickle"), imports(source))), path
        assert "allow_pickle=True" not in source, path


# --- what a process loads ---------------------------------------------------------------------------------------------

LOADED = "import sys; exec(sys.argv[1]); print(*sorted({name.split('.')[0] for name in sys.modules}))"
HEAVY = {"jax", "flax", "optax", "tensorflow", "torch", "scann", "grain", "orbax"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import siglip_jax", HEAVY | {"numpy", "absl"}),
        ("import siglip_jax.preprocessing", HEAVY),
        ("import siglip_jax.cli", HEAVY | {"numpy", "absl"}),
        ("import input_pipeline.dataset, input_pipeline.train_tokenizer", HEAVY),
        (
            "import input_pipeline.loader.batches",
            {"flax", "optax", "tensorflow", "torch"},
        ),  # Grain imports jax by itself
        (
            "import eval.search.index_builder, eval.report.report_page, eval.comparison",
            {"jax", "flax", "tensorflow", "torch"},
        ),
        ("import siglip_jax, siglip_jax.training.loop; siglip_jax.load", {"tensorflow", "torch", "grain"}),
    ],
)
def test_imports_stay_light(python, statement, absent):
    done = python(LOADED, statement)
    assert done.returncode == 0, done.stderr
    assert absent.isdisjoint(done.stdout.split())


WHOLE_THREAD = """
import sys
from siglip_jax.cli import main
config, dataset, workdir, out = sys.argv[1:]
config, dataset = f"--config={config}", f"--dataset={dataset}"
for arguments in (
    ["train", config, dataset, f"--workdir={workdir}"],
    ["embed", f"--model={workdir}", dataset, f"--output={out}/store"],
    ["index", f"--store={out}/store", f"--output={out}/index"],
    ["rank", config, dataset, f"--store=new={out}/store", f"--output={out}/report.html", "--scann=none"],
):
    assert main(arguments) == 0
    loaded = [name for name in ("tensorflow", "torch") if name in sys.modules]
    assert not loaded, f"{arguments[0]} loads {loaded}"
"""


def test_training_embedding_search_and_ranking_load_no_tensorflow(
    python, trained_workdir, config_file, shop_dataset, tmp_path
):
    done = python(WHOLE_THREAD, config_file, shop_dataset, trained_workdir, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()
