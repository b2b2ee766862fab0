"""Who may import whom, read from the source, and what a process ends up loading."""

import ast
import graphlib
import pathlib

import pytest

from siglip_jax.cli import PROGRAMS
from tools.bench import COMMANDS

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


def stubs() -> dict[str, dict[str, str]]:
    """{folder as a dotted name: {public name: the module that defines it}}, from the faces (`__init__.pyi`)."""
    found: dict[str, dict[str, str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("__init__.pyi")):
            folder = ".".join(path.relative_to(ROOT).parent.parts)
            lines = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ImportFrom)]
            found[folder] = {alias.name: f"{folder}.{line.module}" for line in lines for alias in line.names}
    return found


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES}
FACES = stubs()


def arrows() -> dict[str, set[str]]:
    """{module: modules that it imports, anywhere in it}; a name of a face counts as the module that defines it."""
    return {
        module: {found for name in imports(SOURCES[path]) if (found := owner(name))} for module, path in MODULES.items()
    }


def owner(name: str) -> str:
    """The module of ours that a dotted name stands in, "" for others."""
    folder, _, last = name.rpartition(".")
    if name not in MODULES and last in FACES.get(folder, {}):
        found = FACES[folder][last]
        return owner(f"{found}.{last}") if found in FACES else found
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some nodes that lead round in a circle; empty where there are none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_circle_of_files():
    assert circle({module: targets - {module} for module, targets in arrows().items()}) == []


@pytest.mark.parametrize("folder", sorted({str(pathlib.PurePath(path).parent) for path in SOURCES} | {"."}))
def test_arrows_run_down_between_the_entries_of_a_folder(folder):
    """Folders and files that lie side by side lean on one another in one direction only."""
    prefix = "" if folder == "." else f"{folder}/"

    def entry(module: str) -> str:
        path = MODULES[module]
        return path.removeprefix(prefix).split("/")[0] if path.startswith(prefix) else ""

    graph: dict[str, set[str]] = {}
    for module, targets in arrows().items():
        if (start := entry(module)) and start != "__init__.py":
            graph.setdefault(start, set()).update(end for end in map(entry, targets) if end not in ("", start))
    assert circle(graph) == []


def test_no_file_imports_the_face_of_a_folder_that_it_is_in():
    wrong = []
    for path, source in SOURCES.items():
        parents = {".".join(parent.parts) for parent in pathlib.PurePath(path).parents if parent.parts}
        for name in imports(source):
            folder, _, last = name.rpartition(".")
            if folder in parents and last in FACES.get(folder, {}) and not path.endswith("__init__.py"):
                wrong.append(f"{path} imports {name}; expected {FACES[folder][last]}")
    assert wrong == []


def test_names_of_a_face_are_imported_through_it():
    """One address a name; the faces of the packages themselves are for users."""
    wrong = []
    for path, source in SOURCES.items():
        for name in imports(source):
            module, _, last = name.rpartition(".")
            for folder, names in FACES.items():
                outside = "." in folder and not path.startswith(folder.replace(".", "/") + "/")
                if outside and names.get(last) == module:
                    wrong.append(f"{path} imports {name}; expected {folder}.{last}")
    assert wrong == []


def test_folders_and_files_stay_small():
    folders: dict[pathlib.PurePath, set[str]] = {}
    for path in map(pathlib.PurePath, SOURCES):
        for child in (path, *path.parents):
            program = child.stem in {"tools": PROGRAMS, "tools/bench": COMMANDS}.get(str(child.parent), ())
            if child.name and child.name != "__init__.py" and not program:
                folders.setdefault(child.parent, set()).add(child.name)
    crowded = {str(folder): len(entries) for folder, entries in folders.items() if len(entries) > 16}
    long = {path: lines for path, source in SOURCES.items() if (lines := source.count("\n")) > 400}
    assert (crowded, long) == ({}, {})


def test_no_two_files_and_no_two_classes_have_one_name():
    """A name says one thing. The programs in tools/ are named after what they run."""
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path, source in SOURCES.items():
        stem = pathlib.PurePath(path).stem
        if stem != "__init__" and not path.startswith(("tools/", "configs/")):
            files.setdefault(stem, []).append(path)
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(path)
    assert {name: paths for name, paths in {**files, **classes}.items() if len(paths) > 1} == {}


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


# Programs that run where nothing of this repository is: the first travels with exports.
ALONE = ("siglip_jax/export/verify_export.py", "tools/bench/export_parts/consumer.py")


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("tensorflow", "siglip_jax/export/savedmodel.py"),
        ("tensorflow_text", "siglip_jax/export/text_graph.py"),
        ("onnx", "siglip_jax/export/onnx/onnx_graph.py"),
        ("scann", "eval/search/scann_index.py"),
        ("orbax", "siglip_jax/checkpoints.py"),
        ("grain", "input_pipeline/loader/batches.py"),
        ("duckdb", "eval/logs/database.py"),
    ],
)
def test_one_module_owns_each_heavy_library(library, owner):
    found = {path: imports(source) | late_imports(source) for path, source in SOURCES.items()}
    importers = [path for path, names in found.items() if any(map(below(library), names))]
    assert [path for path in importers if path not in ALONE] == [owner]


def test_programs_do_not_call_one_another():
    programs = {f"tools.{name}" for name in PROGRAMS}
    assert programs <= MODULES.keys()
    # Commands of one program share what lies in its folder.
    callers = {
        module: called
        for module, targets in arrows().items()
        if (
            called := [
                name for name in targets if below(*programs)(name) and module.split(".")[:2] != name.split(".")[:2]
            ]
        )
    }
    assert callers == {}


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
            "import eval.search.index_builder, eval.report.report_page, eval.protocols.attribute_agreement",
            {"jax", "flax", "tensorflow", "torch"},
        ),
        ("import siglip_jax, siglip_jax.training.loop; siglip_jax.load", {"tensorflow", "torch", "grain"}),
    ],
)
def test_imports_stay_light(python, statement, absent):
    done = python(LOADED, statement)
    assert done.returncode == 0, done.stderr
    assert absent.isdisjoint(done.stdout.split())


def test_reading_batches_loads_nothing_that_builds_datasets(python):
    """Workers load this, one process each. 29 modules of ours; it was 40 with the builder, the audit and its page."""
    statement = "import input_pipeline.loader.batches, sys; print(*sorted(sys.modules))"
    done = python(statement)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "jinja2" not in loaded
    assert not [name for name in loaded if name.startswith(("input_pipeline.building", "input_pipeline.audit."))]
    assert len(loaded & MODULES.keys()) <= 32


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


# --- where tests are --------------------------------------------------------------------------------------------------


def test_tests_lie_where_what_they_test_lies():
    """tests/<folder>/test_<file>.py, an aspect behind the name or not; or test_<folder>.py for all of a folder."""
    lost = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.relative_to(ROOT / "tests").parent
        if folder.parts[:1] in ((), ("behaviour",), ("docs",)):
            continue
        files = [pathlib.PurePath(source) for source in SOURCES]
        names = [source.stem for source in files if source.parent == folder] + [folder.name]
        tested = path.stem.removeprefix("test_")
        if not any(tested == name or tested.startswith(f"{name}_") for name in names):
            lost.append(str(path.relative_to(ROOT)))
    assert lost == []
