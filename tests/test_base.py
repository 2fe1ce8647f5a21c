from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toys
from huggingface_hub.errors import StrictDataclassClassValidationError
from loopback_hub import SHA, hub_environment, serve_hub
from safetensors.torch import load_file, save_file
from test_gguf import toy
from tokenizers import processors
from transformers import GPT2LMHeadModel, LlamaConfig

from daedap.errors import BaseError
from daedap.model.base import load_base
from daedap.model.tokenizer import decode, encode, load_tokenizer, save_tokenizer

pytestmark = pytest.mark.slow


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


def load_apart(names: list[str], address: str, place: Path) -> dict[str, str]:
    """What a new process says of each base: its licence, digest and class, or why it can't be loaded."""
    command = [sys.executable, "-c", LOADING, *names]
    environment = hub_environment(address, place / "cache")
    result = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True)
    return dict(zip(names, result.stdout.splitlines(), strict=True))


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
    _gguf_repositories(place)
    with serve_hub(place) as hub:
        names = ["toy/kogpt2", "toy/llama", "toy/nothing", "toy/one", "toy/two", "toy/two:q8_0"]
        online = load_apart(names, hub.address, place)
    offline = load_apart(["toy/kogpt2", "toy/nothing", "toy/one", "toy/two:Q8_0"], hub.address, place)
    return Heard(online, hub.requests_seen, offline, load_base(str(kogpt2)).digest)


def _gguf_repositories(place: Path) -> None:
    """One repository with a single GGUF file, and one with two quantizations and a licence in its card."""
    one, two = place / "toy" / "one", place / "toy" / "two"
    for folder, file, metadata in ((one, "qwen3.gguf", {}), (two, "qwen3-Q8_0.gguf", {"general.license": None})):
        folder.mkdir(parents=True)
        toy("qwen3", place / "made", metadata=metadata).path.rename(folder / file)
        shutil.rmtree(place / "made")
    (one / "mmproj-qwen3.gguf").write_bytes(b"never asked for")
    (two / "qwen3-Q4_K_M.gguf").write_bytes(b"never asked for")
    (two / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")


def test_a_base_is_loaded_from_the_hub(heard: Heard) -> None:
    assert heard.online["toy/kogpt2"].split() == ["cc-by-nc-sa-4.0", heard.digest, "GPT2LMHeadModel"]
    assert f"GET /toy/kogpt2/resolve/{SHA}/pytorch_model.bin" in heard.requests_seen


def test_safetensors_are_preferred_to_pickles(heard: Heard) -> None:
    assert heard.online["toy/llama"].endswith("LlamaForCausalLM")
    assert not [request for request in heard.requests_seen if "llama" in request and "pytorch_model.bin" in request]


def test_without_the_hub_the_cache_is_used(heard: Heard) -> None:
    assert heard.offline["toy/kogpt2"] == heard.online["toy/kogpt2"]


def test_a_gguf_file_is_loaded_from_the_hub(heard: Heard) -> None:
    licence, _, architecture = heard.online["toy/one"].split()
    assert (licence, architecture) == ("apache-2.0", "Qwen3ForCausalLM")
    assert heard.offline["toy/one"] == heard.online["toy/one"]


def test_a_quantization_is_loaded_from_the_hub(heard: Heard) -> None:
    assert heard.online["toy/two:q8_0"].startswith("mit ")
    assert heard.offline["toy/two:Q8_0"] == heard.online["toy/two:q8_0"]
    assert heard.online["toy/two"].startswith("toy/two: 2 GGUF files, qwen3-Q4_K_M.gguf, qwen3-Q8_0.gguf.")
    assert heard.online["toy/two"].endswith("--base toy/two:Q4_K_M")
    assert not [request for request in heard.requests_seen if "Q4_K_M" in request or "mmproj" in request]


def test_a_missing_or_unreachable_repository_is_reported(heard: Heard) -> None:
    for message in (heard.online["toy/nothing"], heard.offline["toy/nothing"]):
        assert message.startswith("toy/nothing: can't be downloaded from the hub")
        assert message.endswith("--base FOLDER")


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(BaseError, match=f"{folder.name}.*{message}"):
        load_base(str(folder))
