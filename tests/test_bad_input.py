"""Input that cannot be used: exit code 2, one line that says what to do, nothing written."""

from pathlib import Path

import pytest

PROMPT = ("--prompt", "a green rabbit")
TRAIN = ("train-rl", *PROMPT)
SFT = ("train-sft", *PROMPT)
SAMPLE = ("sample", *PROMPT)
EVALUATE = ("evaluate", "--adapter", "lora", *PROMPT)

CASES = {
    "unknown command": (("trian-rl",), "Did you mean 'train-rl'?"),
    "unknown option": ((*TRAIN, "--round", "3"), "--rounds"),
    "option without its value": ((*TRAIN, "--rounds"), "'--rounds' requires an argument"),
    "extra argument": ((*TRAIN, "rabbit"), "extra argument"),
    "unknown preset": ((*TRAIN, "--preset", "sd51"), "Did you mean 'sd15'?"),
    # prompts
    "no prompt": (("train-rl",), '--prompt "a green colored rabbit"'),
    "empty prompt": (("train-rl", "--prompt", ""), "prompts = ''"),
    "blank prompt": (("sample", "--prompt", "  "), "prompts = ' '"),
    "no prompt file": (("train-rl", "--prompts", "no.txt"), "no.txt: No such file"),
    "prompt file is a folder": (("train-rl", "--prompts", "folder"), "folder: Is a directory"),
    "prompt file is empty": (("train-rl", "--prompts", "empty.txt"), "no prompt in empty.txt"),
    "prompt file is no text": (("train-rl", "--prompts", "bytes.txt"), "not UTF-8"),
    "prompt file is no JSON": (("train-rl", "--prompts", "bad.json"), "bad.json is not JSON"),
    "prompt file of another form": (("train-rl", "--prompts", "list.json"), "not of the form"),
    "unknown category": (
        ("train-rl", "--prompts", "prompts.json", "--category", "colour"),
        "no category 'colour'. Did you mean 'color'",
    ),
    "category of a text file": (
        ("train-rl", "--prompts", "prompts.txt", "--category", "color"),
        "needs a .json prompt file",
    ),
    "category of nothing": ((*TRAIN, "--category", "color"), "needs --prompts FILE.json"),
    # rewards
    "unknown reward": ((*TRAIN, "--reward", "image-rewrd"), "Did you mean 'image-reward'?"),
    "reward without a name": ((*TRAIN, "--reward", "=2"), "the name is missing"),
    "weight is no number": ((*TRAIN, "--reward", "judge=big"), "'big' is no number"),
    "weight is nan": ((*TRAIN, "--reward", "judge=nan"), "must be finite"),
    "unknown reward option": ((*TRAIN, "--reward", "judge:modle=tiny"), "Did you mean 'model'?"),
    # the model and the folders
    "folder is no pipeline": ((*TRAIN, "--model", "folder"), "folder"),
    "no such model folder": ((*TRAIN, "--model", "./nowhere/at/all"), "nowhere"),
    "run folder exists": (
        (*TRAIN, "--runs-dir", ".", "--name", "taken"),
        "taken is there already. Give --name another name",
    ),
    "name is a path": ((*TRAIN, "--name", "../taken"), "a plain folder name"),
    "config file missing": ((*TRAIN, "--config", "no.toml"), "no.toml: No such file"),
    "config file is no TOML": ((*TRAIN, "--config", "bad.toml"), "bad.toml is not TOML"),
    "unknown setting": (
        (*TRAIN, "--config", "typo.toml"),
        "no setting 'round'. Did you mean 'rounds'",
    ),
    "setting of a wrong type": ((*TRAIN, "--config", "type.toml"), "must be a whole number"),
    # values of train-rl
    "no rounds": ((*TRAIN, "--rounds", "0"), "rounds = 0: must be >= 1"),
    "negative rounds": ((*TRAIN, "--rounds", "-2"), "rounds = -2: must be >= 1"),
    "rounds in words": ((*TRAIN, "--rounds", "many"), "Invalid value for '--rounds'"),
    "negative samples": ((*TRAIN, "--samples-per-round", "-1"), "samples_per_round = -1"),
    "zero steps": ((*TRAIN, "--num-inference-steps", "0"), "num_inference_steps = 0"),
    "no noise": ((*TRAIN, "--eta", "0"), "without noise there is no policy"),
    "too much noise": ((*TRAIN, "--eta", "1.5"), "eta = 1.5: must be in [0, 1]"),
    "rank 0": ((*TRAIN, "--lora-rank", "0"), "lora_rank = 0"),
    "alpha nan": ((*TRAIN, "--alpha", "nan"), "alpha = nan"),
    "alpha inf": ((*TRAIN, "--alpha", "inf"), "alpha = inf"),
    "beta inf": ((*TRAIN, "--beta", "inf"), "beta = inf"),
    "beta negative": ((*TRAIN, "--beta", "-0.1"), "beta = -0.1"),
    "unknown kl": ((*TRAIN, "--kl", "epsilom"), "Did you mean 'epsilon'?"),
    "unknown clip form": ((*TRAIN, "--clip-form", "pop"), "Did you mean 'ppo'?"),
    "unknown advantage": ((*TRAIN, "--advantage", "promt"), "Did you mean 'prompt'?"),
    "unknown precision": ((*TRAIN, "--precision", "fp61"), "Did you mean 'fp16'"),
    "no learning rate": ((*TRAIN, "--learning-rate", "0"), "learning_rate = 0.0"),
    "no timesteps": ((*TRAIN, "--timestep-fraction", "0"), "timestep_fraction = 0.0"),
    "no batch": ((*TRAIN, "--batch-size", "0"), "batch_size = 0"),
    "negative height": ((*TRAIN, "--height", "-8"), "height = -8"),
    "odd width": ((*TRAIN, "--width", "60"), "width = 60: must be a multiple of 8"),
    "guidance nan": ((*TRAIN, "--guidance-scale", "nan"), "guidance_scale = nan"),
    "negative seed": ((*TRAIN, "--seed", "-1"), "seed = -1"),
    # train-sft
    "no steps": ((*SFT, "--steps", "0"), "steps = 0: must be >= 1"),
    "negative gamma": ((*SFT, "--gamma", "-1"), "gamma = -1.0"),
    "unknown kl form": ((*SFT, "--kl-form", "kld"), "Did you mean 'kl-d'"),
    "all prompts dropped": ((*SFT, "--prompt-dropout", "1"), "prompt_dropout = 1.0"),
    "rounds of train-sft": ((*SFT, "--rounds", "3"), "--rounds"),
    "preset of train-sft": ((*SFT, "--preset", "sd15-stf"), "Did you mean 'sd15-sft'"),
    "dataset without metadata": ((*SFT, "--dataset", "folder"), "it has no metadata.jsonl"),
    "dataset is a file": ((*SFT, "--dataset", "prompts.txt"), "prompts.txt is no image set"),
    "no adapter to start from": (
        (*SFT, "--init-adapter", "no"),
        "no adapter no. Give --init-adapter a run's adapter folder",
    ),
    "nothing to start from": ((*TRAIN, "--init-adapter", "folder"), "There is no adapter folder/"),
    # sample
    "seeds run backwards": ((*SAMPLE, "--seeds", "9-3"), "write 3-9"),
    "seeds in words": ((*SAMPLE, "--seeds", "all"), "as in 0-15 or 0,3,7"),
    "no seeds": ((*SAMPLE, "--seeds", ""), "as in 0-15 or 0,3,7"),
    "seed twice": ((*SAMPLE, "--seeds", "0-3,2"), "names a seed twice"),
    "too many seeds": ((*SAMPLE, "--seeds", "0-99999999999"), "at most 100000 seeds"),
    "steps of sample": ((*SAMPLE, "--num-inference-steps", "0"), "num_inference_steps = 0"),
    "preset of sample": ((*SAMPLE, "--preset", "sd51"), "Did you mean 'sd15'?"),
    "model of sample": ((*SAMPLE, "--model", "folder"), "folder"),
    "no such run": ((*SAMPLE, "--run", "nope"), "nope"),
    "no run yet": ((*SAMPLE, "--run", "latest"), "runs"),
    "no such adapter": ((*SAMPLE, "--adapter", "no"), "There is no adapter no"),
    "run and adapter": ((*SAMPLE, "--run", "a", "--adapter", "b"), "give one of them"),
    "run and preset": ((*SAMPLE, "--run", "a", "--preset", "tiny"), "leave out --preset"),
    "before what": ((*SAMPLE, "--before"), "give --run or --adapter"),
    "output exists": ((*SAMPLE, "--output", "taken"), "taken exists already"),
    "output is a file": ((*SAMPLE, "--output", "prompts.txt"), "prompts.txt exists already"),
    # evaluate
    "no run to evaluate": (("evaluate",), "no run with an adapter in runs. Train one"),
    "no such run to evaluate": (("evaluate", "--run", "nope"), "There is no run nope"),
    "no such adapter to evaluate": (("evaluate", "--adapter", "no"), "There is no adapter no"),
    "run as an argument": (("evaluate", "nope"), "nope is an extra argument: name runs with --run"),
    "unknown option of evaluate": (("evaluate", "--unseen"), "--unseen-prompts"),
    "adapter of unknown training": (
        ("evaluate", "--adapter", "lora"),
        "not known what the adapter was trained on: give --prompt",
    ),
    "no samples": ((*EVALUATE, "--samples", "0"), "samples = 0: must be >= 1"),
    "few resamples": ((*EVALUATE, "--resamples", "3"), "resamples = 3: must be >= 100"),
    "reward of evaluate": ((*EVALUATE, "--reward", "juge"), "Did you mean 'judge'?"),
    "no variants": (
        ("evaluate", "--adapter", "lora", "--prompt", "justice for all", "--unseen-prompts"),
        "no variants of 'justice for all': write some to a file",
    ),
    "no unseen prompts file": ((*EVALUATE, "--unseen-prompts-file", "no.txt"), "no.txt: No such"),
    "evaluation folder is something else": ((*EVALUATE, "--output", "taken"), "is no evaluation"),
    "no votes file": (("evaluate", "--votes", "no.json"), "Cannot read no.json: No such file"),
    "votes of another form": (("evaluate", "--votes", "list.json"), "list.json holds no answers"),
    # rewards
    "show an unknown reward": (("rewards", "show", "juge"), "Did you mean 'judge'?"),
}

FILES = {
    "empty.txt": b"\n  \n",
    "bytes.txt": b"\xff\xfe\x00",
    "prompts.txt": b"a cat\n",
    "bad.json": b"{",
    "list.json": b'["a cat"]',
    "prompts.json": b'{"a red cat": {"category": "color"}, "two cats": {"category": "count"}}',
    "bad.toml": b"rounds =",
    "typo.toml": b"round = 3",
    "type.toml": b'rounds = "three"',
    "folder/readme.txt": b"no pipeline",
    "taken/config.toml": b"",
    "lora/pytorch_lora_weights.safetensors": b"",
}


@pytest.mark.parametrize("case", CASES)
def test_is_one_line_and_nothing_is_written(case, dpok, tmp_path):
    arguments, message = CASES[case]
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)

    result = dpok(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("Error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert _tree(tmp_path) == FILES


def _tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("command", [TRAIN, SAMPLE])
def test_hub_id_that_cannot_be_had(command, dpok, tmp_path):
    result = dpok(*command, "--model", "nobody/no-such-model")
    assert result.code == 2
    assert "nobody/no-such-model" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []
