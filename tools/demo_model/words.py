"""Instructions in English and Chinese for edits: combinatorial wordings, some of which are held out of training.

A wording is a frame ("Please …") around a template of the edit's kind. A held-out template never occurs in training, in
any frame; its words do, in other templates.
"""
from scenes import COLOUR_NAMES, LETTERS, SHAPES, Edit, Object, Scene

LANGUAGES = ("en", "zh")

COLOUR_ZH = dict(zip(COLOUR_NAMES, "红 橙 黄 绿 青 蓝 紫 粉 白 黑".split()))
SHAPE_ZH = dict(zip(SHAPES, "圆形 正方形 三角形 星星 圆环 菱形 十字 爱心 月亮".split()))
CELL_EN = ("in the top left corner", "at the top", "in the top right corner", "on the left", "in the center", "on the right",
           "in the bottom left corner", "at the bottom", "in the bottom right corner")
CELL_ZH = ("左上角", "上方", "右上角", "左侧", "中间", "右侧", "左下角", "下方", "右下角")
TO_CELL_EN = {0: "to the top left corner", 2: "to the top right corner", 4: "to the center", 6: "to the bottom left corner",
              8: "to the bottom right corner"}
TO_EN = {"left": ("to the left", "left"), "right": ("to the right", "right"), "up": ("up", "upwards"), "down": ("down", "downwards")}
TO_ZH = {"left": ("向左", "往左"), "right": ("向右", "往右"), "up": ("向上", "往上"), "down": ("向下", "往下")}

FRAMES = {
    "en": ("{t}", "{T}", "{T}.", "Please {t}", "Please {t}.", "{T}, please.", "Can you {t}?", "Could you {t}?",
           "I want you to {t}.", "I would like you to {t}", "Could you please {t}?", "please {t}"),
    "zh": ("{t}", "{t}。", "请{t}", "请{t}。", "帮我{t}", "请帮我{t}。", "麻烦{t}", "可以{t}吗？", "我想{t}", "我想要{t}。", "请你{t}"),
}

