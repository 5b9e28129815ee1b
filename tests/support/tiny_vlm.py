"""A vision-language model with random weights, which answers every question with 1 or 2."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]
ANSWERS = "1", "2"
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def make(folder):
    """Write it to a folder; returns its model and processor."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {word: number for number, word in enumerate(words)}
    letters = Tokenizer(models.BPE(vocabulary, []))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    torch.manual_seed(11)  # its answers to the question "e" depend on the image
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **SIZES, num_attention_heads=2, image_size=28, patch_size=14
            ),
            text_config=LlamaConfig(
                **SIZES,
                num_attention_heads=2,
                vocab_size=len(words),
                max_position_embeddings=4096,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            ),
            image_token_id=vocabulary["<image>"],
            vision_feature_layer=-1,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    answers = [vocabulary[answer] for answer in ANSWERS]
    model.generation_config.suppress_tokens = [n for n in range(len(words)) if n not in answers]
    model.generation_config.eos_token_id = answers  # so that an answer ends with its first token
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


@torch.no_grad()
def answer(model, processor, pictures, question):
    """Return what it answers about Pillow's images, without a server."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :])
