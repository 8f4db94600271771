"""What is carried to a machine without network, and back: pieces of data, wheels, and few small files."""

import os
import subprocess
import sys
import zipfile

import pytest

from benchmarks.gpu_check import keeping, pieces, wheels
from benchmarks.gpu_check.check import environment
from diffusion.support.errors import UserError


def data_root(folder):
    for name, content in {"a/b.bin": os.urandom(2500), "c.txt": b"", "d/e.th": b"weights"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_pieces_make_the_files_they_were(tmp_path):
    root = data_root(tmp_path / "root")
    made = pieces.split(root, tmp_path / "cut", size=1000)
    assert len(made) == 5 and max(piece.stat().st_size for piece in made) == 1000
    joined = pieces.join(tmp_path / "cut", tmp_path / "joined")
    for file in ("a/b.bin", "c.txt", "d/e.th"):
        assert (joined / file).read_bytes() == (root / file).read_bytes()
    for piece in made:  # what is there and right needs no pieces any more
        piece.unlink()
    pieces.join(tmp_path / "cut", tmp_path / "joined")
    assert {path.name for path in pieces.split(root, tmp_path / "one", ["d"])} == {"0-e.th.00"}


def test_pieces_that_are_wrong_are_refused_and_nothing_is_written(tmp_path):
    made = pieces.split(data_root(tmp_path / "root"), tmp_path / "cut", size=1000)
    content = made[1].read_bytes()
    made[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"b\.bin\.01 is not what pieces\.json says, by its sha256"):
        pieces.join(tmp_path / "cut", tmp_path / "joined")
    made[1].unlink()
    with pytest.raises(UserError, match=r"The piece 0-b\.bin\.01 of a/b\.bin is not in"):
        pieces.join(tmp_path / "cut", tmp_path / "joined")
    assert not list((tmp_path / "joined").rglob("*")) if (tmp_path / "joined").exists() else True


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"../a": {"sha256": "0", "pieces": {}}}'])
def test_a_list_of_pieces_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "pieces.json").write_text(content)
    with pytest.raises(UserError, match=r"is no list of pieces|outside of"):
        pieces.join(tmp_path, tmp_path / "joined")


def test_there_must_be_something_to_cut(tmp_path):
    with pytest.raises(UserError, match="has no cifar10"):
        pieces.split(tmp_path, tmp_path / "cut", ["cifar10"])
    with pytest.raises(UserError, match="no file"):
        pieces.split(tmp_path, tmp_path / "cut")


def wheel(folder, name):
    """A wheel with one module of this name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file := folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "HERE = True")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file


def test_wheels_bring_what_is_missing_and_leave_the_machine_s_own(tmp_path):
    for name in ("torch", "nowhere_else"):
        wheel(tmp_path / "wheels", name)
    site = wheels.importable(tmp_path / "wheels", tmp_path / "site")
    assert (site / "nowhere_else.py").exists() and not (site / "torch.py").exists()
    line = [sys.executable, "-c", "from importlib.util import find_spec; import nowhere_else; print(find_spec('torch').origin)"]
    said = subprocess.run(line, env=environment(site), capture_output=True, text=True, check=True).stdout
    assert str(site) not in said
    before = (site / "nowhere_else.py").stat().st_mtime_ns
    assert wheels.importable(tmp_path / "wheels", tmp_path / "site") == site
    assert (site / "nowhere_else.py").stat().st_mtime_ns == before


def test_a_folder_without_wheels_and_a_file_that_is_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no \*\.whl"):
        wheels.importable(tmp_path, tmp_path / "site")
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(UserError, match="pip install failed"):
        wheels.importable(tmp_path, tmp_path / "site")


def test_what_is_given_back_is_few_files_of_less_than_the_limit(tmp_path):
    (out := tmp_path / "out").mkdir()
    (out / "report.md").touch()
    files = [tmp_path / f"log-{i}" for i in range(30)]
    for i, file in enumerate(files):
        file.write_bytes(os.urandom(2000 + 100 * i))
    left = keeping.pack([*files, tmp_path / "absent"], out, limit=20_000)
    archives = list(out.glob("kept-*.tar.gz"))
    assert len(archives) == keeping.FILES - 1 and all(file.stat().st_size < 20_000 for file in archives)
    assert left == files[-len(left) :]  # the largest
    assert keeping.pack(files[:2], out, limit=20_000) == [] and len(list(out.glob("kept-*.tar.gz"))) == 1
