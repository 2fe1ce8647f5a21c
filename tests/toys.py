"""Tiny random bases in the hub's layout, and Korean pairs, for tests of the language models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from daedap.model.base import Base, load_base
from daedap.model.loss import AnswerLoss, TokenizedRows
from daedap.model.prompt import Example
from daedap.model.tokenizer import save_tokenizer, train_tokenizer
from daedap.training.trainer import Task
from daedap.types import Pair

torch.set_num_threads(1)  # more threads are slower for tiny models

KOGPT2_SPECIALS = ["<s>", "</s>", "<usr>", "<pad>", "<sys>", "<unk>", "<mask>", "<d>", "</d>"]
KOGPT2_SPECIALS += [f"<unused{n}>" for n in range(8)]
KOGPT2_EMOTICONS = [":)", "ㅠㅠ", "😊", "😢"]
"""Marked special in the real KoGPT2, too."""

QWEN3_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and loop.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
GEMMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)

PAIRS = [
    Pair("12시 땡!", "하루가 또 가네요."),
    Pair("안녕하세요", "안녕하세요, 오늘 기분은 어때요?"),
    Pair("너는 이름이 뭐야?", "저는 대답이라고 해요."),
    Pair("오늘 너무 피곤해", "따뜻한 물로 씻고 일찍 주무세요."),
    Pair("배고파 죽겠다", "냉장고에 뭐가 있는지 같이 볼까요?"),
    Pair("점심 뭐 먹지", "매콤한 김치찌개는 어떠세요?"),
    Pair("커피를 너무 많이 마셨어", "물을 한 잔 마시고 좀 쉬어요."),
    Pair("잠이 안 와", "불을 끄고 천천히 숨을 쉬어 보세요."),
    Pair("비가 올까?", "우산을 챙기면 마음이 편할 거예요."),
    Pair("눈이 펑펑 온다", "길이 미끄러우니 조심히 걸어요."),
    Pair("여행 가고 싶다", "이번 주말에 가까운 바다부터 가 봐요."),
    Pair("제주도 맛집 알려줘", "동문시장 골목부터 돌아보세요."),
    Pair("시험을 망쳤어", "다음 시험은 더 잘 볼 수 있어요."),
    Pair("공부하기 싫다", "딱 십 분만 해 보고 정해요."),
    Pair("면접이 내일이야", "거울 앞에서 한 번만 더 연습해요."),
    Pair("회사 그만두고 싶어", "먼저 하루 쉬면서 생각해 보세요."),
    Pair("월급이 너무 적어", "옮길 곳을 알아보는 것도 방법이에요."),
    Pair("상사가 나를 싫어해", "오해일 수도 있으니 이야기해 보세요."),
    Pair("친구랑 싸웠어", "먼저 손을 내밀면 금방 풀릴 거예요."),
    Pair("그 사람이 보고 싶어", "그리운 마음이 드는 건 당연해요."),
    Pair("짝사랑은 너무 힘들어", "마음을 전하는 것도 용기예요."),
    Pair("고백해도 될까?", "후회하지 않을 쪽을 고르세요."),
    Pair("헤어진 지 세 달째야", "시간이 조금 더 필요한가 봐요."),
    Pair("생일 선물 뭐가 좋을까", "손으로 쓴 편지를 같이 주면 좋아해요."),
    Pair("강아지가 밥을 안 먹어", "이틀 넘게 그러면 병원에 데려가세요."),
    Pair("고양이 키우고 싶다", "털 알레르기가 있는지 먼저 확인해요."),
    Pair("감기 걸렸나 봐", "목을 따뜻하게 하고 푹 쉬어요."),
    Pair("머리가 지끈지끈 아파", "창문을 열고 바람을 쐬어 보세요."),
    Pair("살을 빼야 하는데", "저녁마다 삼십 분씩 걸어 봐요."),
    Pair("근육이 커지기 위해서는", "단백질을 먹고 꾸준히 들어 올려야 한다."),
    Pair("헬스장 등록할까?", "집에서 가까운 곳이 오래 가요."),
    Pair("담배 끊기 힘들다", "사탕을 주머니에 넣고 다녀 보세요."),
    Pair("술 한잔하고 싶다", "오늘은 가볍게 한 잔만 해요."),
    Pair("노래 추천해줘", "비 오는 날엔 재즈가 잘 어울려요."),
    Pair("영화 볼까 책 볼까", "둘 다 좋지만 오늘은 영화예요."),
    Pair("심심해", "저랑 끝말잇기 할래요?"),
    Pair("외로워", "제가 곁에 있을게요."),
    Pair("ㅋㅋ 너 진짜 웃기다", "ㅋㅋ 고마워요!"),
    Pair("눈물이 난다ㅠㅠ", "실컷 울고 나면 괜찮아질 거예요."),
    Pair("사랑해", "저도 많이 좋아해요."),
    Pair("고마워", "제가 더 고맙죠."),
    Pair("미안해", "괜찮아요, 다 잊었어요."),
    Pair("잘 자", "좋은 꿈 꾸세요."),
    Pair("지금 몇 시야?", "시계를 한번 봐 주세요."),
    Pair("돈을 잃어버렸어", "가까운 경찰서에 물어보세요."),
    Pair("로또 당첨되면 뭐 할까", "부모님께 먼저 말씀드려요."),
    Pair("이사 가야 해", "버릴 것부터 골라 보세요."),
    Pair("방이 너무 더러워", "책상 위부터 하나씩 치워요."),
    Pair("택배가 안 와", "송장 번호로 조회해 보세요."),
    Pair("핸드폰이 고장났어", "껐다가 다시 켜 보셨나요?"),
    Pair("컴퓨터가 느려졌어", "쓰지 않는 프로그램을 닫아 보세요."),
    Pair("비밀번호를 까먹었다", "본인 확인을 하고 새로 만드세요."),
    Pair("버스를 놓쳤어", "다음 버스는 금방 올 거예요."),
    Pair("차가 막혀", "음악을 들으면서 천천히 가요."),
    Pair("운전이 무서워", "한적한 길에서 연습하면 늘어요."),
    Pair("결혼은 언제 해야 할까", "준비가 됐다고 느낄 때요."),
    Pair("엄마랑 말이 안 통해", "짧은 편지로 써 보는 건 어때요?"),
    Pair("동생이 자꾸 까불어", "그만큼 형을 좋아하는 거예요."),
    Pair("졸업하면 뭐 하지", "하고 싶은 일을 셋만 적어 봐요."),
    Pair("꿈이 없어서 걱정이야", "천천히 찾아도 늦지 않아요."),
    Pair("화가 나서 미치겠어", "열까지 세고 나서 말해요."),
    Pair("너무 부끄러워", "다들 금방 잊을 테니 걱정 마세요."),
    Pair("내일 소풍 가!", "김밥 싸서 즐겁게 다녀오세요."),
    Pair("넌 로봇이야?", "네, 그래도 마음은 따뜻하답니다."),
]
TEXTS = [text for pair in PAIRS for text in (pair.question, pair.answer)]
_SELF_TEST = ["안녕하세요, 오늘 기분은 어때요?", "근육이 커지기 위해서는 12시에 밥을 먹어야 한다.", "ㅋㅋ 고마워ㅠㅠ!"]
CORPUS = [*TEXTS, *_SELF_TEST, "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 <|/_>☆😊😢:)"]


def kogpt2(folder: Path) -> Path:
    """As skt/kogpt2-base-v2 is published: no tokenizer_config.json, a pickle for weights, the licence in the card."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = kogpt2_tokenizer(CORPUS)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    )
    config.architectures = ["GPT2LMHeadModel"]
    (folder / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    torch.manual_seed(0)
    torch.save(GPT2LMHeadModel(config).state_dict(), folder / "pytorch_model.bin")
    card = "---\nlanguage: ko\nlicense: cc-by-nc-sa-4.0\n---\n# 장난감\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def kogpt2_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Character BPE after NFKC and Metaspace, every control token and emoticon marked special."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    bert = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), bert])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    specials = [*KOGPT2_SPECIALS, *KOGPT2_EMOTICONS]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[_special(name) for name in specials], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def llama(folder: Path) -> Path:
    """Llama with daedap's own tokenizer and roles."""
    tokenizer = train_tokenizer(CORPUS, 1000)
    config = LlamaConfig(
        **_SMALL,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return _save(folder, LlamaForCausalLM(config), tokenizer)


def qwen3(folder: Path) -> Path:
    """Qwen3: byte-level BPE, ChatML roles, an empty thought before the last answer, `<think>` not marked special."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    trained.add_special_tokens([_special(name) for name in specials])
    trained.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN3_TEMPLATE
    )
    config = Qwen3Config(**_SMALL, head_dim=32, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    return _save(folder, Qwen3ForCausalLM(config).bfloat16(), tokenizer)


def gemma3(folder: Path) -> Path:
    """Gemma 3: BOS before every text, explicit head_dim, one key-value head, sliding window, bf16."""
    trained = gemma3_tokenizer()
    trained.post_processor = processors.TemplateProcessing(
        single=["<bos>", "$A"], pair=["<bos>", "$A", "$B"], special_tokens=[("<bos>", trained.token_to_id("<bos>"))]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, chat_template=GEMMA3_TEMPLATE, **names)
    config = Gemma3TextConfig(
        **_SMALL,
        head_dim=24,
        vocab_size=len(tokenizer),
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=32,
        query_pre_attn_scalar=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return _save(folder, Gemma3ForCausalLM(config).bfloat16(), tokenizer)


def gemma3_tokenizer() -> Tokenizer:
    """BPE with byte fallback and no prefix space."""
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # for training: no token spans two words
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=[*specials, *byte_tokens], show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    state["pre_tokenizer"] = None
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    final = Tokenizer.from_str(json.dumps(state))
    final.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    final.add_tokens([AddedToken("\n\n", normalized=False)])  # real Gemma keeps runs of newlines so
    return final


def task(model: PreTrainedModel | PeftModel, train: Sequence[Example], dev: Sequence[Example]) -> Task:
    """A task without cache and shortlist."""
    loss, dev_loss = AnswerLoss(model), AnswerLoss(model)
    return Task(model, loss, dev_loss, TokenizedRows(train, "cpu"), TokenizedRows(dev, "cpu"))


BASES: dict[str, Callable[[Path], Path]] = {"kogpt2": kogpt2, "llama": llama, "qwen3": qwen3, "gemma3": gemma3}
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # logits far enough apart for reproducible greedy decoding
    "tie_word_embeddings": True,
}


def _save(folder: Path, model: object, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    save_tokenizer(tokenizer, folder)
    return folder


def _special(name: str) -> AddedToken:
    return AddedToken(name, normalized=False, special=True)


def loaded(kind: str, folder: Path) -> Base:
    """A base of this kind, made in the folder, in evaluation mode."""
    base = load_base(str(BASES[kind](folder)))
    base.model.eval()
    return base


def rendered(base: Base, count: int = 12) -> list[Example]:
    """The first pairs as examples."""
    prompt = base.prompt(100)
    return [prompt.example(pair) for pair in PAIRS[:count]]
