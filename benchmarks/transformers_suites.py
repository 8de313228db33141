"""transformers' own tests of models and image processors, run on the classes of this package.

    python -m benchmarks.transformers_suites [--python PYTHON] [--sdist PATH] [--suites models] [--write]

The source distribution of transformers contains the tests that every model and every image processor must pass
(``tests/test_modeling_common.py`` and others). This program unpacks them, and runs them with pytest on our classes in the
interpreter ``--python``, which decides the version of transformers and must have ``pytest`` and ``parameterized``. Results of
other versions are kept.

``--write`` writes ``benchmarks/results/transformers_suites.json`` and ``.md``, and the table in ``docs/compatibility.md``. The
last line printed is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "benchmarks" / "results" / "transformers_suites.json"
START, END = "<!-- suites -->", "<!-- end of suites -->"
TESTS_PACKAGE = "transformers_tests"  # name under which our files import the unpacked tests
SUITES = {"models": "transformers_model_tests.py", "image processors": "transformers_image_tests.py"}
# Modules that the tests import and that the source distribution lacks.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
# The same of top-level modules. Images of the hub are replaced by one that scikit-learn contains.
TOP_LEVEL_STUBS = {
    "fetch_hub_objects_for_ci.py": (
        "from pathlib import Path\n\nfrom sklearn import datasets\n\n\n"
        "def url_to_local_path(url):\n    return str(Path(datasets.__file__).with_name('images') / 'china.jpg')\n"
    )
}
CHECKPOINTING_LAYER = "looks for layers of their class `GradientCheckpointingLayer`"
MISSING_KEYS = "compares `missing_keys` with a list, as 4.x returns it; 5.x and this package return a set"
# Failures that are expected: suite -> test -> the internal of transformers, or the intended difference (beginning with
# "intended"), that it depends on.
INTERNALS: dict[str, dict[str, str]] = {
    "models": {
        "test_gradient_checkpointing_enable_disable": CHECKPOINTING_LAYER,
        "test_training_gradient_checkpointing": CHECKPOINTING_LAYER,
        "test_training_gradient_checkpointing_use_reentrant_false": CHECKPOINTING_LAYER,
        "test_training_gradient_checkpointing_use_reentrant_true": CHECKPOINTING_LAYER,
        "test_cannot_load_with_meta_device_context_manager": (
            "intended: expects an error for `from_pretrained` within `torch.device('meta')`, where ours loads the weights"
        ),
        "test_can_load_ignoring_mismatched_shapes": (
            "intended: expects an error without `ignore_mismatched_sizes`, where ours initializes new heads and reports it"
        ),
        "test_model_weights_reload_no_missing_tied_weights": (
            "intended: expects random weights from a file without any tensor of the model, which is an error here"
        ),
        "test_can_use_safetensors": MISSING_KEYS,
        "test_load_save_without_tied_weights": MISSING_KEYS,
        "test_config": "intended: assigns `hidden_size = 0`, which is an error here",
    },
    "image processors": {
        "test_image_processor_save_load_with_autoimageprocessor": "compares a private entry of 4.x, _processor_class",
        "test_save_load_fast_slow_auto": "compares the name of a second class of 4.x, which ends in Fast",
    },
}


class Outcome(NamedTuple):
    """Result of one test.

    Attributes:
        test: ``Class.test``.
        status: ``passed``, ``failed`` or ``not applicable``.
        reason: why it failed or does not apply; empty if it passed.
    """

    test: str
    status: str
    reason: str


def installed_version(python: str) -> str:
    """Returns the version of transformers in an interpreter's environment."""
    program = "from importlib.metadata import version; print(version('transformers'))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def download_sdist(python: str, version: str, directory: Path) -> Path:
    """Downloads the source distribution of transformers, unless the directory has it, and returns its path."""
    archive = directory / f"transformers-{version}.tar.gz"
    if not archive.exists():
        options = ["--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", str(directory)]
        subprocess.run([python, "-m", "pip", "download", *options, f"transformers=={version}"], check=True)
    return archive


def unpack_tests(archive: Path, directory: Path) -> None:
    """Writes the tests of a source distribution, and stubs of what they import, as a package into ``directory``."""
    package = directory / TESTS_PACKAGE
    for name, text in STUBS.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text, encoding="utf-8")
    for name, text in TOP_LEVEL_STUBS.items():
        (directory / name).write_text(text, encoding="utf-8")
    (package / "__init__.py").touch()
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = PurePosixPath(member.name).parts
            content = tar.extractfile(member) if len(parts) == 3 and parts[1] == "tests" and member.isfile() else None
            if content is not None:
                (package / parts[2]).write_bytes(content.read())


