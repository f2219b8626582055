"""The prompt's path: a small tokenizer of Qwen2's kind, the official template, the rule of quotes, picture patches."""
import random
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from frames import MERGED, SQUARE, Frame
from scenes import KINDS, LETTERS, random_edit
from words import CELL_ZH, CHINESE, COLOUR_ZH, FRAMES, SHAPE_ZH, TO_ZH, instruction

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ADDED = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> "
    "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
PREFIX = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for image '
    "generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial relationships to "
    "create vivid and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.\n\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping peacefully on a "
    "warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street lamps, a "
    "diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.\n\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary or "
    "evaluations:\nUser Prompt:"
)
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
VOCABULARY_MOST = 1500
PICTURE_TOKENS = SQUARE.picture_tokens
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def corpus() -> list[str]:
    """Template and training wordings. Chinese comes as single characters and shapes' names, so that no token spans words."""
    rng = random.Random(0)
    english = [instruction(rng, random_edit(rng, kind), "en")[0] for kind in KINDS for _ in range(300)]
    chinese = "".join(t for group in CHINESE.values() for t in group[0]) + "".join(FRAMES["zh"]) + "".join(CELL_ZH)
    chinese += "".join(COLOUR_ZH.values()) + "".join(sum(TO_ZH.values(), ())) + "图形一个到的渐变和条纹大小放缩增加减"
    characters = [c for c in chinese if c > "\u2e80"]
    return english + 3 * characters + 20 * list(SHAPE_ZH.values()) + 20 * [PREFIX, SUFFIX] + list(LETTERS)


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_MOST - len(ADDED), min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    markers = re.compile("|".join(map(re.escape, ADDED)))
    texts = [part for text in corpus() for part in markers.split(text)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ADDED])
    return tokenizer


def tokenizer_at(path: Path) -> Tokenizer:
    """The tokenizer of a run; trained where there is none yet, so that ids stay the same whatever wordings are added later."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def pieces(prompt: str) -> list[str]:
    """`<|vision_end|>`, the prompt and the template's end, cut where quotes spell their contents by character.

    Every quote is one, an apostrophe too, and kinds are not matched; as in the official code.
    """
    done, outside, inside = [], VISION_END, False
    for c in prompt + SUFFIX:
        if c in "'\"“”":
            outside += '"'
            if not inside:
                done.append(outside)
                outside = ""
            inside = not inside
        elif inside:
            done.append(f"“{c}”")
        else:
            outside += c
    return done + ([outside] if outside else [])


class Prompter:
    """Texts to token ids, with the template's shared front apart."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.prefix = self.ids(PREFIX + VISION_START)
        self.cut = len(self.prefix) - 2  # the colon before the picture
        self.image_pad = tokenizer.token_to_id(IMAGE_PAD)
        self.open, self.close = self.ids("“"), self.ids("”")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def tail(self, prompt: str) -> list[int]:
        """Ids from `<|vision_end|>` on."""
        result = []
        for piece in pieces(prompt):
            ids = self.ids(piece)
            bare = len(ids) - len(self.open) - len(self.close)
            if bare > 0 and ids[: len(self.open)] == self.open and ids[-len(self.close) :] == self.close:
                ids = ids[len(self.open) : len(self.open) + bare]
            result += ids
        return result

    def positions(self, length: int, merged: tuple[int, int] = SQUARE.merged) -> torch.Tensor:
        """(time, row, column) [3, prefix + length] of a sequence whose tail begins with the picture's tokens."""
        start, (down, across) = len(self.prefix), merged
        front, tokens = torch.arange(start).expand(3, -1), torch.arange(down * across)
        picture = start + torch.stack([0 * tokens, tokens // across, tokens % across])
        rest = start + max(merged) + torch.arange(length - len(tokens)).expand(3, -1)
        return torch.cat([front, picture, rest], dim=1)


@lru_cache
def bicubic_weights(size: int, out: int, device) -> torch.Tensor:
    """Pillow's bicubic resizing as a matrix [out, size]."""
    wide = max(1.0, size / out)  # the filter grows where it reduces
    centres = (np.arange(out)[:, None] + 0.5) * size / out
    x = np.abs(np.arange(size)[None] - centres + 0.5) / wide
    near, far = (1.5 * x - 2.5) * x * x + 1, ((x - 5) * x + 8) * x * -0.5 + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32)).to(device)


def resized(pictures: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [B, 3, H, W] to another size, rounding as Pillow does: columns first, to 8 bits after each."""
    if pictures.shape[3] != width:
        weights = bicubic_weights(pictures.shape[3], width, pictures.device)
        pictures = (pictures.float() @ weights.T).round().clamp(0, 255).byte()
    if pictures.shape[2] != height:
        weights = bicubic_weights(pictures.shape[2], height, pictures.device)
        pictures = (weights @ pictures.float()).round().clamp(0, 255).byte()
    return pictures


def enlarge(pictures: torch.Tensor, frame: Frame = SQUARE) -> torch.Tensor:
    """uint8 [B, 3, H, W] of a frame's size to the vision tower's, in the official processor's two steps."""
    for height, width in frame.vision:
        pictures = resized(pictures, height, width)
    return pictures


def enlarge_with_pillow(picture: Image.Image, frame: Frame = SQUARE) -> torch.Tensor:
    """Each direction by itself, columns first: newer versions of Pillow choose the order by the cost."""
    for height, width in frame.vision:
        for size in ((width, picture.height), (width, height)):
            picture = picture.resize(size, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@lru_cache
def statistics(device):
    return [torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD)]


def patches(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] to normalised patch rows in block order [B, H/14·W/14, 1176]; both frames are the same."""
    mean, std = statistics(pictures.device)
    x = (pictures.float() / 255 - mean) / std
    down, across = (side // MERGED for side in pictures.shape[2:])
    x = x.reshape(len(x), 3, down, 2, 14, across, 2, 14).permute(0, 2, 5, 3, 6, 1, 4, 7)  # block, patch in block, channel
    return x[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).flatten(6).flatten(5).flatten(1, 4)
