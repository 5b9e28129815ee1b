import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.manager import build
from dpok_cli.rewards.serve import RewardServer
from dpok_cli.rewards.wire import unpack
from dpok_plugins.http import Http


class Local(RewardModel):
    """Depends on image and prompt."""

    name = "local"

    def score_batch(self, images, prompts):
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts])
        return images.square().mean((1, 2, 3)) * 3 - lengths / 7


def serve(reward: RewardModel) -> RewardServer:
    server = RewardServer("127.0.0.1", 0, WeightedReward([(reward, 1.0)]), 10**7)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def stop(server) -> None:
    server.shutdown()
    server.server_close()


def remote(port: int, **options) -> Http:
    return Http(Http.Options(f"http://127.0.0.1:{port}", **options))


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 6, 5), generator=generator) / 255


def test_two_hundred_scores_are_those_in_process():
    images, prompts = pictures(200), ["x" * (n % 13) for n in range(200)]
    server = serve(Local())
    scores = remote(server.server_port).score(images, prompts)
    stop(server)
    expected = Local().score(images, prompts)
    assert (scores - expected).abs().max() <= 1e-6
    assert expected.unique().numel() > 190


@contextmanager
def answering(answer):
    """A server that gives ``answer(number of the request, body)``: status and body."""
    numbers = iter(range(1000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, text = answer(next(numbers), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    stop(server)


def test_requests_run_in_parallel_and_keep_their_order():
    together = threading.Barrier(3, timeout=10)  # passes only if three requests run at once

    def answer(number, body):
        prompts = unpack(body)[1]
        together.wait()
        time.sleep(0.05 if "0" in prompts else 0)  # the first is answered last
        return 200, json.dumps({"scores": [float(prompt) for prompt in prompts]})

    with answering(answer) as port:
        reward = remote(port, batch=2, in_flight=3)
        scores = reward.score(pictures(12), [str(n) for n in range(12)])
    assert scores.tolist() == list(range(12))


def test_transient_statuses_are_retried():
    def answer(number, body):
        return (200, '{"scores": [1.5]}') if number == 2 else (503, "")

    with answering(answer) as port:
        assert remote(port).score(pictures(1), ["a"]).tolist() == [1.5]


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (500, '{"error": "judge: broke"}', "answered 500: judge: broke"),
        (400, "nonsense", "answered 400: no reason given"),
        (404, "[]", "answered 404: no reason given"),
        (200, "nonsense", "did not return a list of 1 scores"),
        (200, '{"scores": [1.0, 2.0]}', "did not return a list of 1 scores"),
        (200, '{"scores": ["1.0"]}', "returned scores that are not numbers"),
        (200, '{"scores": [NaN]}', "returned nan for 'a'"),
    ],
)
def test_other_answers_are_errors_without_retry(status, text, message):
    asked = []

    def answer(number, body):
        asked.append(number)
        return status, text

    with answering(answer) as port, pytest.raises(RewardError, match=rf"^http: .*{message}$"):
        remote(port).score(pictures(1), ["a"])
    assert asked == [0]


def test_one_failure_stops_the_other_requests():
    def answer(number, body):
        return (400, "{}") if "7" in unpack(body)[1] else (503, "")

    prompts = [str(n) for n in range(8)]
    with answering(answer) as port, pytest.raises(RewardError, match=r"^http: .* answered 400"):
        remote(port, batch=1, in_flight=8, retry=10**6).score(pictures(8), prompts)


def test_a_hanging_server_is_an_error_after_the_retries():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts requests, never answers
        port = silent.getsockname()[1]
        with pytest.raises(RewardError) as caught:
            remote(port, timeout=0.05, retry=0.2).score(pictures(1), ["a"])
    assert str(caught.value) == (
        f"http: http://127.0.0.1:{port} did not answer for 0.2 s (TimeoutError: timed out);"
        " start its server again, or allow more time with retry=SECONDS"
    )


def test_an_unreachable_server_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RewardError, match=r"did not answer for 0 s \(ConnectionRefusedError"):
        remote(port, retry=0).score(pictures(1), ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs the option 'url'"),
        (":url=localhost:80", "url='localhost:80' must be of the form http://host:port"),
        (":url=http://", "must be of the form http://host:port"),
        (":url=http://a:1,batch=0", "must be > 0"),
        (":url=http://a:1,timeout=0", "must be > 0"),
        (":url=http://a:1,retry=-1", "retry >= 0"),
        (":url=http://a:99999", "must be of the form http://host:port"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        build([f"http{options}"])
