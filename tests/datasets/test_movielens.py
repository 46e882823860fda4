from __future__ import annotations

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ncf import leave_one_out
from ncf.datasets import movielens
from ncf.datasets.download import check_md5, download, open_archive


@pytest.fixture(scope="module")
def real() -> movielens.MovieLens:
    try:
        return movielens.load("100k")
    except OSError as error:
        pytest.skip(f"MovieLens-100K cannot be had here: {error}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder, served over HTTP on this machine."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def end_headers(self) -> None:
            if self.path.endswith("cut.zip"):
                self.send_header("X-Cut", "yes")
            super().end_headers()

        def copyfile(self, source, outputfile) -> None:  # type: ignore[no-untyped-def]
            content = source.read()
            outputfile.write(content[: len(content) // 2] if self.path.endswith("cut.zip") else content)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_the_real_data(real: movielens.MovieLens) -> None:
    data = real.interactions
    assert (len(data), data.num_users, data.num_items) == (100_000, 943, 1682)
    first = [
        data.user_ids.decode(data.users[:2]),
        data.item_ids.decode(data.items[:2]),
        data.timestamps[:2].tolist(),
    ]
    assert first == [[196, 186], [242, 302], [881250949, 891717742]]
    assert real.titles[0] == "Toy Story (1995)"
    assert set(real.genres[0]) == {"Animation", "Children's", "Comedy"}
    assert len(real.titles) == len(real.genres) == 1682


def test_the_traps_of_the_real_data(real: movielens.MovieLens) -> None:
    data = real.interactions
    split = leave_one_out(data, validation=False)
    assert (len(split.train), len(split.test)) == (99_057, 943)
    tied = sum(
        int((data.timestamps[data.users == user] == time).sum() > 1)
        for user, time in zip(split.test.users.tolist(), split.test.timestamps.tolist(), strict=True)
    )
    assert tied == 415
    unseen = split.train.item_counts()[split.test.items] == 0
    assert int(unseen.sum()) == 3  # they can only be guessed; under another tie rule there are two


def test_a_download_is_whole_and_right_or_absent(site: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = site
    content = bytes(range(256)) * 400
    for name in ("whole.zip", "cut.zip"):
        (folder / name).write_bytes(content)
    target = tmp_path / "cache" / "file.zip"
    download(f"{url}/whole.zip", target, md5(content))
    assert target.read_bytes() == content
    target.unlink()
    with pytest.raises(OSError, match=f"of {len(content)} bytes"):
        download(f"{url}/cut.zip", target, md5(content))
    with pytest.raises(ValueError, match="not the published file"):
        download(f"{url}/whole.zip", target, md5(b"other"))
    with pytest.raises(OSError, match="404"):
        download(f"{url}/none.zip", target, md5(content))
    assert list(target.parent.iterdir()) == []


def test_a_zip_that_leads_outside_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", "")
        archive.writestr("../outside.txt", "x")
    with pytest.raises(ValueError, match=r"'\.\./outside\.txt' leads outside"):
        open_archive(tmp_path / "evil.zip", ["ml-100k/u.data"])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(ValueError, match=r"no member 'ml-100k/u\.data'"):
        open_archive(tmp_path / "other.zip", ["ml-100k/u.data"])
    (tmp_path / "half.zip").write_bytes((tmp_path / "other.zip").read_bytes()[:20])
    with pytest.raises(ValueError, match="not a complete zip"):
        open_archive(tmp_path / "half.zip", [])


def test_a_placed_file_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCF_DATA_HOME", str(tmp_path))
    (tmp_path / "ml-1m.zip").write_bytes(b"not MovieLens")
    with pytest.raises(ValueError, match="not the published file"):
        movielens.load("1m")
    with pytest.raises(ValueError, match="not the published file"):
        check_md5(tmp_path / "ml-1m.zip", "0" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["ml-1m.zip"]


def test_without_network_the_error_says_which_file_to_place_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCF_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(movielens, "_GROUPLENS", "http://127.0.0.1:9")  # the discard port: refused at once
    with pytest.raises(
        OSError, match=r"Fetch http://127.0.0.1:9/ml-1m\.zip on another machine and place it in"
    ):
        movielens.load("1m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["100k", "1m", "20m"])
def test_archives_in_grouplens_own_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A few lines in the format of each release, placed by hand."""
    ratings = [(1, 10, 5, 100), (2, 20, 3, 200), (1, 20, 4, 150)]
    files = {
        "100k": {
            "u.data": "".join("\t".join(map(str, row)) + "\n" for row in ratings),
            "u.item": f"10|Été (1990)|01-Jan-1990||url|{'|'.join(['0'] * 18 + ['1'])}\n"
            f"20|Two (1991)|||u|{'|'.join(['0', '1'] + ['0'] * 17)}\n",
        },
        "1m": {
            "ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in ratings),
            "movies.dat": "10::Été (1990)::Western\n20::Two (1991)::Action\n",
        },
        "20m": {
            "ratings.csv": "userId,movieId,rating,timestamp\n"
            + "".join(",".join(map(str, row)) + "\n" for row in ratings),
            "movies.csv": 'movieId,title,genres\n10,Été (1990),Western\n20,"Two (1991)",Action\n',
        },
    }[name]
    with zipfile.ZipFile(tmp_path / f"ml-{name}.zip", "w") as archive:
        for file, text in files.items():
            archive.writestr(f"ml-{name}/{file}", text.encode("utf-8" if name == "20m" else "latin-1"))
    digest = md5((tmp_path / f"ml-{name}.zip").read_bytes())
    monkeypatch.setenv("NCF_DATA_HOME", str(tmp_path))
    monkeypatch.setitem(movielens._RELEASES, name, movielens._RELEASES[name]._replace(md5=digest))
    data = movielens.load(name)
    assert data.titles == ["Été (1990)", "Two (1991)"]
    assert data.genres == [("Western",), ("Action",)]
    assert data.interactions.item_ids.decode(data.interactions.items) == [10, 20, 20]
    assert torch.equal(data.interactions.timestamps, torch.tensor([100, 200, 150]))
    again = movielens.load(name)  # from the cache
    assert torch.equal(again.interactions.items, data.interactions.items)


def test_an_unknown_release() -> None:
    with pytest.raises(ValueError, match="name = '10m'"):
        movielens.load("10m")
