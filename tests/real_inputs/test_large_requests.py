"""Requests that are larger than a reward's server accepts.

From large images in batches of eight, a proxy's limit of a megabyte, and a PNG of one colour that
is small until it is decoded.
"""

import base64
import json
import socket
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from io import BytesIO

import pytest
import torch
from PIL import Image

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.serve import RewardServer
from dpok_plugins.http import Http


class Counted(RewardModel):
    """The mean of all pixels; keeps how many images came at once."""

    name = "counted"

    def load(self):
        self.batches = []

    def score_batch(self, images, prompts):
        self.batches.append(len(prompts))
        return images.mean((1, 2, 3))


@contextmanager
def serving(max_bytes=10**7, max_pixels=10**6):
    reward = Counted()
    server = RewardServer("127.0.0.1", 0, WeightedReward([(reward, 1.0)]), max_bytes, max_pixels)
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield reward, server.server_port
        server.shutdown()


def ask(port, **options):
    # Without retries: what is refused must not be taken for a server that is away.
    return Http(Http.Options(f"http://127.0.0.1:{port}", retry=0, in_flight=1, **options))


def noise(count, size=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255


@pytest.mark.parametrize(
    "limits",
    [{"max_bytes": 40_000}, {"max_pixels": 2 * 64 * 64}],  # two images of 17 kB in base64
    ids=["bytes", "pixels"],
)
def test_a_batch_that_is_too_large_is_sent_in_parts(limits):
    images = noise(8)
    with serving(**limits) as (reward, port):
        remote = ask(port)
        scores = remote.score(images, ["a"] * 8)
        assert torch.allclose(scores, images.mean((1, 2, 3)), atol=1e-6)
        assert reward.batches == [2, 2, 2, 2]
        remote.score(images, ["a"] * 8)  # at once in batches of two
        assert reward.batches == [2] * 8


def test_megabytes_that_are_refused_are_no_broken_connection():
    images = noise(4, 512)  # a megabyte each, more than the buffers of a connection hold
    with serving(max_bytes=1_500_000) as (reward, port):
        ask(port).score(images, ["a"] * 4)
        assert reward.batches == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (
            {"max_bytes": 10_000},
            "the request has 0.02 MB, and the server accepts 0.01 MB (--max-megabytes)",
        ),
        (
            {"max_pixels": 4000},
            "the images have 0.0041 million pixels in total, and the server accepts 0.004 million"
            " (--max-megapixels)",
        ),
    ],
    ids=["bytes", "pixels"],
)
def test_an_image_that_is_too_large_alone_is_an_error_with_the_limit(limits, reason):
    with serving(**limits) as (_, port), pytest.raises(RewardError) as caught:
        ask(port).score(noise(2), ["a", "b"])
    assert str(caught.value) == (
        f"http: http://127.0.0.1:{port} answered 413: {reason}; the request is a single image, so"
        " raise the server's limit"
    )


def test_a_server_that_answers_before_it_has_read_all_is_understood():
    refusals = []

    def refuse(listening):
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            body = b'{"error": "1 MB at most"}'
            head = f"HTTP/1.1 413 Too Large\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)
            refusals.append(1)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(2**16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, args=(listening,), daemon=True).start()
        port = listening.getsockname()[1]
        with pytest.raises(RewardError, match="answered 413: 1 MB at most; the request is a"):
            ask(port).score(noise(1, 1024), ["a"])
    assert refusals == [1]


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    file = BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000  # 243 MB in RGB, a gigabyte in float32
    monkeypatch.setattr(Image.Image, "convert", None)  # decoding would fail
    picture = base64.b64encode(file.getvalue()).decode()
    with serving() as (_, port):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/score", json.dumps({"prompts": ["a"], "images": [picture]}))
        response = connection.getresponse()
        answer = json.loads(response.read())
    assert (response.status, answer["error"]) == (
        413,
        "the images have 81 million pixels in total, and the server accepts 1 million"
        " (--max-megapixels)",
    )