def run_suite(python: str, suite: str, directory: Path, keyword: str) -> list[Outcome]:
    """Runs one of our files of tests and returns the outcome of each test."""
    report = directory / "report.xml"
    report.unlink(missing_ok=True)
    path = os.pathsep.join(map(str, (directory, ROOT / "src", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, "-m", "pytest", str(ROOT / "benchmarks" / SUITES[suite]), "-q", "--tb=short", "-c", os.devnull]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", f"--junit-xml={report}", f"--rootdir={directory}"]
    subprocess.run([*command, *(["-k", keyword] if keyword else [])], env=environment, cwd=directory, check=False)
    if not report.exists():
        sys.exit(f"pytest did not run the suite {suite!r}; its output is above.")
    return read_report(report, suite)


def read_report(report: Path, suite: str) -> list[Outcome]:
    """Returns the outcomes in a JUnit XML report, sorted by test. A test with several entries failed if one of them did."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        test = f"{case.get('classname', '').rpartition('.')[2]}.{name}"
        outcome = Outcome(test, "passed", "")
        for element in case:
            message = (element.get("message") or "").strip().partition("\n")[0]
            if element.tag == "skipped":
                outcome = Outcome(test, "not applicable", message)
            elif element.tag in ("failure", "error"):
                outcome = Outcome(test, "failed", INTERNALS[suite].get(name, f"unexplained: {message}"))
                break
        if test not in outcomes or outcome.status == "failed":
            outcomes[test] = outcome
    return [outcomes[test] for test in sorted(outcomes)]


def table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown: the counts, then each failed test, then the reasons of those that do not apply."""
    lines = ["| transformers | suite | passed | failed | not applicable |", "|---|---|---|---|---|"]
    failed: list[str] = []
    for version in sorted(results, key=lambda text: [int(digits) for digits in re.findall(r"\d+", text)], reverse=True):
        for suite, outcomes in results[version]["suites"].items():
            count = Counter(status for _, status, _ in outcomes)
            lines.append(f"| {version} | {suite} | {count['passed']} | {count['failed']} | {count['not applicable']} |")
            failed += [f"| {version} | `{test}` | {reason} |" for test, status, reason in outcomes if status == "failed"]
    if failed:
        lines += ["", "| transformers | failed test | why |", "|---|---|---|", *failed]
    return "\n".join(lines)


def details(results: dict[str, Any]) -> str:
    """Returns every test as Markdown, with the reason for each one that did not pass."""
    lines = ["# transformers' tests on the classes of this package", "", table(results)]
    for version, result in results.items():
        for suite, outcomes in result["suites"].items():
            lines += ["", f"## {version}, {suite} ({result['date']}, Python {result['python']})", ""]
            lines += ["| test | result | reason |", "|---|---|---|"]
            lines += [f"| `{test}` | {status} | {reason.replace('|', '/')} |" for test, status, reason in outcomes]
    return "\n".join([*lines, ""])


def write(results: dict[str, Any]) -> None:
    """Writes the results, and the table into the page on compatibility."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(details(results), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    block = f"{START}\n{table(results)}\n{END}"
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: block, page, flags=re.DOTALL), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", default=sys.executable, help="interpreter with the version of transformers to run")
    parser.add_argument("--sdist", type=Path, help="source distribution of that version; downloaded by default")
    parser.add_argument("--suites", nargs="+", choices=list(SUITES), default=list(SUITES))
    parser.add_argument("--keyword", default="", help="run only the tests that match, as pytest -k; not with --write")
    parser.add_argument("--write", action="store_true", help="write the results and the table in docs/compatibility.md")
    options = parser.parse_args()
    if options.write and options.keyword:
        parser.error("--write needs whole suites: omit --keyword")
    version = installed_version(options.python)
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    suites = dict(results.get(version, {}).get("suites", {}))
    with tempfile.TemporaryDirectory() as folder:
        unpack_tests(options.sdist or download_sdist(options.python, version, Path(folder)), Path(folder))
        for suite in options.suites:
            suites[suite] = run_suite(options.python, suite, Path(folder), options.keyword)
    python = subprocess.run([options.python, "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    results[version] = {"date": date.today().isoformat(), "python": python, "suites": suites}
    print(table(results))
    if options.write:
        write(results)
    print(json.dumps(results[version]))


if __name__ == "__main__":
    main()
