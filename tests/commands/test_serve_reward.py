import socket
import threading

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
    told = f"Serving jpeg-compressibility=0.5; use it with: --reward http:url={url}"
    assert result.out.splitlines() == [told]
    expected = -0.5 * JpegIncompressibility().score(images, prompts)
    assert (served - expected).abs().max() <= 1e-6


def test_a_port_that_is_taken_is_told(dpok):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--port", str(port), "--device", "cpu")
        result = dpok("serve-reward", "jpeg-compressibility", *flags)
    assert (result.code, result.out) == (2, "")
    assert f"Error: Cannot listen on 127.0.0.1:{port}: Address already in use." in result.err


def test_an_unknown_reward_is_bad_input(dpok):
    result = dpok("serve-reward", "jpeg-compress")
    assert result.code == 2
    assert "Unknown reward 'jpeg-compress'. Did you mean 'jpeg-compressibility'" in result.err
