"""What a process imports to write or read Core ML packages."""

import subprocess
import sys

import pytest

from tests.making import ROOT
from tests.making.cli import environment

LOOKED_FOR = ("tensorflow", "sklearn")


@pytest.mark.slow
def test_coremltools_imports_no_package_that_it_would_convert() -> None:
    script = (
        "import sys; from pipeline.formats.coreml.imports import import_coremltools; "
        f"import_coremltools(); print([n for n in {LOOKED_FOR} if n in sys.modules], "
        "'coremltools' in sys.modules); import sklearn; import_coremltools()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[] True\n"), done.stderr
