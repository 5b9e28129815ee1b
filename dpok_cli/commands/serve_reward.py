"""`dpok serve-reward`: serve an installed reward to other processes."""

from typing import Annotated

import typer

from dpok_cli.display import console
from dpok_cli.errors import InputError


def serve_reward(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC", help="The reward, as --reward takes it.", show_default=False
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    host: Annotated[
        str,
        typer.Option(help="The address to listen on; by default only this machine can connect."),
    ] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="Where to score: auto, cpu, cuda, ...")] = "auto",
    max_megabytes: Annotated[
        int, typer.Option(min=1, help="Largest request accepted, in MB.")
    ] = 64,
    max_megapixels: Annotated[
        int, typer.Option(min=1, help="Most pixels accepted in a request, in millions.")
    ] = 20,
) -> None:
    """Serve a reward over HTTP, for --reward http:url=... in another environment or machine.

    There is no authentication: anyone who reaches the port can send requests. Ctrl-C stops it.

    Example: dpok serve-reward image-reward --port 8000
    """
    from dpok_cli.rewards.comparing import PER_REQUEST, refuse_comparing
    from dpok_cli.rewards.manager import build

    refuse_comparing(build([spec]), PER_REQUEST)
    from dpok_cli.engine.distributed import device_of
    from dpok_cli.rewards.serve import RewardServer

    reward = build([spec], device_of(device))
    reward.prepare()
    try:
        server = RewardServer(host, port, reward, max_megabytes * 10**6, max_megapixels * 10**6)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Give another --host or --port."
        ) from error
    with server:
        address = f"http://{host}:{server.server_port}"
        console.say(f"Serving {spec}; use it with: --reward http:url={address}", console.out)
        server.serve_forever()
