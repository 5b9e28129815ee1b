"""Lists of prompts as people have them: from a pipe, from two sources with other spelling, saved by
an editor on Windows, in another encoding."""

import json
import os
import threading

import pytest

SMALL = ("--num-inference-steps=2", "--guidance-scale=1", "--device=cpu", "--quiet")


@pytest.fixture
def sample(dpok, pipeline_folder, tmp_path):
    """Sample one image a prompt; returns the result and the prompts drawn."""

    def sample(*arguments):
        result = dpok(
            "sample", "--seeds=0", "--output=out", f"--model={pipeline_folder}", *SMALL, *arguments
        )
        if result.code:
            return result, None
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        return result, [each["prompt"] for each in manifest["images"]]

    return sample


@pytest.fixture
def pipe(tmp_path):
    """Make a pipe that can be read once, as the shell's <(...); returns its path."""
    threads = []

    def pipe(text):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        threads.append(threading.Thread(target=path.write_text, args=(text,), daemon=True))
        threads[-1].start()
        return path

    yield pipe
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("option", ["--prompts", "--unseen-prompts-file"])
def test_evaluate_reads_a_pipe_of_prompts_once(option, pipe, dpok, adapters, pipeline_folder):
    prompts = pipe('{"a cat": {"category": "animals"}, "a cup": {}}')
    result = dpok(
        *("evaluate", option, str(prompts), f"--adapter={adapters['shaken']}"),
        *(f"--model={pipeline_folder}", "--reward=jpeg-compressibility", "--samples=2"),
        *("--resamples=100", "--output=out", "--json", *SMALL),
        *(("--prompt=a dog",) if option != "--prompts" else ()),
    )
    assert result.code == 0, result.err
    found = [(each["text"], each["category"]) for each in json.loads(result.out)["prompts"]]
    assert found[-2:] == [("a cat", "animals"), ("a cup", "")]


def test_sample_takes_one_category_from_a_pipe(pipe, sample):
    prompts = pipe('{"a cat": {"category": "animals"}, "a cup": {}}')
    result, drawn = sample(f"--prompts={prompts}", "--category=animals")
    assert result.code == 0, result.err
    assert drawn == ["a cat"]


def test_prompts_that_are_evaluated_once_are_told(dpok, adapters, pipeline_folder):
    result = dpok(
        *("evaluate", "--prompt=a cat", "--prompt=A cat.", f"--adapter={adapters['shaken']}"),
        *(f"--model={pipeline_folder}", "--reward=jpeg-compressibility", "--samples=2"),
        *("--resamples=100", "--output=out", *SMALL[:-1]),
    )
    assert result.code == 0, result.err
    (line,) = (line for line in result.err.splitlines() if "evaluated once" in line)
    assert line.endswith(": 'A cat.' as 'a cat'.")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_prompts_saved_on_windows(encoding, sample, tmp_path):
    (tmp_path / "p.txt").write_bytes("a café\r\na cat\r\n".encode(encoding))
    result, drawn = sample("--prompts=p.txt")
    assert result.code == 0, result.err
    assert drawn == ["a café", "a cat"]


def test_a_line_separator_within_a_prompt(sample, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\u2028on a mat\n")
    assert sample("--prompts=p.txt")[1] == ["a cat\u2028on a mat"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "--prompt", "caf\udce9"),
        ("train-rl", "--prompt", "a cat", "--name", "caf\udce9"),
        ("train-rl", "--prompt", "a cat", "--runs-dir=caf\udce9"),
        ("train-sft", "--prompt", "a cat", "--dataset", "caf\udce9"),
        ("sample", "--output", "caf\udce9"),
        ("sample", "--prompts", "caf\udce9.txt"),
        ("evaluate", "--run", "caf\udce9"),
        ("evaluate", "--votes", "caf\udce9.json"),
        ("rewards", "show", "caf\udce9"),
    ],
    ids=" ".join,
)
def test_bytes_that_are_not_utf8_are_refused(arguments, dpok, tmp_path):
    """A terminal in Latin-1: Python hands such a byte on as half of a character."""
    result = dpok(*arguments)
    assert result.code == 2
    assert result.err.startswith("Error: ")
    assert r"caf\udce9" in result.err
    assert "is not UTF-8" in result.err
    assert len(result.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("sample", "--prompts=bad"), "bad"),
        (("train-rl", "--prompt=a cat", "--config=bad"), "bad"),
        (("evaluate", "--votes=bad"), "bad"),
    ],
)
def test_files_that_are_not_utf8_are_refused(arguments, name, dpok, tmp_path):
    (tmp_path / name).write_bytes(b"# first\ncaf\xe9\n")
    result = dpok(*arguments)
    assert result.code == 2
    assert f"{name}: line 2 is not UTF-8 text" in result.err
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_votes_saved_on_windows(dpok, tmp_path):
    """A rater opened the answers in an editor, which put a byte order mark before them."""
    sides = {"left": "base", "right": "run", "model": "run", "prompt": "a cat", "group": "seen"}
    key = {"study": "s", "sets": {"one": sides | {"seeds": [0, 1, 2, 3]}}}
    (tmp_path / "human-key.json").write_text(json.dumps(key), encoding="utf-8-sig")
    votes = {"study": "s", "rater": "Zoë", "answers": {"one": {"quality": "right"}}}
    (tmp_path / "votes.json").write_text(json.dumps(votes), encoding="utf-8-sig")
    result = dpok("evaluate", "--votes=votes.json", "--output=.", "--json")
    assert result.code == 0, result.err
    (row,) = (row for row in json.loads(result.out)["rows"] if row["question"] == "quality")
    assert row["win_rate"] == 1


def test_a_config_saved_on_windows(sample, tmp_path):
    text = 'prompts = ["a café"]\r\n'
    (tmp_path / "c.toml").write_text(text, encoding="utf-16", newline="")
    result, drawn = sample("--config=c.toml")
    assert result.code == 0, result.err
    assert drawn == ["a café"]
