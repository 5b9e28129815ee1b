"""Input that cannot be used: exit code 2, one line that says what to do, nothing written."""

from pathlib import Path

import pytest

LONG = "x" * 300
PROMPT = ("--prompt", "a green rabbit")
TRAIN = ("train-rl", *PROMPT)
SFT = ("train-sft", *PROMPT)
SAMPLE = ("sample", *PROMPT)
COMPARES = "vlm:url=http://127.0.0.1:9/v1,model=m,form=compare"
EVALUATE = ("evaluate", "--adapter", "lora", *PROMPT)

CASES = {
    "unknown command": (("trian-rl",), "Did you mean 'train-rl'?"),
    "unknown option": ((*TRAIN, "--round", "3"), "--rounds"),
    "option without its value": ((*TRAIN, "--rounds"), "'--rounds' requires an argument"),
    "extra argument": ((*TRAIN, "rabbit"), "extra argument"),
    "unknown preset": ((*TRAIN, "--preset", "sd51"), "Did you mean 'sd35' or 'sd15' or 'sdxl'?"),
    # prompts
    "no prompt": (("train-rl",), '--prompt "a green colored rabbit"'),
    "empty prompt": (("train-rl", "--prompt", ""), "--prompt ''"),
    "blank prompt": (("sample", "--prompt", "  "), "--prompt ' '"),
    "no prompt file": (("train-rl", "--prompts", "no.txt"), "no.txt: No such file"),
    "prompt file is a folder": (("train-rl", "--prompts", "folder"), "folder: Is a directory"),
    "prompt file is empty": (("train-rl", "--prompts", "empty.txt"), "no prompt in empty.txt"),
    "prompt file is no text": (("train-rl", "--prompts", "bytes.txt"), "not UTF-8"),
    "prompt file is no JSON": (("train-rl", "--prompts", "bad.json"), "bad.json: it is not JSON"),
    "prompt file of another form": (
        ("train-rl", "--prompts", "number.json"),
        "none of the known forms",
    ),
    "unknown category": (
        ("train-rl", "--prompts", "prompts.json", "--category", "colour"),
        "no category 'colour'. Did you mean 'color'",
    ),
    "category of a text file": (
        ("train-rl", "--prompts", "prompts.txt", "--category", "color"),
        "prompts.txt: it has no category 'color', nor any other",
    ),
    "category of nothing": ((*TRAIN, "--category", "color"), "--category needs --prompts FILE"),
    "prompt file is too deep": (("sample", "--prompts", "deep.json"), "deep.json: it is not JSON"),
    "prompt file's name is too long": (("sample", "--prompts", LONG), "File name too long"),
    "prompt file leads round in circles": (("sample", "--prompts", "loop"), "loop: Too many"),
    "prompt file is beneath a file": (
        ("evaluate", "--adapter", "lora", "--prompts", "prompts.txt/a.txt"),
        "prompts.txt/a.txt: Not a directory",
    ),
    "unicode category": (
        ("train-sft", "--prompts", "prompts.json", "--category", "couleur é 🐇"),
        "no category 'couleur é 🐇'",
    ),
    # rewards
    "unknown reward": ((*TRAIN, "--reward", "image-rewrd"), "Did you mean 'image-reward' or"),
    "reward without a name": ((*TRAIN, "--reward", "=2"), "the name is missing"),
    "weight is no number": ((*TRAIN, "--reward", "judge=big"), "'big' is not a number"),
    "weight is nan": ((*TRAIN, "--reward", "judge=nan"), "must be finite"),
    "unknown reward option": ((*TRAIN, "--reward", "judge:modle=tiny"), "Did you mean 'model'?"),
    "reward option twice": ((*SFT, "--reward", "judge:model=a,model=b"), "is given twice"),
    "reward option without a value": ((*SFT, "--reward", "judge:model"), "not of the form"),
    "weight of evaluate": ((*EVALUATE, "--reward", "judge=0"), "finite and not zero"),
    "unicode reward": ((*TRAIN, "--reward", "juge-🐇"), "Unknown reward 'juge-🐇'"),
    "vlm without a model": ((*TRAIN, "--reward", "vlm:url=http://h"), "needs the option 'model'"),
    "quote of a reward's option": ((*TRAIN, "--reward", 'vlm:model="a'), "which must end it"),
    "reward that compares, in train-sft": ((*SFT, "--reward", COMPARES), "cannot be used here"),
    "serve a reward that compares": (("serve-reward", COMPARES), "cannot be used here"),
    "no url": ((*TRAIN, "--reward", "http"), "needs the option 'url'"),
    "check an unknown reward": (("rewards", "check", "juge"), "Did you mean 'judge'?"),
    "check an unknown option": (("rewards", "check", "judge:modle=a"), "Did you mean 'model'?"),
    "check without a spec": (("rewards", "check"), "Missing argument 'SPEC'"),
    "show without a name": (("rewards", "show"), "Missing argument 'name'"),
    "show a spec": (("rewards", "show", "judge=2"), "Unknown reward 'judge=2'"),
    "json before show": (("rewards", "--json", "show", "judge"), "Put --json after show"),
    "serve an unknown reward": (("serve-reward", "juge"), "Did you mean 'judge'?"),
    "serve without a spec": (("serve-reward",), "Missing argument 'SPEC'"),
    "serve at no port": (("serve-reward", "judge", "--port", "65536"), "'--port'"),
    "serve no megabyte": (("serve-reward", "judge", "--max-megabytes", "0"), "'--max-megabytes'"),
    # the model and the folders
    "model is a file": ((*TRAIN, "--model", "./prompts.txt"), "prompts.txt is not safetensors"),
    "model is empty": ((*SAMPLE, "--model", ""), "--model ''"),
    "model's name is too long": ((*TRAIN, "--model", f"./{LONG}"), "File name too long"),
    "model leads round in circles": ((*SAMPLE, "--model", "./loop"), "no model folder ./loop"),
    "index is empty": ((*TRAIN, "--model", "index/empty"), "model_index.json cannot be read"),
    "index is a list": ((*SFT, "--model", "index/list"), "model_index.json cannot be read"),
    "index without a class": ((*SAMPLE, "--model", "index/object"), "model_index.json cannot be"),
    "index is too deep": ((*SAMPLE, "--model", "index/deep"), "model_index.json cannot be read"),
    "another pipeline": ((*SFT, "--model", "index/other"), "holds a SanaPipeline; only"),
    "run's name is too long": (
        (*TRAIN, "--name", LONG),
        "a plain folder name of 255 bytes at most",
    ),
    "name is absolute": ((*SFT, "--name", "/tmp/x"), "a plain folder name"),
    "name is dots": ((*SFT, "--name", ".."), "a plain folder name"),
    "name with a NUL": ((*TRAIN, "--config", "nul.toml"), r"--name 'a\x00b': must be without"),
    "config is too deep": ((*TRAIN, "--config", "deep.toml"), "deep.toml is not TOML"),
    "config with too many digits": ((*TRAIN, "--config", "digits.toml"), "digits.toml is not"),
    "config with a great number": ((*TRAIN, "--config", "great.toml"), "--alpha 1000"),
    "config is no text": (
        (*SAMPLE, "--config", "bytes.txt"),
        "bytes.txt: line 1 is not UTF-8 text",
    ),
    "config is a folder": ((*EVALUATE, "--config", "folder"), "folder: Is a directory"),
    "config of another command": ((*SAMPLE, "--config", "rounds.toml"), "no setting 'rounds'"),
    "folder is no pipeline": ((*TRAIN, "--model", "folder"), "folder"),
    "no such model folder": ((*TRAIN, "--model", "./nowhere/at/all"), "nowhere"),
    "run folder exists": (
        (*TRAIN, "--runs-dir", ".", "--name", "taken"),
        "taken already exists: give another --name",
    ),
    "name is a path": ((*TRAIN, "--name", "../taken"), "a plain folder name"),
    "config file missing": ((*TRAIN, "--config", "no.toml"), "no.toml: No such file"),
    "config with an unknown table": (
        (*TRAIN, "--config", "table.toml"),
        "table.toml: there is no table [train-lr]. Did you mean 'train-rl'",
    ),
    "config over an unknown preset": (
        (*SAMPLE, "--config", "preset.toml"),
        "preset.toml: there is no preset 'sd51' for sample. Did you mean 'sd35' or 'sd15'",
    ),
    "config file is no TOML": ((*TRAIN, "--config", "bad.toml"), "bad.toml is not TOML"),
    "unknown setting": (
        (*TRAIN, "--config", "typo.toml"),
        "no setting 'round'. Did you mean 'rounds'",
    ),
    "setting of a wrong type": ((*TRAIN, "--config", "type.toml"), "must be a whole number"),
    # values of train-rl; tests/config has each range
    "no rounds": ((*TRAIN, "--rounds", "0"), "--rounds 0: must be >= 1"),
    "rounds in words": ((*TRAIN, "--rounds", "many"), "Invalid value for '--rounds'"),
    "no noise": ((*TRAIN, "--eta", "0"), "without noise there is no policy"),
    "alpha nan": ((*TRAIN, "--alpha", "nan"), "--alpha nan"),
    "unknown kl": ((*TRAIN, "--kl", "epsilom"), "Did you mean 'epsilon'?"),
    "unknown clip form": ((*TRAIN, "--clip-form", "pop"), "Did you mean 'ppo'?"),
    "unknown advantage": ((*TRAIN, "--advantage", "promt"), "Did you mean 'prompt'?"),
    "unknown precision": ((*TRAIN, "--precision", "fp61"), "Did you mean 'fp16'"),
    "odd width": ((*TRAIN, "--width", "60"), "--width 60: must be a multiple of 8"),
    # train-sft
    "no steps": ((*SFT, "--steps", "0"), "--steps 0: must be >= 1"),
    "unknown kl form": ((*SFT, "--kl-form", "kld"), "Did you mean 'kl-d'"),
    "rounds of train-sft": ((*SFT, "--rounds", "3"), "--rounds"),
    "preset of train-sft": ((*SFT, "--preset", "sd15-stf"), "Did you mean 'sd15-sft'"),
    "dataset without metadata": ((*SFT, "--dataset", "folder"), "it has no metadata.jsonl"),
    "dataset is a file": ((*SFT, "--dataset", "prompts.txt"), "prompts.txt is no image set"),
    "no adapter to start from": (
        (*SFT, "--init-adapter", "no"),
        "no adapter no. Give --init-adapter a run's adapter folder",
    ),
    "dataset without a line": ((*SFT, "--dataset", "data/empty"), "metadata.jsonl names no image"),
    "dataset is no JSON": ((*SFT, "--dataset", "data/bad"), "line 1: not a JSON object"),
    "dataset is no text": (
        (*SFT, "--dataset", "data/bytes"),
        "metadata.jsonl: line 1 is not UTF-8",
    ),
    "dataset without names": ((*SFT, "--dataset", "data/nameless"), "line 1: it has no file_name"),
    "dataset without prompts": ((*SFT, "--dataset", "data/silent"), "line 1: it has no prompt"),
    "dataset of a lost image": ((*SFT, "--dataset", "data/lost"), "there is no file"),
    "dataset climbs out": ((*SFT, "--dataset", "data/climbs"), "leads out of the folder"),
    "dataset from the root": ((*SFT, "--dataset", "data/root"), "leads out of the folder"),
    "dataset of texts": ((*SFT, "--dataset", "data/text"), "cat.png cannot be read as an image"),
    "dataset's settings are no JSON": ((*SFT, "--dataset", "data/drawn"), "settings.json cannot"),
    "dataset's settings are a list": ((*SFT, "--dataset", "data/listed"), "settings.json cannot"),
    "nothing to start from": (
        (*TRAIN, "--init-adapter", "folder"),
        "folder/pytorch_lora_weights.safetensors. Give --init-adapter",
    ),
    # sample
    "seeds run backwards": ((*SAMPLE, "--seeds", "9-3"), "write 3-9"),
    "seeds in words": ((*SAMPLE, "--seeds", "all"), "as in 0-15 or 0,3,7"),
    "no seeds": ((*SAMPLE, "--seeds", ""), "as in 0-15 or 0,3,7"),
    "seed twice": ((*SAMPLE, "--seeds", "0-3,2"), "names a seed twice"),
    "too many seeds": ((*SAMPLE, "--seeds", "0-99999999999"), "at most 100000 seeds"),
    "steps of sample": ((*SAMPLE, "--num-inference-steps", "0"), "--num-inference-steps 0"),
    "preset of sample": ((*SAMPLE, "--preset", "sd51"), "Did you mean 'sd35' or 'sd15' or 'sdxl'?"),
    "model of sample": ((*SAMPLE, "--model", "folder"), "folder"),
    "seeds with too many digits": ((*SAMPLE, "--seeds", "9" * 5000), "as in 0-15 or 0,3,7"),
    "adapter is empty": ((*SAMPLE, "--adapter", "broken/empty.safetensors"), "cannot be read"),
    "adapter is a pickle": ((*SAMPLE, "--adapter", "broken/pickle.pt"), "is not safetensors"),
    "adapter is a pickle by another name": (
        (*SFT, "--init-adapter", "broken/pickle.safetensors"),
        "pickle.safetensors cannot be read",
    ),
    "adapter was cut off": ((*EVALUATE, "--adapter", "broken/cut.safetensors"), "cannot be read"),
    "adapter is another thing": (
        (*TRAIN, "--init-adapter", "broken/other.safetensors"),
        "holds no LoRA weights. Give --init-adapter a run's adapter folder",
    ),
    "output's name is too long": ((*SAMPLE, "--output", LONG), "File name too long"),
    "no such run": ((*SAMPLE, "--run", "nope"), "nope"),
    "no run yet": ((*SAMPLE, "--run", "latest"), "runs"),
    "no such adapter": ((*SAMPLE, "--adapter", "no"), "There is no adapter no"),
    "run and adapter": ((*SAMPLE, "--run", "a", "--adapter", "b"), "give one of them"),
    "run and preset": ((*SAMPLE, "--run", "a", "--preset", "tiny"), "leave out --preset"),
    "before what": ((*SAMPLE, "--before"), "give --run or --adapter"),
    "output exists": ((*SAMPLE, "--output", "taken"), "taken already exists"),
    "output is a file": ((*SAMPLE, "--output", "prompts.txt"), "prompts.txt already exists"),
    # evaluate
    "no run to evaluate": (("evaluate",), "no run with an adapter in runs. Train one"),
    "no such run to evaluate": (("evaluate", "--run", "nope"), "There is no run nope"),
    "no such adapter to evaluate": (("evaluate", "--adapter", "no"), "There is no adapter no"),
    "run as an argument": (("evaluate", "nope"), "nope is an extra argument: name runs with --run"),
    "unknown option of evaluate": (("evaluate", "--unseen"), "--unseen-prompts"),
    "adapter of unknown training": (
        ("evaluate", "--adapter", "lora"),
        "was trained on are unknown: give --prompt",
    ),
    "few samples for raters": (
        (*EVALUATE, "--human", "--samples", "3"),
        "--human shows sets of 4 images: give --samples 4 or more",
    ),
    "no samples": ((*EVALUATE, "--samples", "0"), "--samples 0: must be in [1, 100000]"),
    "few resamples": ((*EVALUATE, "--resamples", "3"), "--resamples 3: must be in [100, 1000000]"),
    "reward of evaluate": ((*EVALUATE, "--reward", "juge"), "Did you mean 'judge'?"),
    "no variants": (
        ("evaluate", "--adapter", "lora", "--prompt", "justice for all", "--unseen-prompts"),
        "no variants of 'justice for all': write some to a file",
    ),
    "no unseen prompts file": ((*EVALUATE, "--unseen-prompts-file", "no.txt"), "no.txt: No such"),
    "evaluation folder is something else": ((*EVALUATE, "--output", "taken"), "is no evaluation"),
    "no votes file": (("evaluate", "--votes", "no.json"), "Cannot read no.json: No such file"),
    "votes of another form": (("evaluate", "--votes", "list.json"), "list.json holds no answers"),
    "votes are empty": (("evaluate", "--votes", "empty.txt"), "empty.txt is not JSON"),
    "votes are too deep": (("evaluate", "--votes", "deep.json"), "deep.json is not JSON"),
    "votes of an unknown page": (("evaluate", "--votes", "votes.json"), "Give --output"),
    "model name is a path": (
        ("evaluate", "--adapter", "../a=lora", *PROMPT),
        "'../a' is taken or not a plain name",
    ),
    "model name is the base's": (
        ("evaluate", "--adapter", "base=lora", *PROMPT),
        "'base' is taken",
    ),
    "run's config is no TOML": (("evaluate", "--run", "cut"), "config.toml cannot be read"),
    "run's config is no text": (("sample", "--run", "bytes"), "config.toml: line 1 is not UTF-8"),
    # --resume
    "no run to resume": (("train-rl", "--resume", "nope"), "There is no run nope"),
    "no newest run": (("train-sft", "--resume", "latest"), "There is no run in runs yet"),
    "no newest run elsewhere": (
        ("train-rl", "--resume", "latest", "--runs-dir", "folder"),
        "There is no run in folder yet",
    ),
    "a run up the tree": (("train-rl", "--resume", "../../nope"), "There is no run ../../nope"),
    "a run with a long name": (("train-rl", "--resume", LONG), "File name too long"),
    "resume with other settings": (
        ("train-rl", "--resume", "taken", "--preset", "sd15"),
        "leave out other sources",
    ),
    "resume a run of an older dpok": (
        ("train-rl", "--resume", "old"),
        "it can be sampled and evaluated, but not resumed",
    ),
    "resume an empty config": (("train-rl", "--resume", "taken"), "names no prompts"),
    "resume half a config": (("train-rl", "--resume", "cut"), "config.toml is not TOML"),
    "resume another training": (
        ("train-sft", "--resume", "rl"),
        "rl is a run of train-rl: dpok train-rl --resume rl",
    ),
    "resume the other training": (("train-rl", "--resume", "sft"), "dpok train-sft --resume"),
    "resume with another rank": (
        ("train-rl", "--resume", "rl", "--lora-rank", "4"),
        "--lora-rank 4: it is 8 in rl/config.toml, and cannot change",
    ),
    "resume a typo": (("train-rl", "--resume", "typo"), "no setting 'round'"),
    "resume a wrong type": (("train-rl", "--resume", "type"), "must be a whole number"),
    # rewards
    "show an unknown reward": (("rewards", "show", "juge"), "Did you mean 'judge'?"),
}

