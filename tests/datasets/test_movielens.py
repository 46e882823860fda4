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
from ncf.datasets.download import check_hash, data_home, download, open_archive


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


def test_the_real_data_is_the_published_one_in_its_order(real: movielens.MovieLens) -> None:
    """The hash is that of GroupLens's u.data (SHA-256 06416e59…1dca490) without its column of ratings."""
    data = real.interactions
    columns = (data.user_ids.decode(data.users), data.item_ids.decode(data.items), data.timestamps.tolist())
    text = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in zip(*columns, strict=True))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "5746883952d93f86e140bbbefb7484081cebbb592172f333576b10a9cdc8ce0f"
    )
    assert real.titles[266] == "unknown"  # the one film without title and year
    assert real.titles[1411] == "Land Before Time III: The Time of the Great Giving (1995) (V)"
    assert real.titles[542] == "Misérables, Les (1995)"
    assert real.genres[1372] == ()


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
        check_hash(tmp_path / "ml-1m.zip", "0" * 32, "md5")
    assert [path.name for path in tmp_path.iterdir()] == ["ml-1m.zip"]


RATINGS = [(1, 10, 5, 100), (2, 20, 3, 200), (1, 20, 4, 150)]
FILES = {
    "100k": {
        "u.data": "".join("\t".join(map(str, row)) + "\n" for row in RATINGS),
        "u.item": f"10|Été (1990)|01-Jan-1990||url|{'|'.join(['0'] * 18 + ['1'])}\n"
        f"20|Two (1991)|||u|{'|'.join(['0', '1'] + ['0'] * 17)}\n",
    },
    "1m": {
        "ratings.dat": "".join("::".join(map(str, row)) + "\n" for row in RATINGS),
        "movies.dat": "10::Été (1990)::Western\n20::Two (1991)::Action\n",
    },
    "20m": {
        "ratings.csv": "userId,movieId,rating,timestamp\n"
        + "".join(",".join(map(str, row)) + "\n" for row in RATINGS),
        "movies.csv": 'movieId,title,genres\n10,Été (1990),Western\n20,"Two (1991)",Action\n',
    },
}