# Templates of each kind: those of training, then those held out. Slots: a, b objects of the scene; n a new object; s a new
# shape; c a colour; p a place; d where to; z bigger or smaller; g a background; l, m quoted letters.
ENGLISH = {
    "recolor": (
        ("change the color of {a} to {c}", "make {a} {c}", "turn {a} {c}", "paint {a} {c}", "recolor {a} to {c}", "color {a} {c}",
         "change {a} to {c}", "set the color of {a} to {c}", "turn {a} into {c}", "give {a} a {c} color", "let {a} be {c}",
         "switch the color of {a} to {c}", "let the color of {a} become {c}", "fill {a} in {c}"),
        ("make the color of {a} {c}", "fill {a} with {c}", "paint {a} in {c}")),
    "remove": (
        ("remove {a}", "delete {a}", "erase {a}", "take {a} away", "get rid of {a}", "clear {a}", "take {a} out of the picture",
         "remove {a} from the picture", "delete {a} from the image", "make {a} disappear", "let {a} disappear", "wipe {a} out",
         "remove {a} from the image", "get {a} out of the picture"),
        ("erase {a} from the picture", "get {a} out of the image", "take away {a}")),
    "add": (
        ("add {n} {p}", "put {n} {p}", "draw {n} {p}", "place {n} {p}", "insert {n} {p}", "{p}, add {n}", "create {n} {p}",
         "make {n} appear {p}", "paint {n} {p}", "add {n} to the picture {p}", "{p}, place {n}", "draw {n} in the image {p}",
         "insert {n} into the picture {p}", "{p}, paint {n}"),
        ("{p}, draw {n}", "let {n} appear {p}", "put {n} into the picture {p}")),
    "replace": (
        ("replace {a} with {s}", "change {a} into {s}", "turn {a} into {s}", "transform {a} into {s}", "exchange {a} for {s}",
         "substitute {s} for {a}", "convert {a} to {s}", "let {a} become {s}", "replace {a} by {s}", "draw {s} instead of {a}",
         "make {a} {s}", "turn {a} to {s}", "put {s} instead of {a}", "convert {a} into {s}"),
        ("put {s} in place of {a}", "change {a} to {s}", "transform {a} to {s}")),
    "move": (
        ("move {a} {d}", "shift {a} {d}", "push {a} {d}", "slide {a} {d}", "drag {a} {d}", "bring {a} {d}", "let {a} go {d}",
         "change the position of {a}, move it {d}", "pull {a} {d}", "make {a} move {d}", "make {a} go {d}",
         "take {a} and move it {d}", "take {a} and push it {d}", "let {a} slide {d}"),
        ("let {a} move {d}", "shift the position of {a} {d}", "take {a} and drag it {d}")),
    "resize": (
        ("make {a} {z}", "{Z} {a}", "scale {a} {u}", "{I} the size of {a}", "let {a} be {z}", "make {a} a bit {z}",
         "resize {a} to be {z}", "change {a} to be {z}", "make the size of {a} {z}", "{Z} the size of {a}", "turn {a} into a {z} one",
         "change the size of {a} to {z}", "{I} {a} in size"),
        ("let {a} become {z}", "change the size of {a} to be {z}", "scale the size of {a} {u}")),
    "background": (
        ("change the background to {g}", "fill the background with {g}", "replace the background with {g}",
         "set the background to {g}", "turn the background into {g}", "use {g} as the background", "make {g} the background",
         "cover the background with {g}", "let the background be {g}", "switch the background to {g}",
         "paint the background as {g}", "change the color of the background to {g}", "draw {g} as the background"),
        ("let the background become {g}", "put {g} in the background", "paint the background with {g}")),
    "outline": (
        ("add a {c} outline to {a}", "outline {a} in {c}", "draw a {c} border around {a}", "give {a} a {c} outline",
         "put a {c} outline around {a}", "surround {a} with a {c} line", "trace the edge of {a} in {c}",
         "add a {c} border to {a}", "frame {a} in {c}", "draw a {c} line around {a}", "frame {a} with a {c} border",
         "mark the edge of {a} in {c}", "draw the outline of {a} in {c}"),
        ("give {a} a {c} border", "surround {a} with a {c} border", "put a {c} line around {a}")),
    "swap": (
        ("swap {a} and {b}", "exchange {a} and {b}", "swap the positions of {a} and {b}", "let {a} and {b} trade places",
         "switch {a} and {b}", "swap {a} with {b}", "make {a} and {b} change places", "exchange the positions of {a} and {b}",
         "switch the places of {a} and {b}", "make {a} and {b} swap places", "trade the positions of {a} and {b}",
         "let {a} change places with {b}", "let {a} and {b} exchange positions"),
        ("switch the positions of {a} and {b}", "let {a} and {b} swap places", "exchange the places of {a} and {b}")),
    "write": (
        ("write the letter {l} in {c} {p}", "add a {c} letter {l} {p}", "put a {c} {l} {p}", "draw a {c} {l} {p}",
         "write a {c} {l} {p}", "place the letter {l} in {c} {p}", "type a {c} {l} {p}", "print a {c} letter {l} {p}",
         "{p}, write a {c} {l}", "insert a {c} letter {l} {p}", "write {l} in {c} {p}", "{p}, print {l} in {c}",
         "add the letter {l} in {c} {p}"),
        ("draw the letter {l} in {c} {p}", "{p}, add a {c} letter {l}", "put the letter {l} in {c} {p}")),
    "letter": (
        ("replace the letter {l} with {m}", "change {l} to {m}", "change the letter {l} to {m}", "turn {l} into {m}",
         "rewrite {l} as {m}", "write {m} instead of {l}", "correct {l} to {m}", "replace {l} by {m}",
         "let the letter {l} become {m}", "edit the letter {l} to {m}", "make the letter {l} {m}", "change the text {l} into {m}",
         "substitute {m} for the letter {l}"),
        ("replace {l} with {m}", "turn the letter {l} into {m}", "edit the text {l} to {m}")),
}
CHINESE = {
    "recolor": (
        ("把{a}改成{c}色", "把{a}变成{c}色", "将{a}改为{c}色", "把{a}的颜色改成{c}色", "将{a}的颜色变为{c}色", "让{a}变成{c}色", "把{a}涂成{c}色",
         "将{a}换成{c}色", "给{a}涂上{c}色", "把{a}染成{c}色", "把{a}的颜色换成{c}色", "让{a}的颜色变成{c}色", "将{a}涂成{c}色"),
        ("将{a}的颜色改为{c}色", "把{a}变为{c}色", "将{a}染成{c}色")),
    "remove": (
        ("删除{a}", "去掉{a}", "把{a}删掉", "移除{a}", "擦掉{a}", "将{a}去掉", "把{a}从图中移除", "消除{a}", "让{a}消失", "把{a}拿走", "将{a}从画面中删除",
         "清除{a}", "把画面中的{a}去掉"),
        ("把{a}擦掉", "将{a}从图中移除", "把{a}从画面中去掉")),
    "add": (
        ("在{p}添加{n}", "在{p}画{n}", "在{p}加{n}", "在{p}放{n}", "添加{n}到{p}", "在画面{p}添加{n}", "在图的{p}画上{n}", "在{p}加上{n}",
         "往{p}放入{n}", "在{p}插入{n}", "把{n}放在{p}", "在图片{p}增加{n}", "让{p}出现{n}"),
        ("在{p}增加{n}", "在画面{p}放{n}", "在图的{p}加上{n}")),
    "replace": (
        ("把{a}换成{s}", "将{a}替换为{s}", "把{a}变成{s}", "用{s}代替{a}", "将{a}改成{s}", "把{a}改为{s}", "让{a}变成{s}", "将{a}变为{s}",
         "把{a}替换成{s}", "用{s}替换{a}", "把{a}转换成{s}", "将{a}转换为{s}", "把{a}改画成{s}"),
        ("将{a}换成{s}", "把{a}改成{s}", "将{a}变成{s}")),
    "move": (
        ("把{a}{d}移动", "将{a}{d}移", "把{a}{d}移一步", "让{a}{d}移动", "将{a}{d}推", "把{a}{d}挪", "将{a}{d}挪动", "让{a}{d}走一步",
         "{d}移动{a}", "把{a}{d}拖动", "{d}挪动{a}", "将{a}{d}推一步", "把{a}的位置{d}移"),
        ("将{a}{d}移动", "把{a}{d}推", "让{a}{d}挪动")),
    "place": (
        ("把{a}移到{p}", "将{a}移动到{p}", "把{a}放到{p}", "让{a}移到{p}", "将{a}挪到{p}", "把{a}拖到{p}", "将{a}放到{p}", "把{a}移动至{p}",
         "将{a}的位置改到{p}", "让{a}走到{p}", "把{a}推到{p}"),
        ("将{a}移到{p}", "把{a}挪到{p}", "让{a}移动到{p}")),
    "resize": (
        ("把{a}变{z}", "将{a}{v}", "把{a}{v}一些", "让{a}变{z}", "让{a}变{z}一点", "将{a}的尺寸{w}", "把{a}变得更{z}", "{v}{a}", "将{a}变{z}一些",
         "把{a}的大小{w}", "把{a}改{z}", "让{a}的尺寸变{z}"),
        ("将{a}变得更{z}", "把{a}{v}一点", "把{a}的尺寸变{z}")),
    "background": (
        ("把背景改成{g}", "将背景换成{g}", "把背景变成{g}", "将背景改为{g}", "背景换成{g}", "用{g}做背景", "让背景变成{g}", "将背景设为{g}",
         "把背景涂成{g}", "将背景替换为{g}", "把画面背景改为{g}", "用{g}填充背景"),
        ("把背景换成{g}", "将背景变成{g}", "让背景变为{g}")),
    "outline": (
        ("给{a}加上{c}色轮廓", "给{a}添加{c}色边框", "用{c}色给{a}描边", "为{a}加{c}色描边", "给{a}画{c}色轮廓", "把{a}用{c}色描边", "在{a}周围画{c}色边框",
         "为{a}添加{c}色轮廓", "给{a}加一圈{c}色边", "用{c}色勾出{a}的轮廓", "在{a}周围加{c}色线", "给{a}的边缘描上{c}色"),
        ("为{a}添加{c}色边框", "在{a}周围画{c}色轮廓", "给{a}加{c}色描边")),
    "swap": (
        ("交换{a}和{b}", "把{a}和{b}对调", "将{a}与{b}互换", "交换{a}和{b}的位置", "让{a}和{b}互换位置", "把{a}与{b}的位置对调", "将{a}和{b}交换位置",
         "对调{a}和{b}的位置", "把{a}和{b}换一下位置", "让{a}与{b}交换", "互换{a}和{b}", "将{a}和{b}的位置互换"),
        ("把{a}和{b}交换", "让{a}与{b}对调位置", "互换{a}与{b}的位置")),
    "write": (
        ("在{p}写{c}色的{l}", "在{p}写上{c}色字母{l}", "在{p}添加{c}色的字母{l}", "在{p}画{c}色的{l}", "在{p}加{c}色字母{l}", "用{c}色在{p}写{l}",
         "用{c}色在{p}写字母{l}", "在画面{p}写上{c}色的{l}", "往{p}写入{c}色的{l}", "在{p}放{c}色的字母{l}", "在图的{p}写{c}色字母{l}", "在{p}打上{c}色的{l}"),
        ("在{p}写{c}色字母{l}", "在画面{p}添加{c}色的{l}", "用{c}色在{p}写上{l}")),
    "letter": (
        ("把{l}改成{m}", "将字母{l}替换为{m}", "把字母{l}改为{m}", "将{l}换成{m}", "用{m}替换{l}", "把{l}改写成{m}", "将文字{l}改为{m}", "把字母{l}变成{m}",
         "让{l}变成{m}", "用{m}代替字母{l}", "将字母{l}改写为{m}", "把文字{l}替换成{m}"),
        ("把字母{l}换成{m}", "将{l}替换为{m}", "把文字{l}改成{m}")),
}
TEMPLATES = {"en": ENGLISH, "zh": CHINESE}


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def reference(rng, o: Object, scene: Scene, language: str) -> tuple[str, bool, bool]:
    """Words that mean this object alone, and whether they name its colour and its shape."""
    others = [x for x in scene.objects if x is not o and not x.is_letter]
    named = o.colour < len(COLOUR_NAMES)
    forms = [(True, True)] if named else []
    if all(x.shape != o.shape for x in others):
        forms.append((False, True))
    if named and all(x.colour != o.colour for x in others + [x for x in scene.objects if x.is_letter]):
        forms.append((True, False))
    colour, shape = rng.choice(forms)
    if language == "zh":
        noun = SHAPE_ZH[SHAPES[o.shape]] if shape else "图形"
        return (COLOUR_ZH[COLOUR_NAMES[o.colour]] + "色" + rng.choice(("", "的")) if colour else "") + noun, colour, shape
    noun = SHAPES[o.shape] if shape else rng.choice(("shape", "one"))
    return "the " + (COLOUR_NAMES[o.colour] + " " if colour else "") + noun, colour, shape