#: The least safetensors file that a LoRA may be.
HEADER = b'{"unet.a.lora_A.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
LORA = len(HEADER).to_bytes(8, "little") + HEADER + b"\0"
#: Would make a folder, if anyone ran it.
PICKLE = b"cos\nmkdir\n(S'ran'\ntR."
ENTRY = '{{"file_name": "{}", "text": "a cat"}}\n'
DEEP = b"[" * 100_000

FILES = {
    "empty.txt": b"\n  \n",
    "bytes.txt": b"\xff",
    "prompts.txt": b"a cat\n",
    "bad.json": b"{",
    "deep.json": DEEP,
    "list.json": b'["a cat"]',
    "number.json": b'{"a cat": 3}',
    "votes.json": b'{"study": "1", "rater": "2", "answers": {}}',
    "prompts.json": b'{"a red cat": {"category": "color"}, "two cats": {"category": "count"}}',
    "bad.toml": b"rounds =",
    "typo.toml": b"round = 3",
    "type.toml": b'rounds = "three"',
    "nul.toml": b'name = "a\\u0000b"',
    "deep.toml": b"alpha = " + DEEP,
    "digits.toml": b"rounds = " + b"9" * 5000,
    "great.toml": b"alpha = 1" + b"0" * 400,
    "rounds.toml": b"rounds = 3",
    "table.toml": b"[train-lr]\nrounds = 3",
    "preset.toml": b'preset = "sd51"',
    "folder/readme.txt": b"no pipeline",
    "taken/run.json": b'{"command": "train-rl"}',
    "cut/run.json": b'{"command": "train-rl"}',
    "rl/run.json": b'{"command": "train-rl"}',
    "sft/run.json": b'{"command": "train-sft"}',
    "typo/run.json": b'{"command": "train-rl"}',
    "type/run.json": b'{"command": "train-rl"}',
    "taken/config.toml": b"",
    "old/config.toml": b'prompts = ["a cat"]\nrounds = 3\n',
    "cut/config.toml": b'prompts = ["a',
    "bytes/config.toml": b"\xff",
    "rl/config.toml": b'prompts = ["a cat"]\nrounds = 3\nlora_rank = 8\n',
    "sft/config.toml": b'prompts = ["a cat"]\nsteps = 3\n',
    "typo/config.toml": b'prompts = ["a cat"]\nround = 3\n',
    "type/config.toml": b'prompts = ["a cat"]\nrounds = "three"\n',
    "index/empty/model_index.json": b"",
    "index/list/model_index.json": b"[]",
    "index/object/model_index.json": b"{}",
    "index/deep/model_index.json": DEEP,
    "index/other/model_index.json": b'{"_class_name": "SanaPipeline"}',
    "lora/pytorch_lora_weights.safetensors": LORA,
    "broken/empty.safetensors": b"",
    "broken/cut.safetensors": LORA[:-1],
    "broken/other.safetensors": LORA.replace(b".lora_A.", b".conv_1."),
    "broken/pickle.safetensors": PICKLE,
    "broken/pickle.pt": PICKLE,
    "data/empty/metadata.jsonl": b"\n",
    "data/bad/metadata.jsonl": b"{\n",
    "data/bytes/metadata.jsonl": b"\xff",
    "data/nameless/metadata.jsonl": b'{"text": "a cat"}',
    "data/silent/metadata.jsonl": b'{"file_name": "cat.png", "text": 3}',
    "data/lost/metadata.jsonl": ENTRY.format("cat.png").encode(),
    "data/climbs/metadata.jsonl": ENTRY.format("../../prompts.txt").encode(),
    "data/root/metadata.jsonl": ENTRY.format("/etc/passwd").encode(),
    "data/text/metadata.jsonl": ENTRY.format("cat.png").encode(),
    "data/text/cat.png": b"no image",
    "data/drawn/settings.json": b"{",
    "data/listed/settings.json": b"[]",
}


@pytest.mark.parametrize("case", CASES)
def test_is_one_line_and_nothing_is_written(case, dpok, tmp_path):
    arguments, message = CASES[case]
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))

    result = dpok(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert _tree(tmp_path) == FILES
    assert sorted(tmp_path.rglob("*")) == before


def test_there_are_cases_of_every_command():
    commands = [arguments[0] for arguments, _ in CASES.values()]
    for command in ("train-rl", "train-sft", "sample", "evaluate", "rewards", "serve-reward"):
        assert commands.count(command) >= 4, command


def _tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if not path.is_dir() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("command", [TRAIN, SAMPLE])
def test_hub_id_that_cannot_be_had(command, dpok, tmp_path):
    result = dpok(*command, "--model", "nobody/no-such-model")
    assert result.code == 2
    assert "nobody/no-such-model" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []
