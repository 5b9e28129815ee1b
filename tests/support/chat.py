"""A server with the chat completions API, whose answers are chosen by the test."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
from PIL import Image


def says(text, tokens=None):
    """Return a chat completion of a text; ``tokens`` are log-probs of the first, by token."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    if tokens is not None:
        likeliest = [{"token": token, "logprob": value} for token, value in tokens.items()]
        choice["logprobs"] = {"content": [likeliest[0] | {"top_logprobs": likeliest}]}
    return json.dumps({"choices": [choice]})


def asked(request):
    """Return the question of a request."""
    return request["messages"][0]["content"][-1]["text"]


def seen(request):
    """Return the images of a request, float (H, W, 3) in [0, 1]."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    files = [BytesIO(base64.b64decode(url.partition(",")[2], validate=True)) for url in urls]
    return [np.asarray(Image.open(file), dtype=np.float64) / 255 for file in files]


class Chat:
    """Answers a request with ``answer(number, request)``: a status, a text and headers.

    ``requests`` are those that came, each with its "path" and "key"; ``dropped`` numbers get no
    answer, but the end of the connection. At the request ``dies_at`` it is gone.
    """

    def __init__(self, answer, dropped=(), dies_at=None, port=0):
        self.answer, self.dropped, self.requests = answer, dropped, []
        self.dies_at = dies_at
        self.lock, chat = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request |= {"path": self.path, "key": self.headers["Authorization"]}
                with chat.lock:
                    number = len(chat.requests)
                    chat.requests.append(request)
                if dies_at is not None and number >= dies_at:
                    chat.stop()
                if number in chat.dropped or (dies_at is not None and number >= dies_at):
                    self.close_connection = True
                    return
                status, text, headers = (*chat.answer(number, request), {})[:3]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def chatting(answer, **options):
    chat = Chat(answer, **options)
    try:
        yield chat
    finally:
        chat.stop()
