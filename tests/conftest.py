"""Configures the suite: dtype promotion, rank promotion and warnings are errors (setup.cfg); 8 fake devices."""

import importlib.metadata
import os

# Set before jax is imported. Fake CPU devices deadlock if the thread pool is smaller than twice their number.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of the suite's time is compilation; the programs run for milliseconds. The older emitters halve the time of the
# compiler, and the other settings save a fifth of the processor time of the suite.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # From jaxlib 0.11 on this flag does not exist, and an unknown flag ends the process.
        "--xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
    )
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import gc
import pathlib

# Programs that take longer to compile are kept for the other processes of the suite, and for its next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest

from tests.stories import write_data

# A traced program is many small objects, which the collector would otherwise visit again and again.
gc.freeze()
gc.set_threshold(100_000, 50, 100)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow: run it with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def babi_dir():
    """Returns the folder of the bAbI archive: MNM_BABI_DIR, by default ../shared/data/babi relative to the project."""
    root = pathlib.Path(__file__).parents[1]
    folder = pathlib.Path(os.environ.get("MNM_BABI_DIR", root.parent / "shared/data/babi"))
    if not folder.is_dir():
        pytest.skip(f"no bAbI data in {folder}: name the folder of tasks_1-20_v1-2.tar.gz as MNM_BABI_DIR")
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns a folder with the files of two tasks of short bAbI stories."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def entries(tmp_path):
    """Returns a function that lists the entries of the cache of bAbI stories in the test's folder."""
    return lambda: [path for path in (tmp_path / "babi").glob("*") if not path.name.startswith(".")]


@pytest.fixture
def x64():
    """Enables double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Frees compiled programs: each takes several memory mappings, and XLA crashes at Linux's limit of 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 50_000:
        jax.clear_caches()
