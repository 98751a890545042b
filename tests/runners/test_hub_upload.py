"""The upload of an export: the hub's own client, over HTTP, against a server here that understands its calls."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sft_hydra.cli import command
from sft_hydra.errors import CheckpointError, ConfigError

TRAIN = [
    "model.architecture.num_hidden_layers=1", "name=sums", "train.train_iters=1", "data.sample=20", "data.num_workers=1",
    "eval.every=0", "eval.exact_match.path=null", "eval.samples=[]", "export.auto=false",
]  # fmt: skip
EXPORT = ["runner=export", "name=sums", "export.push_to=ada/sums"]


@dataclass
class Hub:
    """What a hub has been told."""

    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: bool = False


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.tokens.add(self.headers["Authorization"])
            if told.refuses:
                self._answer(403, {"error": "no writing here"})
            elif self.path == "/api/repos/create":
                told.made.append(json.loads(body))
                self._answer(200, {"url": f"{url}/ada/sums"})
            elif self.path.startswith("/api/models/ada/sums/preupload/"):
                paths = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                self._answer(200, {"files": files})
            else:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        told.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self._answer(
                    200, {"success": True, "commitOid": "a" * 40, "commitUrl": f"{url}/ada/sums/commit/{'a' * 40}"}
                )

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_ada")
    monkeypatch.chdir(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


def test_the_hub_has_the_export_in_a_private_repository(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    command(TRAIN)
    assert command(EXPORT) == 0
    (made,) = hub.made
    assert (made["organization"], made["name"]) == ("ada", "sums")
    assert made.get("visibility") == "private" or made.get("private") is True  # as newer and older clients say it
    folder = Path("outputs/sums/hf")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "model.safetensors" in hub.files
    assert hub.tokens == {"Bearer hf_of_ada"}
    assert "ada/sums/commit" in capsys.readouterr().out


def test_a_hub_that_refuses_leaves_the_export(hub: Hub) -> None:
    hub.refuses = True
    command(TRAIN)
    with pytest.raises(CheckpointError, match=r"export\.push_to=ada/sums: upload to the hub failed") as refusal:
        command(EXPORT)
    assert "outputs/sums/hf; rerun with runner=export to try again" in str(refusal.value)
    assert Path("outputs/sums/hf/model.safetensors").is_file()


def test_a_random_start_is_not_exported(hub: Hub) -> None:
    with pytest.raises(ConfigError, match=r"runner=export: outputs/sums/checkpoints contains no checkpoint"):
        command(EXPORT)
    assert not Path("outputs/sums/hf").exists()
    assert not hub.files


def test_what_is_missing_is_told_before_the_work(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for runner in ("train", "export"):
        with pytest.raises(ConfigError) as refusal:
            command([*EXPORT, f"runner={runner}", "export.push_to=sums"])
        assert [problem.split(":")[0] for problem in refusal.value.problems] == [
            "export.push_to=sums",
            "export.push_to=sums needs a token with write access",
        ]
    assert not Path("outputs/sums/hf").exists()
    assert not hub.tokens
