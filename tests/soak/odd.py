"""Names, folders, prompts and flags as people and scripts write them."""

#: Names of runs: some that must work, some that may be refused.
NAMES = [
    *("a b", " ahead", "behind ", "lr=1e-4", "a=b=c", "[bold]red[/bold]", "[1]", ".hidden", "..x"),
    *("läufe", "la\u0308ufe", "跑步", "🐇", "\u2028", "tab\there", "two\nlines", "it's", 'a"b'),
    *("a\\b", "-dash", "--name", "*", "?", "$HOME", "~", "%20", "a:b", "#", "&", ";", "x" * 255),
    *("latest", "base", "adapter", "NUL", "true", "1e9", "\x1b[31m", "\udcff", "x" * 256),
    *(".", "..", "a/b", "/abs"),
]
#: Folders of runs and results.
PLACES = ["runs", "runs", "my runs", "läufe [1]", "a=b/c", ".hid/x", "~/runs", "./deep/../deep"]
PROMPTS = [
    *("cat", "a red cat", "A red cat.", "a red cat ", "[red]cat[/red]", "[/]", "{cat}", "%s", "\\"),
    *("кот", "猫と犬", "🐈 🐕", "chat à l'œuvre", 'a "cat"', "a, b; c = d", "<b>cat</b> & dog"),
    *(
        "$(cat)",
        "two\nlines",
        "a\ttab",
        "# cat",
        "-cat",
        "--prompt",
        "'",
        "x" * 2000,
        "\x1b[31mred",
    ),
    *("e\u0301", "\u202ecat", "a\u2028b", "a\u0085b", "cat\udcff"),
]
#: Flags that every command refuses.
BAD = [
    ("--nope",),
    ("--height=13",),
    ("--height=-8",),
    ("--num-inference-steps=0",),
    ("--num-inference-steps=many",),
    ("--num-inference-steps=99999999999999999999",),
    ("--guidance-scale=nan",),
    ("--eta=2",),
    ("--precision=fp8",),
    ("--device=nothing",),
    ("--model=./nowhere",),
    ("--model=",),
    ("--config=nowhere.toml",),
    ("--preset=nope",),
    ("--prompt=",),
    ("--prompts=nowhere.txt",),
    ("--category=nope",),
    ("argument",),
    ("--height", "100000"),
    ("--height=1000000000000000000",),
]
