"""Published files, with small stand-ins whose md5s are known: every form, the download, and what can be missing."""

import hashlib
import pickle
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from diffusion.data import CIFAR10, CIFAR100, MNIST
from diffusion.data.cifar import _parse_python
from diffusion.data.official import Download, Form
from diffusion.support.errors import UserError


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def pickled():
    """Two members as the python version has them: planes in a matrix, labels in a list."""
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
    entries = {"data_batch_1": (planes[:4], [3, 1, 4, 1]), "data_batch_2": (planes[4:], [5, 9])}
    return planes, {name: pickle.dumps({"data": d, "fine_labels": y}) for name, (d, y) in entries.items()}


@pytest.fixture
def cifar100(monkeypatch, pickled):
    members = pickled[1]
    form = Form("test version", {n: md5(b) for n, b in members.items()}, ("py", "cifar100/py.tar.gz"), _parse_python)
    monkeypatch.setattr(CIFAR100, "forms", {"train": (form,)})
    return members


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent / "members"
    source.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(members.items()):  # the official archives are not in order either
            (source / name).write_bytes(content)
            archive.add(source / name, f"any-folder/{name}")


def check(images, planes):
    assert images.labels.tolist() == [3, 1, 4, 1, 5, 9]
    assert np.array_equal(images.images.transpose(0, 3, 1, 2).reshape(6, 3072), planes)


def test_python_version_from_a_folder(tmp_path, cifar100, pickled):
    (tmp_path / "py").mkdir()
    for name, content in cifar100.items():
        (tmp_path / "py" / name).write_bytes(content)
    check(CIFAR100(tmp_path, tmp_path / "cache").load(), pickled[0])


def test_python_version_from_an_archive(tmp_path, cifar100, pickled):
    pack(tmp_path / "cifar100" / "py.tar.gz", cifar100)
    check(CIFAR100(tmp_path, tmp_path / "cache").load(), pickled[0])


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle ran code')",)


def test_no_pickle_is_opened_before_its_md5_is_right(tmp_path, cifar100):
    pack(tmp_path / "cifar100" / "py.tar.gz", cifar100 | {"data_batch_2": pickle.dumps(Bomb())})
    with pytest.raises(UserError, match=r"py\.tar\.gz is damaged or incomplete \(data_batch_2 is not the official file"):
        CIFAR100(tmp_path, tmp_path / "cache").load()


def test_an_archive_without_a_member_is_named(tmp_path, cifar100):
    pack(tmp_path / "cifar100" / "py.tar.gz", {"data_batch_1": cifar100["data_batch_1"]})
    with pytest.raises(UserError, match=r"py\.tar\.gz is damaged or incomplete \(data_batch_2 is not in it"):
        CIFAR100(tmp_path, tmp_path / "cache").load()


@pytest.fixture
def site(tmp_path):
    """A web server on this machine, and the folder it serves."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()


def test_absent_files_are_downloaded_once(tmp_path, monkeypatch, cifar100, pickled, site):
    address, folder = site
    pack(folder / "py.tar.gz", cifar100)
    urls = (f"{address}/gone.tar.gz", f"{address}/py.tar.gz")
    download = Download("py.tar.gz", urls, md5((folder / "py.tar.gz").read_bytes()))
    monkeypatch.setattr(CIFAR100, "downloads", {"train": (download,)})
    root = tmp_path / "new" / "root"
    check(CIFAR100(root, tmp_path / "a").load(), pickled[0])
    assert [path.name for path in (root / "cifar100").iterdir()] == ["py.tar.gz"]
    (folder / "py.tar.gz").unlink()
    check(CIFAR100(root, tmp_path / "b").load(), pickled[0])


def test_a_download_with_the_wrong_md5_leaves_nothing(tmp_path, monkeypatch, cifar100, site):
    address, folder = site
    (folder / "py.tar.gz").write_bytes(b"<html>log in to this network</html>")
    monkeypatch.setattr(CIFAR100, "downloads", {"train": (Download("py.tar.gz", (f"{address}/py.tar.gz",), "0" * 32),)})
    with pytest.raises(UserError, match="the download failed"):
        CIFAR100(tmp_path / "root", tmp_path / "cache").load()
    assert not list((tmp_path / "root" / "cifar100").iterdir())


@pytest.mark.parametrize("dataset", [CIFAR10, CIFAR100, MNIST])
def test_without_files_or_network_one_sentence_says_what_to_do(tmp_path, offline, dataset):
    for root, words in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "are not under")):
        with pytest.raises(UserError) as raised:
            dataset(root, tmp_path / "cache").load()
        message = str(raised.value)
        assert str(root) in message and words in message and "\n" not in message
        assert "no network in this test" in message and "point dataset.root at" in message


def test_a_single_missing_file_is_named(tmp_path, offline):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte of mnist is missing from .*mnist"):
        MNIST(tmp_path, tmp_path / "cache").load()


@pytest.mark.parametrize("declared", [{"image_size": 64}, {"channels": 1}, {"num_classes": 7}])
def test_a_declaration_the_data_contradict_is_refused(tmp_path, declared):
    fact, value = next(iter(declared.items()))
    with pytest.raises(UserError, match=rf"cifar10 has {fact} \d+, which dataset\.{fact}={value} contradicts"):
        CIFAR10(tmp_path, tmp_path, **declared).load()


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no split 'validation': say dataset\.split=train\|test"):
        CIFAR10(tmp_path, tmp_path, split="validation")
