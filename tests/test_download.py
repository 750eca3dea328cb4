"""Downloads against a server on this machine: resumed, checked, extracted without leaving the folder."""

import contextlib
import hashlib
import http.server
import io
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from models import download as download_weights
from preproc import download
from preproc.download import Remote
from util.errors import UserError


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, with byte ranges; counts the bytes that it sent."""

    content, sent = b"", 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        type(self).sent += len(self.content) - start  # before the client has all, and looks
        self.wfile.write(self.content[start:])

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"content": b"", "sent": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_port}/file"
        yield handler
        running.shutdown()


def test_a_partial_file_is_completed(server, tmp_path):
    server.content = bytes(range(256)) * 40
    (tmp_path / "file.bin.part").write_bytes(server.content[:7_000])
    path = download.fetch(Remote(server.url, "file.bin", hashlib.md5(server.content).hexdigest()), tmp_path)
    assert path.read_bytes() == server.content and server.sent == len(server.content) - 7_000
    assert not (tmp_path / "file.bin.part").exists()


def test_a_partial_file_that_is_whole_is_not_fetched_again(server, tmp_path):
    server.content = b"x" * 100
    (tmp_path / "file.bin.part").write_bytes(server.content)
    assert download.fetch(Remote(server.url, "file.bin"), tmp_path).read_bytes() == server.content and server.sent == 0


def test_a_file_with_a_wrong_checksum_is_removed(server, tmp_path):
    server.content = b"something else"
    with pytest.raises(UserError, match="did not have the checksum"):
        download.fetch(Remote(server.url, "file.bin", "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_fails_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    with pytest.raises(UserError, match=r"could not be fetched.*run the same command again"):
        download.fetch(Remote("http://127.0.0.1:9/none", "none.zip"), tmp_path)


def archive(kind: str, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as file:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind, name", [("zip", "a.zip"), ("tar", "a.tgz")])
def test_a_data_set_is_fetched_extracted_and_not_fetched_twice(server, tmp_path, monkeypatch, capsys, kind, name):
    server.content = archive(kind, {"folder/file.txt": b"content"})
    monkeypatch.setitem(download.ARCHIVES, "cub", [Remote(server.url, name)])
    for _ in range(2):
        download.main(["--dataset", "cub", "--data-root", str(tmp_path)])
    assert (tmp_path / "cub/folder/file.txt").read_bytes() == b"content"
    assert server.sent == len(server.content) and not (tmp_path / "cub" / name).exists()
    assert "already here" in capsys.readouterr().out


@pytest.mark.parametrize("kind, name", [("zip", "a.zip"), ("tar", "a.tgz")])
@pytest.mark.parametrize("member", ["../outside.txt", "/outside.txt"])
def test_nothing_is_extracted_outside_the_folder(tmp_path, kind, name, member):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(archive(kind, {member: b"evil"}))
    with contextlib.suppress(UserError):
        download.extract(tmp_path / "in" / name, tmp_path / "in")
    assert not (tmp_path / "outside.txt").exists() and not Path("/outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["../../etc", "/etc"])
def test_a_link_that_leads_outside_is_refused(tmp_path, kind, target):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = kind, target
        file.addfile(link)
    with pytest.raises(UserError, match="is not an archive that can be extracted into"):
        download.extract(tmp_path / "a.tar", tmp_path / "in")


def test_nuswide_fetches_the_arrays_and_explains_how_to_get_the_images(server, tmp_path, monkeypatch, capsys):
    server.content = b"array"
    checksum = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(download, "zenodo_files", lambda: [Remote(server.url, "formatted_train_images.npy", checksum)])
    download.main(["--dataset", "nuswide", "--data-root", str(tmp_path)])
    assert (tmp_path / "nuswide/formatted_train_images.npy").read_bytes() == b"array"
    assert "Flickr.zip" in capsys.readouterr().out


def test_a_name_is_required(fails):
    assert "the following arguments are required: -d/--dataset" in fails(download.main, [])
    assert "the following arguments are required: NAME" in fails(download_weights.main, [])


def test_unknown_weights_are_refused_before_any_are_fetched(fails, monkeypatch):
    monkeypatch.setattr(download_weights.models, "build", lambda *given, **options: pytest.fail("fetched"))
    assert "'resnet51' is unknown" in fails(download_weights.main, ["resnet50", "resnet51"])
