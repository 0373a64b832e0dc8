"""The house's one-way imports, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "fleet": {"fleet"},
    "envs": {"fleet", "envs"},
    "policies": {"fleet", "policies"},
    "training": {"fleet", "envs", "policies", "training", "registry", "__init__"},
    "serving": {"fleet", "policies", "serving", "__init__"},
    "actuators": {"fleet", "actuators", "__init__"},
}
"""Packages (and modules of the face) that each package may import; experiments and the face may import everything."""

FORBIDDEN = {
    "fleet": {
        "torch",
        "pandas",
        "fastapi",
        "scipy",
        "gymnasium",
        "mlflow",
        "stable_baselines3",
        "matplotlib",
    },
    "policies": {"gymnasium", "mlflow", "stable_baselines3", "fastapi", "pandas"},
    "envs": {"torch", "mlflow", "fastapi", "pandas"},
    "serving": {"torch", "gymnasium", "mlflow", "stable_baselines3", "pandas"},
    "actuators": {"torch", "fastapi", "numba", "gymnasium", "mlflow", "pandas", "stable_baselines3"},
}
"""Libraries that a package must not import anywhere; torch in `policies` is allowed in network.py and export alone."""


def imports(path: Path) -> list[tuple[int, str, str]]:
    """(line, package of ours or "", library or "") of every import statement of a file."""
    package = path.relative_to(ROOT).parts
    out = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out += [(node.lineno, "", alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            head = (node.module or "").split(".")
            if head[0] == "flyball":
                out.append((node.lineno, head[1] if len(head) > 1 else "__init__", ""))
            else:
                out.append((node.lineno, "", head[0]))
        elif isinstance(node, ast.ImportFrom):
            here = ["flyball", *package[:-1]]
            base = here[: len(here) - (node.level - 1)]
            full = base + (node.module.split(".") if node.module else [])
            if len(full) > 1:
                out.append((node.lineno, full[1], ""))
            else:
                known = [
                    a.name if a.name in (*MAY_IMPORT, "registry", "experiments", "cli") else "__init__"
                    for a in node.names
                ]
                out += [(node.lineno, name, "") for name in known]
    return out


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_only_what_stands_below_them(package):
    """Imports point one way: fleet <- envs, policies <- training; fleet <- actuators; serving never sees the plant."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {ours}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, ours, _ in imports(path)
        if ours and ours not in MAY_IMPORT[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_stay_free_of_heavy_libraries(package):
    """A node agent never loads torch or FastAPI, the service never torch, the nouns nothing but NumPy."""
    excused = {"envs/sb3_env.py": {"torch"}}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {library}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, _, library in imports(path)
        if library in FORBIDDEN[package] - excused.get(str(path.relative_to(ROOT)), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_numba_stands_only_in_kernels():
    """In `fleet`, numba is imported inside the arbiter alone, so that agents never load it."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "fleet").glob("*.py"))
        if any(library == "numba" for _, _, library in imports(path))
    ]
    assert not wrong


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in memory after a statement in a fresh interpreter."""
    code = f"{statement}; import sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import flyball.fleet, flyball.fleet.topology, flyball.fleet.snapshot",
            {"torch", "pandas", "fastapi", "numba"},
        ),
        ("import flyball.cli", {"numpy", "torch", "rich", "numba", "matplotlib"}),
        ("import flyball.actuators.agent", {"torch", "fastapi", "numba", "gymnasium"}),
        ("import flyball.envs.plant, flyball.registry", {"torch", "mlflow", "fastapi", "pandas"}),
    ],
)
def test_imports_load_nothing_heavy(statement, unwanted):
    """What each part does not need is not even in memory after importing it."""
    assert not loaded_after(statement) & unwanted
