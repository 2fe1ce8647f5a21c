from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toys
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import GPT2LMHeadModel, LlamaConfig

from daedap.errors import BaseError
from daedap.model.base import load_base
from daedap.model.tokenizer import decode, encode, load_tokenizer, save_tokenizer

SHA = "0123456789abcdef0123456789abcdef01234567"
LOADING = """
import sys
from daedap.errors import BaseError
from daedap.model.base import load_base
for name in sys.argv[1:]:
    try:
        base = load_base(name)
        print(base.licence, base.digest, type(base.model).__name__)
    except BaseError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("name", "licence"),
    [("kogpt2", "cc-by-nc-sa-4.0"), ("llama", "unknown"), ("qwen3", "unknown"), ("gemma3", "unknown")],
)
def test_each_architecture_is_loaded(name: str, licence: str, tmp_path: Path) -> None:
    folder = toys.BASES[name](tmp_path / "toy")
    base = load_base(str(folder))
    assert (base.name, base.licence, base.model.dtype) == (str(folder), licence, torch.float32)
    text = "근육이 커지기 위해서는"
    assert decode(base.tokenizer, encode(base.tokenizer, text)) == text


def test_the_weights_are_those_of_the_file(tmp_path: Path) -> None:
    stored = torch.load(toys.kogpt2(tmp_path) / "pytorch_model.bin", weights_only=True)
    loaded = load_base(str(tmp_path)).model.state_dict()
    assert torch.equal(loaded["transformer.h.1.mlp.c_fc.weight"], stored["transformer.h.1.mlp.c_fc.weight"])


def test_the_digest_is_of_weights_and_tokenizer(tmp_path: Path) -> None:
    first = load_base(str(toys.llama(tmp_path / "1"))).digest
    assert load_base(str(toys.llama(tmp_path / "2"))).digest == first
    weights = load_file(tmp_path / "2" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "2" / "model.safetensors", metadata={"format": "pt"})
    assert load_base(str(tmp_path / "2")).digest != first


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("license: mit", "mit"),
        ('license: "apache-2.0"', "apache-2.0"),
        ("license:\n- cc-by-4.0", "cc-by-4.0"),
        ("language: ko", "unknown"),
        ("license:\nlanguage: ko", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_card(header: str, licence: str, tmp_path: Path) -> None:
    toys.llama(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{header}\ntags: [대답]\n---\n# 장난감\n", encoding="utf-8")
    assert load_base(str(tmp_path)).licence == licence


class Trap:
    """An object that creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder, trace = toys.kogpt2(tmp_path / "toy"), tmp_path / "ran"
    torch.save({"transformer.wte.weight": Trap(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(BaseError, match="toy"):
        load_base(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trace), protocol=2))
    with pytest.raises(BaseError, match="toy"):
        load_base(str(folder))
    assert not trace.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes()).close()
    assert trace.exists(), "the pickle would have created the file"


def test_code_that_comes_with_a_base_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trace = toys.llama(tmp_path / "toy"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "strange.py").write_text(f"open({str(trace)!r}, 'w').close()\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda _: "y")  # whatever is asked
    _refused(folder, "custom code")
    assert not trace.exists()


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    (toys.llama(tmp_path / "toy") / "config.json").unlink()
    _refused(tmp_path / "toy", r"no config\.json.*Give the folder")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (toys.llama(tmp_path / "toy") / "model.safetensors").unlink()
    _refused(tmp_path / "toy", "no weights.*Copy")


@pytest.mark.parametrize(("name", "file"), [("llama", "model.safetensors"), ("kogpt2", "pytorch_model.bin")])
@pytest.mark.parametrize("kept", [0.9, 0.1, 0.0])
def test_truncated_weights_are_refused(name: str, file: str, kept: float, tmp_path: Path) -> None:
    path = toys.BASES[name](tmp_path / "toy") / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    _refused(tmp_path / "toy", "can't be loaded.*get them again")


def test_weights_that_lack_a_block_are_refused(tmp_path: Path) -> None:
    path = toys.llama(tmp_path / "toy") / "model.safetensors"
    weights = {name: weight for name, weight in load_file(path).items() if "layers.1" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    _refused(tmp_path / "toy", r"not all there.*layers\.1.*get them again")


def test_weights_saved_without_the_tied_head_are_complete(tmp_path: Path) -> None:
    path = toys.kogpt2(tmp_path) / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items() if name != "lm_head.weight"}
    torch.save(bare, path)
    model = load_base(str(tmp_path)).model
    assert isinstance(model, GPT2LMHeadModel)
    assert torch.equal(model.lm_head.weight, bare["wte.weight"])


def test_a_tokenizer_that_garbles_korean_is_refused(tmp_path: Path) -> None:
    folder = toys.kogpt2(tmp_path / "toy")
    toys.kogpt2_tokenizer(["the quick brown fox jumps over the lazy dog 0123456789"]).save(
        str(folder / "tokenizer.json")
    )
    _refused(folder, "garbles Korean.*안녕하세요.*Use the tokenizer")


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    folder = toys.llama(tmp_path / "toy")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["하나", "둘"])
    save_tokenizer(tokenizer, folder)
    _refused(folder, "ids up to.*get both")


def test_a_tokenizer_that_encodes_typed_control_tokens_is_refused(tmp_path: Path) -> None:
    folder = toys.qwen3(tmp_path / "toy")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"special": true', '"special": false'), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if not name.endswith("_token")}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    _refused(folder, r"typed '<\|im_end\|>'.*Save it again")


