"""The server that a tutorial ends with, to measure ours beside it: FastAPI and transformers' `generate`.

    daedap export latest --to hf exported
    python bench/generate_server.py exported --port 8001
    python bench/serve_load.py load --url http://127.0.0.1:8000/v1 --url http://127.0.0.1:8001/v1 --questions asked.csv

One request is one `generate` call, greedy, as in the model's own chat template; requests wait for each other in
Starlette's thread pool.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModelForCausalLM, AutoTokenizer


def server(folder: str, max_new_tokens: int) -> FastAPI:
    """Answers POST /v1/chat/completions, the text of the last message alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    app, one_at_a_time = FastAPI(), threading.Lock()

    def generate(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with one_at_a_time, torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "transformers", "object": "model"}]}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": generate(body["messages"])}
        return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    uvicorn.run(server(options.folder, options.max_new_tokens), port=options.port, log_level="warning")
