from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncf import Recommender
from ncf.kernels.native import library
from ncf.serve.app import Settings, create_app
from ncf.serve.model_reload import ModelFolder
from tests.models.folders import file_of, rehash

from .conftest import ROOT, Service, named_interactions, recommender

ENDPOINTS = ["/v1/recommend", "/v1/similar", "/v1/score", "/v1/explain", "/v1/history"]
DOCUMENTED = {200, 400, 404, 413, 422, 503}


def test_answers_are_those_of_the_recommender_to_the_bit(service: Service, folder: Path) -> None:
    local = Recommender.load(folder)
    users = [f"u{n}" for n in range(40)]
    expected = local.recommend(users, k=7)
    answer = service.post("/v1/recommend", {"users": users, "k": 7}).json()
    for row, element in enumerate(answer["results"]):
        assert element["status"] == 200
        assert element["items"] == expected.items[row]
        assert element["scores"] == expected.scores[row].tolist()
    some = ["i3", "i5", "i59"]
    one = service.post(
        "/v1/recommend", {"user": "u3", "items": some, "exclude": ["i5"], "exclude_seen": False}
    ).json()
    assert one["items"] == local.recommend("u3", items=some, exclude=["i5"], exclude_seen=False).items[0]
    assert one["source"] == "model"
    assert (
        service.post("/v1/score", {"user": "u3", "items": some}).json()["scores"]
        == local.score("u3", some)[0].tolist()
    )
    alike = service.post("/v1/similar", {"items": some, "k": 4}).json()["results"]
    assert [a["items"] for a in alike] == local.similar(some, 4).items
    why = service.post("/v1/explain", {"user": "u3", "item": one["items"][0]}).json()
    assert why["items"] == local.explain("u3", one["items"][0]).items[0]
    assert service.post("/v1/history", {"user": "u3"}).json()["items"] == local.history("u3")


def test_a_history_is_answered_by_fold_in(service: Service, folder: Path) -> None:
    history = ["i1", "i2", "i3"]
    answer = service.post("/v1/recommend", {"history": history, "k": 5}).json()
    expected = Recommender.load(folder).recommend(history=history, k=5)
    assert (answer["source"], answer["items"]) == ("history", expected.items[0])
    assert not set(answer["items"]) & set(history)


def test_an_unknown_user_gets_what_is_popular_or_404_as_asked(service: Service, folder: Path) -> None:
    answer = service.post("/v1/recommend", {"user": "nobody", "k": 3}).json()
    assert (answer["source"], answer["items"]) == ("popularity", Recommender.load(folder).popular(3))
    refused = service.post("/v1/recommend", {"user": "nobody", "unknown": "raise"})
    assert refused.status_code == 404
    assert refused.headers["content-type"] == "application/problem+json"
    batch = service.post("/v1/recommend", {"users": ["u1", "nobody"], "unknown": "raise"}).json()["results"]
    assert [element["status"] for element in batch] == [200, 404]


def test_titles_are_shown_and_found(service: Service) -> None:
    answer = service.post("/v1/recommend", {"user": "u1", "titles": True}).json()
    assert answer["titles"] == [f"Title of {item}" for item in answer["items"]]
    found = service.get("/v1/items", params={"query": "TITLE OF I5", "limit": 100}).json()
    assert set(found["items"]) == {"i5", *(f"i{n}" for n in range(50, 60))}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/recommend", {}, 422),
        ("/v1/recommend", {"user": "u1", "history": ["i1"]}, 422),
        ("/v1/recommend", {"user": "u1", "k": 0}, 422),
        ("/v1/recommend", {"user": "u1", "k": 10**6}, 422),
        ("/v1/recommend", {"user": "u1", "kk": 3}, 422),
        ("/v1/recommend", {"user": 17}, 404),
        ("/v1/recommend", {"user": 2**70}, 422),
        ("/v1/recommend", {"users": ["u1"] * 1001}, 422),
        ("/v1/score", {"user": "nobody", "items": ["i1"]}, 404),
        ("/v1/score", {"user": "u1", "items": ["no such"]}, 404),
        ("/v1/explain", {"user": "u1", "item": "no such"}, 404),
        ("/v1/nothing", {}, 404),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_the_documented_code(
    service: Service, path: str, body: Any, status: int
) -> None:
    answer = service.post(path, body)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]


def test_nothing_in_stock_is_an_empty_list(service: Service) -> None:
    for items in ([], ["no such"]):
        answer = service.post("/v1/recommend", {"user": "u1", "items": items})
        assert (answer.status_code, answer.json()["items"]) == (200, [])


def test_a_body_is_bounded_whether_its_length_is_said_or_not(service: Service) -> None:
    large = b'{"user": "' + b"u" * (1 << 20) + b'"}'
    json_type = {"content-type": "application/json"}
    assert service.client.post("/v1/recommend", content=large, headers=json_type).status_code == 413
    pieces = (large[start : start + 65536] for start in range(0, len(large), 65536))
    assert service.client.post("/v1/recommend", content=pieces, headers=json_type).status_code == 413