def small_archive(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few lines in the format of a release, which is then taken for the published one."""
    path = folder / f"ml-{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in FILES[name].items():
            archive.writestr(f"ml-{name}/{file}", text.encode("utf-8" if name == "20m" else "latin-1"))
    release = movielens._RELEASES[name]._replace(md5=md5(path.read_bytes()))
    monkeypatch.setitem(movielens._RELEASES, name, release)
    return path


def check_small(data: movielens.MovieLens) -> None:
    assert data.titles == ["Été (1990)", "Two (1991)"]
    assert data.genres == [("Western",), ("Action",)]
    assert data.interactions.item_ids.decode(data.interactions.items) == [10, 20, 20]
    assert torch.equal(data.interactions.timestamps, torch.tensor([100, 200, 150]))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no network."""
    monkeypatch.setenv("NCF_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(movielens, "_GROUPLENS", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("name", FILES)
def test_archives_in_grouplens_own_formats_placed_by_hand(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_archive(home, name, monkeypatch).rename(home / f"ml-{name}.zip")
    check_small(movielens.load(name))


def test_fetched_once_then_from_the_cache_and_the_terms_are_shown_once(
    site: tuple[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url, folder = site
    archive = small_archive(folder, "1m", monkeypatch)
    monkeypatch.setattr(movielens, "_GROUPLENS", url)
    check_small(movielens.load("1m"))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "must cite it" in printed.err
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*")) == [
        "ml-1m",
        "ml-1m/movies.parquet",
        "ml-1m/ratings.parquet",
    ]
    archive.unlink()
    check_small(movielens.load("1m"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", ["cut", "other", "absent", "outside"])
def test_a_bad_fetch_leaves_nothing_and_says_what_to_do(
    site: tuple[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    url, folder = site
    archive = small_archive(folder, "1m", monkeypatch)
    monkeypatch.setattr(movielens, "_GROUPLENS", url)
    if fault == "cut":
        content = archive.read_bytes()
        archive.write_bytes(content[:-20])
        message = "not the published file"
    elif fault == "other":
        archive.write_bytes(b"<html>Please log in</html>")
        message = "not the published file"
    elif fault == "absent":
        archive.unlink()
        message = "404"
    else:
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("../outside.txt", "x")
        release = movielens._RELEASES["1m"]._replace(md5=md5(archive.read_bytes()))
        monkeypatch.setitem(movielens._RELEASES, "1m", release)
        message = "leads outside"
    with pytest.raises(OSError, match=rf"{message}.*Fetch .*/ml-1m\.zip on another machine and place it in"):
        movielens.load("1m")
    assert list(home.iterdir()) == []
    assert not (home.parent / "outside.txt").exists()


def small_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, rating: str = "", film: str = "") -> Path:
    """A wheel that pip accepts, with the two data files, which are then taken for the published ones."""
    texts = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + FILES["100k"]["u.data"]
        + rating,
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tÉté\t1990\tWestern\n20\tTwo\t1991\tAction\n" + film,
    }
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for ending, text in texts.items():
            member = f"recbole/dataset_example/ml-100k/ml-100k.{ending}"
            wheel.writestr(member, text)
        about = "recbole-1.2.1.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(movielens, "_WHEEL_SHA256", digest)
    return path


def test_where_grouplens_cannot_be_reached_pip_gets_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    small_wheel(tmp_path, monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    check_small(movielens.load("100k"))
    assert "must cite it" in capfd.readouterr().err
    assert [path.name for path in home.iterdir()] == ["ml-100k"]


def test_a_wheel_placed_by_hand_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_wheel(home, monkeypatch)
    check_small(movielens.load("100k"))


def test_a_placed_wheel_is_hashed_before_anything_is_unpacked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes that unpack to gigabytes are another file, and nothing of them is unpacked."""
    wheel = small_wheel(home, monkeypatch)
    whole = wheel.read_bytes()
    monkeypatch.setattr(movielens, "open_archive", None)
    for changed in (whole[:-1], whole + b"x", whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        wheel.write_bytes(changed)
        with pytest.raises(ValueError, match=r"recbole.*\.whl is not the published file: its hash is"):
            movielens.load("100k")
    assert [path.name for path in home.iterdir()] == [wheel.name]


def test_the_wheels_titles_are_put_right(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_wheel(home, monkeypatch, "3\t267\t1\t300\n", "267\tunkonwn\tunkonwn\tunknown\n")
    data = movielens.load("100k")
    assert (data.titles[2], data.genres[2]) == ("unknown", ())
    assert data.interactions.item_ids.decode(torch.tensor([2])) == [267]


def test_without_any_network_both_ways_are_named(home: Path) -> None:
    with pytest.raises(
        OSError, match=r"pip download recbole==1\.2\.1 failed: .*ml-100k\.zip \(or recbole.*\.whl\)"
    ):
        movielens.load("100k")
    assert list(home.iterdir()) == []


def test_a_damaged_cache_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_archive(home, "1m", monkeypatch)
    movielens.load("1m")
    ratings = home / "ml-1m" / "ratings.parquet"
    ratings.write_bytes(ratings.read_bytes()[:-9])
    with pytest.raises(
        ValueError, match=r"ratings\.parquet is damaged .*: delete it, and it is fetched again"
    ):
        movielens.load("1m")
    for name in ("ratings", "movies"):
        (home / "ml-1m" / f"{name}.parquet").unlink()
        check_small(movielens.load("1m"))


def test_a_flipped_bit_in_the_cache_is_found_or_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_archive(home, "1m", monkeypatch)
    whole = movielens.load("1m")
    found, intact, flips = 0, 0, 0
    for name in ("ratings", "movies"):
        file = home / "ml-1m" / f"{name}.parquet"
        good = file.read_bytes()
        for place in range(0, len(good), 7):
            flips += 1
            flipped = bytearray(good)
            flipped[place] ^= 1 << (place % 8)
            file.write_bytes(flipped)
            try:
                data = movielens.load("1m")
            except ValueError as error:
                found += str(file) in str(error)
            else:
                check_small(data)
                assert torch.equal(data.interactions.users, whole.interactions.users)
                intact += 1
        file.write_bytes(good)
    assert found + intact == flips
    assert found > 100


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCF_DATA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_home() == tmp_path / "ncf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_home() == tmp_path / ".cache" / "ncf"
    monkeypatch.setenv("NCF_DATA_HOME", "~/films")
    assert data_home() == tmp_path / "films"


def test_an_unknown_release() -> None:
    with pytest.raises(ValueError, match="name = '10m'"):
        movielens.load("10m")
