"""What is published: a wheel and an sdist that pass the index's checks, and work with nothing but torch."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command, **options):
    """Run a command with no trace of this checkout in its environment; returns the finished process."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def files_below(distribution):
    """What a distribution put beside itself: the top of each path, but for scripts."""
    found = importlib.metadata.distribution(distribution)
    tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
    return {top: Path(str(found.locate_file(top))) for top in tops}


def needed_by(distribution):
    """The names of a distribution and of all that it requires without extras."""
    names, waiting = set(), [distribution]
    while waiting:
        name = waiting.pop()
        try:
            required = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        names.add(name)
        plain = [re.match(r"[\w.-]+", line) for line in required if "extra ==" not in line]
        waiting += [found[0] for found in plain if found and found[0] not in names]
    return names


@pytest.fixture(scope="module")
def python_with_torch_alone(built, tmp_path_factory):
    """The Python of a fresh environment: torch as it is here, and the wheel."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for distribution in needed_by("torch"):
        for name, path in files_below(distribution).items():
            if not (site / name).exists():
                (site / name).symlink_to(path)
    [wheel] = built.glob("*.whl")
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    assert done.returncode == 0, done.stderr
    return python


def test_the_index_would_take_them(built):
    done = run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_has_the_package_and_nothing_else(built):
    [wheel] = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources | {"ldadam/py.typed"} == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_tested(built):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "docs/memory.md", "tests/test_golden.py", "tests/golden/tall.npz"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs", "site"))]


ONE_STEP = """
import ldadam, torch
model = torch.nn.Linear(64, 32)
optimizer = ldadam.LDAdamW(model.named_parameters(), rank=4)
model(torch.ones(2, 64)).square().mean().backward()
optimizer.step()
assert optimizer.state[model.weight]["exp_avg"].shape == (4, 64)
print(ldadam.plan("demo", device="cpu").num_weights, ldadam.__version__, ldadam.__file__)
"""


def test_torch_alone_is_enough_for_a_step_and_a_plan(python_with_torch_alone):
    done = run(python_with_torch_alone, "-c", ONE_STEP)
    assert done.returncode == 0, done.stderr
    num_weights, version, file = done.stdout.split()
    assert num_weights == "1852544"
    assert file.startswith(str(python_with_torch_alone.parents[1]))
    asked = "import importlib.metadata; print(importlib.metadata.version('ldadam'))"
    assert run(python_with_torch_alone, "-c", asked).stdout.strip() == version


def test_without_the_train_extra_the_command_names_it(python_with_torch_alone):
    done = run(python_with_torch_alone.with_name("ldadam"), "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'ldadam[train]'" in done.stderr


def test_every_extra_is_offered(built):
    [wheel] = built.glob("*.whl")
    [found] = importlib.metadata.distributions(name="ldadam", path=[str(wheel)])
    assert set(found.metadata.get_all("Provides-Extra") or ()) >= {"bench", "dev", "docs", "train"}
    assert [line for line in found.requires or () if "extra ==" not in line] == ["torch>=2.6"]
