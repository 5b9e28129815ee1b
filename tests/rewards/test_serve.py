import json
import socket
import threading
from http.client import HTTPConnection

import pytest
import torch

from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.serve import RewardServer
from dpok_cli.rewards.wire import pack

IMAGES = torch.tensor([0.2, 0.4]).view(2, 1, 1, 1).expand(2, 3, 4, 4)


class Mean(RewardModel):
    """The mean of all pixels; NaN for the prompt "odd"."""

    name = "mean"
    higher_is_better = False

    def score_batch(self, images, prompts):
        odd = torch.tensor([float("nan") if prompt == "odd" else 1.0 for prompt in prompts])
        return images.mean((1, 2, 3)) * odd


@pytest.fixture(scope="module")
def port():
    server = RewardServer("127.0.0.1", 0, WeightedReward([(Mean(), 2.0)]), 10_000)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def ask(port, body=b"", method="POST", path="/score", headers=None):
    """Return the status and the JSON of the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "application/json"
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def test_the_weighted_sum_is_answered(port):
    status, answer = ask(port, pack(IMAGES, ["a", "b"]))
    assert status == 200
    assert answer["scores"] == pytest.approx([-0.4, -0.8])
    assert ask(port, method="GET", path="/") == (200, {"rewards": ["mean"]})


def test_invalid_requests_are_answered_and_not_fatal(port):
    for status, options in [
        (400, {"body": b"no JSON"}),
        (400, {"body": pack(IMAGES, ["a"])}),
        (404, {"path": "/scores"}),
        (404, {"path": "/score", "method": "GET"}),
        (411, {"headers": {"Content-Length": "-1"}}),
        (411, {"headers": {"Transfer-Encoding": "chunked"}}),
        (413, {"body": b"x" * 10_001}),
        (413, {"headers": {"Content-Length": "9" * 5000}}),
        (500, {"body": pack(IMAGES, ["a", "odd"])}),
    ]:
        got, answer = ask(port, **options)
        assert (got, list(answer)) == (status, ["error"])
    assert answer["error"] == "mean: returned nan for 'odd'"
    with socket.create_connection(("127.0.0.1", port)) as broken:
        broken.sendall(b"POST /score HTTP/1.1\r\nContent-Length: 900\r\n\r\n{")
    with socket.create_connection(("127.0.0.1", port)) as broken:
        broken.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")
    assert ask(port, pack(IMAGES, ["a", "b"]))[0] == 200


def test_many_clients_each_get_their_own_answer(port):
    answers = {}

    def client(number):
        image = torch.full((1, 3, 2, 2), number / 255)
        answers[number] = ask(port, pack(image, ["a"]))[1]["scores"]

    clients = [threading.Thread(target=client, args=(n,)) for n in range(20)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert answers == {n: [pytest.approx(-2 * n / 255)] for n in range(20)}
