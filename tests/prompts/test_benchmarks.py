"""Benchmarks by name: found, read as their authors do, and fetched only when asked."""

import http.server
import os
import threading

import pytest

from dpok_cli.errors import DpokError, InputError
from dpok_cli.prompts import benchmarks
from dpok_cli.prompts.benchmarks import BENCHMARKS, BenchmarkFile, own_folder
from support.benchmarks import DRAWBENCH, GENEVAL, write

READ = {
    "drawbench": {
        "A blue cup on a red dog.": ("Colors",),
        "Three wolves on the street.": ("Counting",),
        'A sign that says "Hello, World".': ("Text",),
    },
    "partiprompts": {
        "a wolf": ("Animals", "Basic"),
        "42": ("Abstract", "Basic"),
        'a cup with "tea" on it': ("Artifacts", "Writing & Symbols"),
        "A wolf": ("Animals", "Simple Detail"),
    },
    "geneval": {
        "a photo of a cup": ("single_object",),
        "a photo of two cups": ("counting",),
        "a photo of a red cup": ("colors",),
    },
    "t2i-compbench": {
        "a red cup and a blue dog": ("color",),
        "A blue dog.": ("color",),
        "A photo of a cat/dog.": ("color",),
        "a dog on the left of a cup": ("spatial",),
        "a cup near a wolf": ("spatial",),
    },
    "paper-drawbench": {"A red colored car.": ("Colors",), "A cup.": ("Text",)},
    "paper-coco": {"a cat on a sofa": (), "a train": ()},
}


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dpok" / "benchmarks"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prompts_and_categories_are_those_of_the_published_form(name, own, tmp_path):
    write(own / name, name)
    assert own_folder() == own
    found = BenchmarkFile.find(name)
    assert found.prompts() == tuple(READ[name])
    assert found.categories() == {prompt: each for prompt, each in READ[name].items() if each}
    title, published = found.benchmark.title, found.benchmark.prompts
    assert found.found().remarks == (f"{len(READ[name])} prompts; {title} has {published}.",)
    elsewhere = write(tmp_path / "elsewhere", name)
    assert BenchmarkFile.find(f"{name}={elsewhere}").prompts() == found.prompts()
    file = elsewhere / BENCHMARKS[name].files[0]
    alone = BenchmarkFile.find(f"{name}={file}").prompts()
    assert alone == found.prompts()[: len(alone)]
    assert len(alone) == (3 if name == "t2i-compbench" else len(READ[name]))


def test_a_category_is_taken_from_any_column(own):
    write(own / "partiprompts", "partiprompts")
    found = BenchmarkFile.find("partiprompts")
    assert found.prompts("Animals") == ("a wolf", "A wolf")
    assert found.prompts("Basic") == ("a wolf", "42")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("drawbench", "a,b\n1,2\n"),
        ("drawbench", "<!DOCTYPE html>\n<html>Sign in</html>\n"),
        ("drawbench", "Prompts,Kind\nA cup.,x\n"),
        ("drawbench", "Words,Category\nA cup.,x\n"),
        ("partiprompts", "Prompt\tCategory\na wolf\tAnimals\n"),
        ("geneval", '{"prompt": "a photo of a cup"}\n'),
        ("geneval", "a photo of a cup\n"),
        ("paper-drawbench", '["A cup."]'),
        ("t2i-compbench", "\n\t\n"),
        ("t2i-compbench", '["a cup", "a dog"]'),
        ("t2i-compbench", '{"prompt": "a cup"}\n'),
    ],
)
def test_what_is_no_such_benchmark_is_refused(name, text, own):
    file = own / name / BENCHMARKS[name].files[0]
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(InputError):
        BenchmarkFile.find(name)


@pytest.mark.parametrize("name", ["set.csv", "set.json"])
def test_geneval_is_json_lines_whatever_its_name(name, tmp_path):
    """Its layout has each line."""
    file = tmp_path / name
    file.write_text("tag,prompt\nx,a cup\n" if name == "set.csv" else f"[{GENEVAL[0]}]")
    with pytest.raises(InputError, match=f"{name}: (line 1 is not JSON|JSON lines has to be)"):
        BenchmarkFile.find(f"geneval={file}")
    file.write_text(GENEVAL[0])
    assert BenchmarkFile.find(f"geneval={file}").prompts() == ("a photo of a cup",)


def test_a_benchmark_may_be_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=(GENEVAL[0],), daemon=True).start()
    found = BenchmarkFile.find(f"geneval={pipe}")
    assert (found.prompts(), found.lines(0)) == (("a photo of a cup",), [GENEVAL[0]])


def test_what_is_not_there_is_said_with_its_source(own, tmp_path):
    with pytest.raises(InputError, match=r"no benchmark 'drawbenhc'. Did you mean 'drawbench'"):
        BenchmarkFile.find("drawbenhc")
    with pytest.raises(InputError) as caught:
        BenchmarkFile.find("geneval")
    assert str(caught.value) == (
        f"There is no evaluation_metadata.jsonl in {own / 'geneval'}: add --download to fetch it"
        " from https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/, or download it"
        " and give --benchmark geneval=PATH."
    )
    with pytest.raises(InputError, match=f"no paper-coco.txt in {own}/paper-coco, and no public"):
        BenchmarkFile.find("paper-coco", download=True)
    with pytest.raises(InputError, match=f"no PartiPrompts.tsv in {tmp_path}/none: download it"):
        BenchmarkFile.find(f"partiprompts={tmp_path / 'none'}", download=True)


@pytest.fixture
def published(monkeypatch):
    """A server; returns what it answers by path, and what was asked."""
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = answers.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    changed = {
        name: type(each)(
            **vars(each) | {"address": f"http://127.0.0.1:{server.server_port}/{{file}}"}
        )
        for name, each in BENCHMARKS.items()
        if each.address
    }
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {**BENCHMARKS, **changed})
    yield answers, asked
    server.shutdown()
    server.server_close()


def test_it_is_fetched_only_when_asked_and_once(published, own):
    answers, asked = published
    answers["/DrawBench.csv"] = DRAWBENCH
    with pytest.raises(InputError):
        BenchmarkFile.find("drawbench")
    assert asked == []
    for _ in range(2):
        assert BenchmarkFile.find("drawbench", download=True).prompts() == tuple(READ["drawbench"])
    assert asked == ["/DrawBench.csv"]
    assert [file.name for file in (own / "drawbench").iterdir()] == ["DrawBench.csv"]


@pytest.mark.parametrize("body", ["", "<html>Sign in</html>", GENEVAL[0][:-5]])
def test_what_cannot_be_fetched_is_not_kept(body, published, own):
    answers, _ = published
    answers["/evaluation_metadata.jsonl"] = body
    with pytest.raises(DpokError) as caught:
        BenchmarkFile.find("geneval", download=True)
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith("Cannot fetch http://127.0.0.1:")
    where = (
        f"Download it elsewhere, and put it into {own / 'geneval'} as evaluation_metadata.jsonl."
    )
    assert str(caught.value).endswith(where)
    assert not own.exists()
