"""Excerpts in the forms of the published benchmarks, written for the tests."""

from pathlib import Path

DRAWBENCH = """"Prompts","Category"
"A blue cup on a red dog.","Colors"
"Three wolves on the street.","Counting"
"A sign that says ""Hello, World"".","Text"
"""
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "a wolf\tAnimals\tBasic\t\n"
    "42\tAbstract\tBasic\tSimple numbers but challenging\n"
    'a cup with "tea" on it\tArtifacts\tWriting & Symbols\t\n'
    "A wolf\tAnimals\tSimple Detail\t\n"
)
GENEVAL = [
    '{"tag": "single_object", "include": [{"class": "cup", "count": 1}], "prompt": "a photo of a'
    ' cup"}',
    '{"tag": "counting", "include": [{"class": "cup", "count": 2}], "exclude": [{"class": "cup",'
    ' "count": 3}], "prompt": "a photo of two cups"}',
    '{"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a'
    ' photo of a red cup"}',
]
COLOR = "a red cup and a blue dog\nA blue dog.\nA photo of a cat/dog.\n"
SPATIAL = "a dog on the left of a cup\tleft\na cup near a wolf\tnext\n"
PAPER = '{"A red colored car.": {"category": "Colors"}, "A cup.": {"category": "Text "}}'


def write(folder: Path, name: str) -> Path:
    """Write the excerpt of a benchmark's files into a folder; returns the folder."""
    texts = {
        "drawbench": {"DrawBench.csv": DRAWBENCH},
        "partiprompts": {"PartiPrompts.tsv": PARTI},
        "geneval": {"evaluation_metadata.jsonl": "\n".join(GENEVAL) + "\n"},
        "t2i-compbench": {"color_val.txt": COLOR, "spatial_val.txt": SPATIAL},
        "paper-drawbench": {"data_meta.json": PAPER},
        "paper-coco": {"paper-coco.txt": "a cat on a sofa\na train\n"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts[name].items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder
