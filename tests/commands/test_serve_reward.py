import os
import signal
import socket
import threading
from http.client import HTTPException

import pytest
import torch

from dpok_cli.rewards.serve import RewardServer
from dpok_plugins.http import Http
from dpok_plugins.jpeg import JpegIncompressibility


def test_a_served_reward_scores_as_the_one_installed(dpok, monkeypatch):
    images, prompts = torch.rand(3, 3, 16, 16), ["a"] * 3
    serve, scores = RewardServer.serve_forever, {}

    def ask_once(server):
        thread = threading.Thread(target=serve, args=(server, 0.01))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        scores[url] = Http(Http.Options(url)).score(images, prompts)
        server.shutdown()
        thread.join()
        raise KeyboardInterrupt  # which is how a server ends

    monkeypatch.setattr(RewardServer, "serve_forever", ask_once)
    result = dpok("serve-reward", "jpeg-compressibility=0.5", "--port", "0", "--device", "cpu")
    ((url, served),) = scores.items()
    assert result.code == 130
    line = f"Serving jpeg-compressibility=0.5; use it with: --reward http:url={url}"
    assert result.out.splitlines() == [line]
    expected = -0.5 * JpegIncompressibility().score(images, prompts)
    assert (served - expected).abs().max() <= 1e-6


def test_a_port_that_is_taken_is_refused(dpok):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--port", str(port), "--device", "cpu")
        result = dpok("serve-reward", "jpeg-compressibility", *flags)
    assert (result.code, result.out) == (2, "")
    assert f"Error: Cannot listen on 127.0.0.1:{port}: Address already in use." in result.err


@pytest.fixture
def port():
    """A port that no other program gets: bound all the while, but not listened on."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def start(port, python):
    """Start `dpok serve-reward` on the port as a process of its own, and wait till it listens."""

    def start():
        flags = ("--port", port, "--device", "cpu")
        server = python("-m", "dpok_cli", "serve-reward", "jpeg-incompressibility", *flags)
        line = server.wait_for_line("Serving jpeg-incompressibility")
        assert line.endswith(f"--reward http:url=http://127.0.0.1:{port}\n")
        return server

    return start


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_server_killed_in_the_middle_and_started_again_costs_nothing(start, port):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (200, 3, 16, 16), generator=generator) / 255
    server = start()
    answered, failed, middle = [], [], threading.Event()

    class Watched(Http):
        """Kills the server at the tenth answer, and keeps count."""

        def _post(self, body):
            try:
                answer = super()._post(body)
            except (OSError, HTTPException) as error:
                failed.append(error)
                raise
            answered.append(answer)
            if len(answered) == 10:
                server.kill()
                middle.set()
            return answer

    reward = Watched(Http.Options(f"http://127.0.0.1:{port}", batch=1, in_flight=3, retry=300))
    scores = []
    client = threading.Thread(target=lambda: scores.append(reward.score(images, ["a"] * 200)))
    client.start()
    assert middle.wait(60)
    assert server.code == -signal.SIGKILL
    start()
    client.join(300)
    assert failed
    assert len(answered) == 200
    expected = JpegIncompressibility().score(images, ["a"] * 200)
    assert expected.unique().numel() > 20
    assert (scores[0] - expected).abs().max() <= 1e-6
