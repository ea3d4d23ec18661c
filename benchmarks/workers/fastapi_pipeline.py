"""A transformers pipeline behind FastAPI, as tutorials have it: one text a request."""

from __future__ import annotations

import socket
import sys
import threading

import torch
import uvicorn
from fastapi import FastAPI
from protocol import options, say, versions
from pydantic import BaseModel
from transformers_speed import load


class Asked(BaseModel):
    """The body of a request."""

    text: str


def main() -> None:
    given = options()
    torch.set_num_threads(given["threads"])
    pipe = load(given)
    app = FastAPI()

    @app.post("/classify")
    def classify(asked: Asked) -> dict[str, object]:
        (answer,) = pipe(asked.text, truncation=True, max_length=given["max_tokens"])
        return answer

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))

    def wait_for_the_end() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    packages = ("fastapi", "uvicorn", "httptools", "uvloop", "transformers", "optimum-onnx")
    say(port=listener.getsockname()[1], versions=versions(*packages))
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