def new_object(rng, o: Object, language: str) -> str:
    colour, shape = COLOUR_NAMES[o.colour], SHAPES[o.shape]
    if language == "en":
        return article(f"{colour} {shape}")
    return rng.choice(("一个", "")) + COLOUR_ZH[colour] + "色" + rng.choice(("", "的")) + SHAPE_ZH[shape]


def background_words(b, language: str) -> str:
    first, second = COLOUR_NAMES[b.colour], COLOUR_NAMES[b.second]
    if language == "en":
        return (first, f"a gradient from {first} to {second}", f"{first} and {second} stripes")[b.kind]
    first, second = COLOUR_ZH[first], COLOUR_ZH[second]
    return (f"{first}色", f"{first}色到{second}色的渐变", f"{first}色和{second}色条纹")[b.kind]


def quoted(rng, o: Object, language: str) -> str:
    letter = LETTERS[o.shape - len(SHAPES)]
    marks = rng.choice(('""', "''", "“”") if language == "en" else ("“”", "“”", '""', "''"))
    return marks[0] + letter + marks[1]


def slots(rng, edit: Edit, language: str) -> tuple[dict, dict]:
    """Words for the template's slots, and what they name (for auxiliary labels)."""
    asked, english, words, named = edit.asked, language == "en", {}, {}
    for slot, key in (("a", "object"), ("b", "other")):
        if key in asked:
            words[slot], *named[key] = reference(rng, asked[key], edit.source, language)
    if "colour" in asked:
        name = COLOUR_NAMES[asked["colour"]]
        words["c"] = name if english else COLOUR_ZH[name]
    if "shape" in asked:
        name = SHAPES[asked["shape"]]
        words["s"] = article(name) if english else rng.choice(("一个", "")) + SHAPE_ZH[name]
    if "direction" in asked:
        words["d"] = rng.choice((TO_EN if english else TO_ZH)[asked["direction"]])
    if "cell" in asked:
        words["d" if english else "p"] = TO_CELL_EN[asked["cell"]] if english else CELL_ZH[asked["cell"]]
    if "bigger" in asked:
        up = asked["bigger"]
        words |= {"z": rng.choice(("bigger", "larger")) if up else "smaller", "u": "up" if up else "down",
                  "Z": "enlarge" if up else "shrink", "I": "increase" if up else rng.choice(("reduce", "decrease"))}
        if not english:
            words |= {"z": "大" if up else "小", "v": "放大" if up else "缩小", "w": rng.choice(("增大", "加大") if up else ("减小", "缩小"))}
    if "background" in asked:
        words["g"] = background_words(asked["background"], language)
    if "new" in asked:
        new = asked["new"]
        words["p"] = (CELL_EN if english else CELL_ZH)[new.cell]
        if "old" not in asked:  # a letter that was there may have a colour without a name
            words["c"] = COLOUR_NAMES[new.colour] if english else COLOUR_ZH[COLOUR_NAMES[new.colour]]
        if not new.is_letter:
            words["n"] = new_object(rng, new, language)
        elif "old" in asked:
            words |= {"l": quoted(rng, asked["old"], language), "m": quoted(rng, new, language)}
        else:
            words["l"] = quoted(rng, new, language)
    return words, named


def instruction(rng, edit: Edit, language: str, held_out: bool = False) -> tuple[str, dict]:
    """A wording of the edit, from the held-out templates or from those of training; and what its words name."""
    words, named = slots(rng, edit, language)
    kind = "place" if language == "zh" and edit.kind == "move" and "cell" in edit.asked else edit.kind
    template = rng.choice(TEMPLATES[language][kind][held_out])
    text = template.format(**words)
    frame = rng.choice(FRAMES[language])
    return frame.format(t=text, T=text[:1].upper() + text[1:]), named
