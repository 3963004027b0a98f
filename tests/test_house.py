"""The house stays in order: imports run one way, the wheel holds every module, nothing unsafe is shipped."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors", "config", "blocks", "replace"},
    {"rope", "gguf", "support", "l2", "answer", "prompts", "extract", "worker", "pressure"},
    {"transfer"},
    {"cache", "streams"},
    {"decoder"},
    {"models", "ending"},
    {"proxies"},
    {"construct", "heads", "quantise"},
    {"passages"},
    {"document", "fingerprint"},
    {"store"},
    {"retrieve", "question", "scores", "recompute", "refill", "generate"},
    {"units"},
    {"choose", "whole"},
    {"select", "sources"},
    {"reading", "residency"},
    {"asking", "library"},
    {"desk"},
    {"engine"},
    {"training", "baselines"},
    {"evaluation", "integrations", "progress", "plot", "show"},
    {"options"},
    {"session", "demo"},
    {"store_commands", "data_commands", "train_commands", "evaluation_commands"},
    {"cli"},
]


def modules() -> dict[str, Path]:
    files = {}
    for folder, package in (("acre_rag", ""), ("integrations", "integrations."), ("baselines", "baselines.")):
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            files[package + ".".join(inner)] = path
    return files


def test_imports_run_one_way() -> None:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    wrong = []
    for module, path in modules().items():
        own = module.split(".")[0]
        if own == "__init__":
            continue
        assert own in floor, f"{module} has no floor in the house: add it to FLOORS"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("acre_rag."):
                target = node.module.split(".")[1]
                if target != own and floor[target] >= floor[own] and not (floor[target] == floor[own] and own < target):
                    wrong.append(f"{module} imports {node.module}")
            if isinstance(node, ast.ImportFrom) and node.module == "acre_rag" and own not in {"cli", "integrations"}:
                wrong.append(f"{module} imports the package itself")
    assert not wrong


def test_every_file_says_what_it_is() -> None:
    silent = [m for m, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_nothing_unsafe_is_shipped() -> None:
    unsafe = {"eval", "exec", "load", "loads", "__import__"}
    found = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [f"{module} imports {name}" for name in names & {"pickle", "marshal", "shelve", "dill"}]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in unsafe or called == "torch.load":
                    found.append(f"{module}:{node.lineno} calls {called}")
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if options.get("trust_remote_code") == "True" or options.get("shell") == "True":
                    found.append(f"{module}:{node.lineno} {options}")
    assert not found


def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    subprocess.run(
        ["uv", "build", "--wheel", "--quiet", "--out-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True
    )
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    expected = {"acre_rag/" + name.replace(".", "/") + ".py" for name in modules()}
    assert expected <= held
    assert {"acre_rag/py.typed", "acre_rag/data/alice.txt", "acre_rag/data/heads/smollm2-135m.json"} <= held


@pytest.mark.parametrize("folder", ["integrations", "baselines"])
def test_the_bare_name_of_a_mapped_folder_is_refused(folder: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"acre_rag.{folder}" in done.stderr
    __import__(f"acre_rag.{folder}")


def test_each_feature_has_its_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"llama-index", "langchain", "baselines", "train", "gpu", "demo", "documents", "plot"}
    assert wanted <= project["optional-dependencies"].keys()
    assert "flash-attn" in project["optional-dependencies"]["gpu"][0]


def test_the_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install uv && uv run acre demo" in readme
    assert "pip install uv && uv run pytest" in readme


def test_the_documents_figures_are_those_of_the_result_files() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.report import rendered, written

    for document, text in rendered().items():
        assert written(document).strip() == text.strip(), "run: python -m benchmarks.report"
