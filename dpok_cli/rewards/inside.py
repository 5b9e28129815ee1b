"""The worker of a reward in an environment of its own; a script, for any Python from 3.7.

    python -I inside.py FILE OPTIONS DEVICE

FILE defines ``load(options, device)``, which returns ``score(images, prompts)``: from B images, as
Pillow has them, in RGB, and B prompts to B numbers. The script needs the standard library and
Pillow. It loads, writes a line of JSON to stdout, {"ready": true}, then answers lines on stdin:

    {"prompts": ["a cat"], "images": ["iVBORw0..."]}  ->  {"scores": [0.25]}    (see ``wire``)

A failure is {"error": "why"}. The process ends when stdin is closed, also while it scores: so it
never outlives the one that started it, however that one ends.
"""

import base64
import io
import json
import os
import queue
import runpy
import signal
import sys
import threading


def main(file, options, device):
    requests, answers = take_streams()

    def say(answer):
        answers.write(json.dumps(answer).encode("utf-8") + b"\n")
        answers.flush()

    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=read, args=(requests, lines), daemon=True).start()
    try:
        score = runpy.run_path(file)["load"](json.loads(options), device)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything
        return say(failure(error))
    say({"ready": True})
    while True:
        message = json.loads(lines.get().decode("utf-8"))
        try:
            images = [picture(text) for text in message["images"]]
            scores = [float(each) for each in score(images, message["prompts"])]
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything
            say(failure(error))
        else:
            say({"scores": scores})


def failure(error):
    return {"error": f"{type(error).__name__}: {error}"}


def take_streams():
    """Return stdin and stdout; what other code reads is empty, and what it prints is on stderr."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers


def read(requests, lines):
    """Queue the lines of stdin; at its end, end the process and those that it started."""
    for line in requests:
        lines.put(line)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def picture(text):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


if __name__ == "__main__":
    main(*sys.argv[1:])
