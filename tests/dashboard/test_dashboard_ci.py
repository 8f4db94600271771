"""Continuous integration brings the browser that the page is tested in, and goes on where it cannot."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci" / "run"
BASH = shutil.which("bash")


@pytest.fixture
def ci(tmp_path):
    """`ci(**commands)`: code, words and calls of .ci/run on a machine that has these commands alone, each a line of bash."""

    def run(**commands):
        bin, calls = tmp_path / "bin", tmp_path / "calls"
        bin.mkdir()
        for name in ("dirname", "bash"):
            (bin / name).symlink_to(shutil.which(name))
        for name, line in commands.items():
            file = bin / name.replace("_", "-")
            file.write_text(f'#!{BASH}\n[[ {file.name} == id ]] || echo {file.name} "$@" >>{calls}\n{line}\n')
            file.chmod(0o755)
        result = subprocess.run([BASH, RUN], env={"PATH": str(bin)}, capture_output=True, text=True, cwd=os.sep)
        return result.returncode, result.stderr, calls.read_text().splitlines()

    return run


def test_a_missing_browser_is_installed_before_the_tests(ci):
    code, said, calls = ci(id="echo 0", apt_get="true", make="true")
    assert (code, said, len(calls)) == (0, "", 2)
    assert calls[0].startswith("apt-get install") and calls[0].endswith(" chromium") and calls[1] == "make test"


def test_the_list_of_packages_is_fetched_only_if_need_be(ci):
    code, said, calls = ci(id="echo 0", apt_get='if [[ $1 == update ]]; then : >"$0.list"; fi; [[ -e $0.list ]]', make="true")
    assert (code, said, [call.split()[1] for call in calls]) == (0, "", ["install", "update", "install", "test"])


@pytest.mark.parametrize("commands", [{"id": "echo 0", "apt_get": "exit 100"}, {"id": "echo 1000", "apt_get": "true"}, {"id": "echo 0"}])
def test_without_one_the_tests_run_and_it_is_said(ci, commands):
    code, said, calls = ci(make="true", **commands)
    assert code == 0 and calls[-1] == "make test" and "browser tests are skipped" in said and said.count("\n") == 1


def test_a_browser_that_is_there_is_left_alone_and_a_failure_is_passed_on(ci):
    assert ci(id="echo 0", apt_get="true", chromium="true", make="exit 3")[::2] == (3, ["make test"])