EXAMPLES = int(os.environ.get("NCF_FUZZ_EXAMPLES", "100"))
SOME_IDS = st.sampled_from(["u1", "u39", "i1", "i59", "", "../..", "nobody", 7, -1, 2**63, True, 1.5, None])
PLAUSIBLE = st.fixed_dictionaries(  # bodies of the right keys, most of which pass the first checks
    {},
    optional={
        "user": SOME_IDS,
        "users": st.lists(SOME_IDS, max_size=4),
        "history": st.lists(SOME_IDS, max_size=4),
        "k": st.integers(-1, 1001),
        "items": st.lists(SOME_IDS, max_size=4),
        "item": SOME_IDS,
        "exclude": st.lists(SOME_IDS, max_size=4),
        "exclude_seen": st.booleans(),
        "unknown": st.sampled_from(["popular", "raise", "skip"]),
        "titles": st.booleans(),
    },
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["u1", "i1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["user", "users", "history", "k", "items", "item", "exclude"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def nothing_of_the_inside(answer: Any, asked: object) -> None:
    """A documented code, a message, and not a word of the file system or of a traceback."""
    assert answer.status_code in DOCUMENTED, (answer.status_code, asked)
    for word in ("Traceback", "site-packages", "/home/", "/tmp/", str(ROOT)):
        assert word not in answer.text, (word, asked)
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_hostile_bodies_get_a_documented_code_and_nothing_of_the_inside(service: Service, path: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(JSON | PLAUSIBLE | st.binary(max_size=200))
    def check(body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
        answer = service.client.post(path, content=content, headers={"content-type": "application/json"})
        nothing_of_the_inside(answer, content)

    check()


@pytest.mark.parametrize("path", ["/v1/items", "/v1/model"])
def test_hostile_queries_get_a_documented_code_and_nothing_of_the_inside(service: Service, path: str) -> None:
    limits = st.integers() | st.text(max_size=10)

    @settings(max_examples=EXAMPLES)
    @given(st.text(max_size=120).filter(lambda text: text.isprintable()), limits)
    def check(query: str, limit: Any) -> None:
        nothing_of_the_inside(service.get(path, params={"query": query, "limit": limit}), (query, limit))

    check()


def test_deeply_nested_json_is_refused(service: Service) -> None:
    answer = service.client.post(
        "/v1/recommend", content=b"[" * 200_000, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert service.get("/readyz").status_code == 200


def test_the_committed_description_is_that_of_the_application(folder: Path) -> None:
    described = create_app(Settings(folder)).openapi()
    assert json.loads((ROOT / "docs" / "openapi.json").read_text()) == described


def test_a_key_is_required_where_one_is_set(folder: Path) -> None:
    service = Service(folder, NCF_SERVE_API_KEY="secret")
    try:
        assert service.post("/v1/recommend", {"user": "u1"}).status_code == 401
        for key, status in (("wrong", 401), ("secret", 200), ("sécret", 401)):
            headers = {b"authorization": f"Bearer {key}".encode()}
            assert service.post("/v1/recommend", {"user": "u1"}, headers=headers).status_code == status
        assert service.get("/readyz").status_code == 200
    finally:
        assert service.stop()


def damage(folder: Path) -> None:
    (weights,) = folder.glob("model-*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)


def test_a_new_model_is_swapped_in_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    recommender(0).save(folder)
    recommender(1).save(other)
    expected = [Recommender.load(one).recommend("u1").items[0] for one in (folder, other)]
    assert expected[0] != expected[1]
    service = Service(folder, "--interval", "0.1", "--threads", "2")
    wrong: list[Any] = []
    stopped = threading.Event()

    def ask() -> None:
        with service.client.__class__(base_url=service.url) as client:
            while not stopped.is_set():
                answer = client.post("/v1/recommend", json={"user": "u1"})
                if answer.status_code != 200 or answer.json()["items"] not in expected:
                    wrong.append(answer.text)

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        first = service.get("/readyz").json()["model"]
        recommender(1).save(folder)  # a new one
        service.until(lambda: service.get("/readyz").json()["model"] != first)
        assert service.post("/v1/recommend", {"user": "u1"}).json()["items"] == expected[1]
        second = service.get("/readyz").json()["model"]
        shutil.copytree(other, tmp_path / "damaged")
        recommender(2).save(tmp_path / "damaged")
        damage(tmp_path / "damaged")
        for file in (tmp_path / "damaged").iterdir():
            if file.name != "config.json":
                shutil.copy(file, folder)
        shutil.copy(tmp_path / "damaged" / "config.json", folder)
        service.until(lambda: "failed_reload" in service.get("/readyz").json())
        assert service.get("/readyz").json()["model"] == second
        assert 'ncf_model_reloads_total{outcome="failed"} 1.0' in service.get("/metrics").text
        recommender(0).save(folder)  # and a good one again
        service.until(
            lambda: (
                service.get("/readyz").json()["model"] not in (first, second)
                or "failed_reload" not in service.get("/readyz").json()
            )
        )
        assert service.post("/v1/recommend", {"user": "u1"}).json()["items"] == expected[0]
    finally:
        stopped.set()
        for caller in callers:
            caller.join()
        assert service.stop()
    assert not wrong, wrong[:1]


def test_workers_share_the_counters_and_one_that_dies_is_replaced(folder: Path) -> None:
    import signal
    import subprocess

    service = Service(folder, "--workers", "2")
    try:
        for number in range(20):
            assert service.post("/v1/recommend", {"user": f"u{number}"}).status_code == 200
        service.until(lambda: 'ncf_users_answered_total{source="model"} 20.0' in service.get("/metrics").text)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(service.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        workers = [c for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        assert len(workers) == 2
        mapped = {
            line.split()[4]  # the file's number
            for worker in workers
            for line in Path(f"/proc/{worker}/maps").read_text().splitlines()
            if line.endswith(".rows")
        }
        assert len(mapped) == (library() is not None)
        os.kill(int(workers[0]), signal.SIGKILL)
        service.client.close()
        service.client = service.client.__class__(base_url=service.url, timeout=30)
        service.until(lambda: service.post("/v1/recommend", {"user": "u1"}).status_code == 200)
    finally:
        service.stop()


def test_the_rows_of_a_former_model_are_removed(tmp_path: Path) -> None:
    folder, shared = tmp_path / "model", tmp_path / "shared"
    shared.mkdir()
    recommender(0).save(folder)
    models = ModelFolder(folder, shared=shared)
    before = models.current.recommender
    expected = before.recommend("u1").scores
    recommender(1).save(folder)
    models.refresh()
    assert len(list(shared.iterdir())) == (library() is not None)
    assert before.recommend("u1").scores.equal(expected)  # as for a request that has begun
    answer = models.current.recommender.recommend("u1")
    assert answer.scores.equal(Recommender.load(folder).recommend("u1").scores)
    assert not answer.scores.equal(expected)
    shared.rename(tmp_path / "gone")  # no place for rows: the new model is served all the same
    recommender(2).save(folder)
    models.refresh()
    assert models.failed is None
    assert not models.current.recommender.recommend("u1").scores.equal(answer.scores)


def test_a_full_queue_is_503_with_the_time_to_try_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    recommender().save(folder)
    service = Service(folder, "--threads", "1", "--queue", "0")
    codes: list[int] = []
    retry: list[str | None] = []

    def ask() -> None:
        with service.client.__class__(base_url=service.url, timeout=60) as client:
            for _ in range(20):
                answer = client.post("/v1/similar", json={"items": ["i1"] * 1000, "k": 60})
                codes.append(answer.status_code)
                if answer.status_code == 503:
                    retry.append(answer.headers.get("retry-after"))

    callers = [threading.Thread(target=ask) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    service.stop()
    assert set(codes) == {200, 503}
    assert set(retry) == {"1"}


def test_log_lines_are_json_without_user_ids(service: Service) -> None:
    service.post("/v1/recommend", {"user": "u31"}, headers={"x-request-id": "my-request"})
    lines = [json.loads(line) for line in service.logged().splitlines()]
    (mine,) = [line for line in lines if line.get("request_id") == "my-request"]
    assert (mine["path"], mine["status"]) == ("/v1/recommend", 200)
    assert "u31" not in service.logged()


def test_a_log_for_a_terminal_has_the_address_and_no_requests(folder: Path) -> None:
    service = Service(folder, "--log", "text")
    try:
        assert service.post("/v1/recommend", {"user": "u1"}).status_code == 200
    finally:
        assert service.stop()
    (line,) = Path(service.log.name).read_text().splitlines()
    assert service.url in line


def test_a_model_whose_titles_cannot_be_read_is_not_served(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "model")
    file = file_of(copied, "item_columns")
    file.write_bytes(file.read_bytes()[:-9])
    rehash(copied)
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        ModelFolder(copied)


def test_a_folder_without_a_model_ends_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncf.serve", str(tmp_path)],
        capture_output=True,
        text=True,
        env=None,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be served" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("workers", "by", "code"),
    [(1, signal.SIGTERM, -signal.SIGTERM), (2, signal.SIGTERM, 0), (2, signal.SIGINT, 0)],
)
def test_a_stopped_service_leaves_no_files(
    folder: Path, tmp_path: Path, workers: int, by: signal.Signals, code: int
) -> None:
    service = Service(folder, "--workers", str(workers), TMPDIR=str(tmp_path))
    try:
        assert len(list(tmp_path.iterdir())) == (workers > 1)
        service.process.send_signal(by)
        assert service.process.wait(timeout=60) == code
    finally:
        service.stop()
    assert not list(tmp_path.iterdir())


def test_a_service_that_is_stopped_as_it_starts_leaves_no_files(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ncf.serve", str(folder), "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=ROOT)
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.001)
    process.terminate()
    assert process.wait(timeout=60) in (0, 128 + signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_named_interactions_are_what_the_tests_count_on() -> None:
    assert named_interactions().num_items == 60
