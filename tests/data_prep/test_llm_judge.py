"""The judge against a real server on this machine: verdicts, time-outs, retries, and nothing asked twice."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.chats import assistant, data_cfg, rejects, user, write_jsonl

from sft_hydra.data_prep import llm_judge
from sft_hydra.data_prep.prepare import prepare
from sft_hydra.errors import DataError
from sft_hydra.schema.config import SftConfig
from sft_hydra.schema.data import JudgeConfig


class Server(ThreadingHTTPServer):
    """Says no to what holds `bad`; `faults` are status codes (0: silence) for the next requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[int] = []
        self.together = self.most_together = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.together += 1
        self.server.most_together = max(self.server.most_together, self.server.together)
        time.sleep(0.02)
        self.server.together -= 1
        fault = self.server.faults.pop(0) if self.server.faults else 200
        if fault == 0:
            time.sleep(1.0)  # longer than anyone waits
            return
        if fault != 200:
            self.send_error(fault)
            return
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        text = "No, it is not." if "bad" in body["messages"][0]["content"] else "Yes."
        answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        """Not on the console."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(llm_judge, "PAUSE", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cfg(server: Server, tmp_path: Path) -> SftConfig:
    rows = [{"messages": [user(f"question {n}"), assistant("bad" if n % 5 == 0 else "good")]} for n in range(20)]
    made = data_cfg(tmp_path / "out", rows=write_jsonl(tmp_path / "rows.jsonl", [*rows, {"messages": []}]))
    made.data.filters.judge = JudgeConfig(url=server.url, model="judge-1", timeout=0.5, parallel=8)
    return made


def test_verdicts_are_reasons(cfg: SftConfig, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    source = prepare(cfg).metadata["sources"][0]
    assert source["rejects"] == {"judge": 4, "no_messages": 1}
    assert source["kept"] == 16
    assert len(server.asked) == 20
    assert server.asked[0]["model"] == "judge-1"
    assert server.asked[0]["temperature"] == 0
    assert set(server.keys) == {"Bearer secret"}
    assert server.most_together > 1
    assert "answered 'No, it is not.'" in next(
        entry["detail"] for entry in rejects(prepare(cfg)) if entry["reason"] == "judge"
    )


def test_nothing_is_asked_twice(cfg: SftConfig, server: Server) -> None:
    prepare(cfg)
    cfg.seq_length = 128  # another packed set of the same rows
    prepare(cfg)
    assert len(server.asked) == 20
    cfg.data.filters.judge.question = "Is it funny?"
    prepare(cfg)
    assert len(server.asked) == 40


def test_faults_and_silence_are_tried_again(cfg: SftConfig, server: Server) -> None:
    server.faults = [500, 0, 429, 503]
    assert prepare(cfg).metadata["sources"][0]["kept"] == 16


def test_an_endpoint_that_refuses_stops_the_run_and_keeps_the_verdicts(cfg: SftConfig, server: Server) -> None:
    cfg.data.filters.judge.parallel = 1
    server.faults = [200] * 6 + [401]
    with pytest.raises(DataError, match=r"no verdict from judge-1 after 1 attempts \(HTTP Error 401"):
        prepare(cfg)
    assert 6 <= len(server.asked) < 10
    assert prepare(cfg).metadata["sources"][0]["kept"] == 16
    assert len(server.asked) == 20


def test_no_endpoint_is_told(cfg: SftConfig) -> None:
    cfg.data.filters.judge.url, cfg.data.filters.judge.retries = "http://127.0.0.1:9/v1", 1
    with pytest.raises(
        DataError, match=r"data\.filters\.judge\.url=http://127.0.0.1:9/v1: no verdict .* after 2 attempts"
    ):
        prepare(cfg)


def test_a_verdict_that_a_kill_cut_off_is_asked_again(cfg: SftConfig, server: Server) -> None:
    prepare(cfg)
    cache = Path(cfg.output_dir) / "data" / "judge.jsonl"
    cache.write_text(cache.read_text()[:-20])
    cfg.seq_length = 128
    prepare(cfg)
    assert len(server.asked) == 21