def without_template(folder: Path, front: str) -> Path:
    """The Gemma toy without a chat template, with a token prepended to every text."""
    tokenizer = load_tokenizer(toys.gemma3(folder))
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[front, "$A"], pair=[front, "$A", "$B"], special_tokens=[(front, tokenizer.convert_tokens_to_ids(front))]
    )
    save_tokenizer(tokenizer, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_prompt_begins_with_the_tokenizers_prefix(tmp_path: Path) -> None:
    base = load_base(str(without_template(tmp_path / "toy", "<bos>")))
    assert base.prompt(64).template.opening[0] == base.tokenizer.bos_token_id


def test_a_prefix_that_no_template_can_name_is_refused(tmp_path: Path) -> None:
    """With an ordinary token as prefix, which a template would encode as text."""
    _refused(without_template(tmp_path / "toy", "<0x41>"), "puts '<0x41>' before every text.*Mark it special")


def test_weights_in_bf16_are_computed_in_fp32(tmp_path: Path) -> None:
    stored = load_file(toys.gemma3(tmp_path) / "model.safetensors")
    loaded = load_base(str(tmp_path)).model
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for name, weight in stored.items():
        assert torch.equal(loaded.state_dict()[name], weight.float())


def test_an_explicit_head_dim_is_accepted(tmp_path: Path) -> None:
    """As in kanana-nano; without an explicit head_dim the hidden size must be divisible by the heads."""
    config = LlamaConfig(hidden_size=56, num_attention_heads=6, num_key_value_heads=2, head_dim=16)
    config.save_pretrained(tmp_path)
    assert LlamaConfig.from_pretrained(tmp_path).head_dim == 16
    with pytest.raises(StrictDataclassClassValidationError, match="not a multiple"):
        LlamaConfig(hidden_size=50, num_attention_heads=6)


@pytest.mark.parametrize("name", ["없는 폴더", "kogpt2", "a/b/c", "../toy"])
def test_neither_folder_nor_name_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseError, match="--base"):
        load_base(name)


@dataclass(frozen=True)
class Heard:
    """Output per name with a reachable hub, the requested files, and output per name without it."""

    online: dict[str, str]
    requests_seen: list[str]
    offline: dict[str, str]
    digest: str


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    place = tmp_path_factory.mktemp("hub")
    kogpt2 = toys.kogpt2(place / "toy" / "kogpt2")
    (toys.llama(place / "toy" / "llama") / "pytorch_model.bin").write_bytes(b"never asked for")
    with _hub(place) as hub:
        online = _load_apart(["toy/kogpt2", "toy/llama", "toy/nothing"], hub.address, place)
    offline = _load_apart(["toy/kogpt2", "toy/nothing"], hub.address, place)
    return Heard(online, hub.requests_seen, offline, load_base(str(kogpt2)).digest)


def test_a_base_is_loaded_from_the_hub(heard: Heard) -> None:
    assert heard.online["toy/kogpt2"].split() == ["cc-by-nc-sa-4.0", heard.digest, "GPT2LMHeadModel"]
    assert f"GET /toy/kogpt2/resolve/{SHA}/pytorch_model.bin" in heard.requests_seen


def test_safetensors_are_preferred_to_pickles(heard: Heard) -> None:
    assert heard.online["toy/llama"].endswith("LlamaForCausalLM")
    assert not [request for request in heard.requests_seen if "llama" in request and "pytorch_model.bin" in request]


def test_without_the_hub_the_cache_is_used(heard: Heard) -> None:
    assert heard.offline["toy/kogpt2"] == heard.online["toy/kogpt2"]


def test_a_missing_or_unreachable_repository_is_reported(heard: Heard) -> None:
    for message in (heard.online["toy/nothing"], heard.offline["toy/nothing"]):
        assert message.startswith("toy/nothing: can't be downloaded from the hub")
        assert message.endswith("--base FOLDER")


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(BaseError, match=f"{folder.name}.*{message}"):
        load_base(str(folder))


def _load_apart(names: list[str], endpoint: str, place: Path) -> dict[str, str]:
    """In a new process: huggingface_hub reads its environment variables when imported."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(place / "cache"), "NO_PROXY": "127.0.0.1"}
    own |= {"DAEDAP_LANG": "en", "PYTHONIOENCODING": "utf-8"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    command = [sys.executable, "-c", LOADING, *names]
    result = subprocess.run(command, env=environment | own, capture_output=True, encoding="utf-8", check=True)
    return dict(zip(names, result.stdout.splitlines(), strict=True))


class Hub(BaseHTTPRequestHandler):
    """The hub's API as far as its client needs it: commit, file list and files of a model."""

    def __init__(self, root: Path, requests_seen: list[str], *rest: Any) -> None:
        self.root, self.requests_seen = root, requests_seen
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.requests_seen.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0].strip("/")
        kind, _, name = path.removeprefix("api/models/").partition("/resolve/" if "/resolve/" in path else "/tree/")
        folder = self.root / kind.partition("/revision/")[0]
        if not folder.is_dir():
            self._send(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            self._send_file(folder / name.partition("/")[2])
        else:
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in sorted(folder.iterdir())
            ]
            about = {"id": kind, "sha": SHA, "siblings": [{"rfilename": file["path"]} for file in files]}
            self._send(json.dumps(files if "/tree/" in path else about).encode())

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _send_file(self, file: Path) -> None:
        self._send(file.read_bytes(), 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": SHA})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No output."""


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def _hub(root: Path) -> Iterator[SimpleNamespace]:
    requests_seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, requests_seen)) as server:
        Thread(target=server.serve_forever).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", requests_seen=requests_seen)
        server.shutdown()
