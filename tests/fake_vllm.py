"""A server that answers as vLLM does, by other means: the standard library and a plain Hugging Face forward.

What it shares with opdkit is the model folder and nothing else, so that a test of the clients against it is a test of the
contract. It scores prompts, draws responses, tokenises, and takes weights from a file. `--defect head` leaves the output head
as it was when weights are taken, `--defect nothing` takes none and says it did.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


class Engine:
    def __init__(self, folder: str, *, cap: int, defect: str):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.folder, self.cap, self.defect = folder, cap, defect
        self.lock = threading.Lock()

    @torch.no_grad()
    def rows(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].float()

    def score(self, ids: list[int], k: int) -> list[Any]:
        """One dict per token but the first: the k most probable, and the token itself."""
        logp = self.rows(ids).log_softmax(-1)
        k = logp.shape[-1] if k == -1 else k
        out: list[Any] = [None]
        for t in range(1, len(ids)):
            row = logp[t - 1]
            order = row.argsort(descending=True)
            rank = {int(i): n for n, i in enumerate(order.tolist(), 1)}
            wanted = dict.fromkeys([ids[t], *order[:k].tolist()])
            out.append(
                {str(i): {"logprob": float(row[i]), "rank": rank[i], "decoded_token": None} for i in wanted}
            )
        return out

    def draw(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, taken, said, tops = list(body["prompt"]), [], [], []
        generator = torch.Generator().manual_seed(int(body.get("seed", 0)) % (1 << 63))
        for n in range(body["max_tokens"]):
            row = self.rows(ids)[-1] / body.get("temperature", 1.0)
            for i, bias in (body.get("logit_bias") or {}).items():
                row[int(i)] += bias
            if n < body.get("min_tokens", 0):
                row[body["stop_token_ids"]] = -torch.inf
            logp = row.log_softmax(-1)
            token = int(torch.multinomial(logp.exp(), 1, generator=generator))
            ids.append(token)
            taken.append(token)
            said.append(float(logp[token]))
            order = logp.argsort(descending=True)[: body.get("logprobs") or 0]
            tops.append({f"token_id:{i}": float(logp[i]) for i in dict.fromkeys([*order.tolist(), token])})
            if token in body.get("stop_token_ids", []):
                break
        logprobs = {"token_logprobs": said, "top_logprobs": tops if body.get("logprobs") else None}
        return {
            "index": 0,
            "text": "",
            "token_ids": taken,
            "logprobs": logprobs if "logprobs" in body else None,
        }

    def take(self, path: str) -> None:
        if self.defect == "nothing":
            return
        tensors = load_file(path)
        if self.defect == "head":
            old = self.model.get_output_embeddings().weight.detach().clone()
        _, unexpected = self.model.load_state_dict(tensors, strict=False)
        assert not unexpected, unexpected
        if self.defect == "head":
            self.model.get_output_embeddings().weight = torch.nn.Parameter(old)


class Handler(BaseHTTPRequestHandler):
    engine: Engine
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            card = {"id": "fake", "root": self.engine.folder, "max_model_len": 256}
            self.reply(200, {"object": "list", "data": [card]})
        elif self.path == "/health":
            self.reply(200, {})
        else:
            self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(data) if data else {}
        with self.engine.lock:
            try:
                self.answer(body)
            except Exception as error:  # as a server does
                self.reply(500, {"error": f"{type(error).__name__}: {error}"})

    def answer(self, body: dict[str, Any]) -> None:
        engine = self.engine
        if self.path == "/tokenize":
            self.reply(
                200, {"tokens": engine.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
            )
        elif self.path == "/collective_rpc":
            given = body.get("args") or [f"{body['kwargs']['weights_path']}/model.safetensors"]
            engine.take(given[0])
            self.reply(200, {"results": [1]})
        elif self.path == "/reset_prefix_cache":
            self.reply(200, {})
        elif self.path == "/v1/completions":
            self.complete(body)
        else:
            self.reply(404, {"detail": "Not Found"})

    def complete(self, body: dict[str, Any]) -> None:
        for field in ("prompt_logprobs", "logprobs"):
            if (body.get(field) or 0) > self.engine.cap:
                message = f"Requested {field} of {body[field]}, which is greater than max allowed: {self.engine.cap}"
                self.reply(400, {"error": {"message": message}})
                return
        if "prompt_logprobs" in body:
            prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
            scored = [self.engine.score(p, body["prompt_logprobs"]) for p in prompts]
            choices: list[dict[str, Any]] = [{"index": i, "prompt_logprobs": s} for i, s in enumerate(scored)]
            if body.get("return_token_ids"):
                choices = [{**c, "prompt_token_ids": p} for c, p in zip(choices, prompts, strict=True)]
            self.reply(200, {"choices": choices})
            return
        prompt = body["prompt"][0] if isinstance(body["prompt"][0], list) else body["prompt"]
        self.reply(200, {"choices": [self.engine.draw({**body, "prompt": prompt})]})

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(folder: str, *, port: int = 0, cap: int = 20, defect: str = "") -> Server:
    """Listens at once; `serve_forever` is the caller's. The address is `server_address`."""
    handler = type("Bound", (Handler,), {"engine": Engine(folder, cap=cap, defect=defect)})
    return Server(("127.0.0.1", port), handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cap", type=int, default=20)
    parser.add_argument("--defect", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    server = serve(given.folder, port=given.port, cap=given.cap, defect=given.defect)
    print(json.dumps({"url": f"http://127.0.0.1:{server.server_address[1]}"}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
