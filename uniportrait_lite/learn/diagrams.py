"""Diagrams of the method, with the tiny profile's tensor shapes, and below them the paper's."""

from __future__ import annotations

from typing import Any

from uniportrait_lite.learn import viz

BLUE, GREEN, ORANGE, GREY = "#d6e6f7", "#d9efd9", "#fbe3cc", "#eeeeee"  # networks, features, ID tokens, pictures
TRAINED = "#f6c9c4"  # networks that a stage trains, where others are frozen


class _Board:
    """Boxes and arrows on a canvas of `width` x `height` units, y upwards."""

    def __init__(self, height: float, width: float = 100):
        self.figure, self.axes = viz.axes(height=height)
        self.axes.set(xlim=(0, width), ylim=(0, width * height / viz.WIDTH), aspect="equal")
        self.axes.axis("off")

    def box(self, x: float, y: float, w: float, h: float, text: str, shapes: tuple[str, ...] = (), color: str = BLUE):
        """A box with its lower left corner at (x, y): a name, the shape here, and the paper's."""
        from matplotlib.patches import FancyBboxPatch

        style = "round,pad=0,rounding_size=0.8"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=color, ec="#666666", lw=0.8))
        lines = [(text, "black", 8), *zip(shapes, ("#1f4e79", "#999999"), (7.5, 6.5), strict=False)]
        for k, (line, ink, size) in enumerate(lines):
            level = y + h / 2 + (len(lines) - 1) * 1.3 - 2.6 * k
            self.axes.text(x + w / 2, level, line, ha="center", va="center", fontsize=size, color=ink)

    def arrow(self, *points: tuple[float, float], text: str = "", color: str = "#444444") -> None:
        """A line through the points, with a head at the last; `text` stands above its first piece."""
        for a, b in zip(points, points[1:], strict=False):
            style = "-|>" if b == points[-1] else "-"
            arrow = {"arrowstyle": style, "color": color, "lw": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
            self.axes.annotate("", xy=b, xytext=a, arrowprops=arrow)
        if text:
            (x0, y0), (x1, y1) = points[:2]
            self.note((x0 + x1) / 2, (y0 + y1) / 2 + 1.5, text)

    def note(self, x: float, y: float, text: str, **settings: Any) -> None:
        """Small text around (x, y)."""
        self.axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 7, "color": "#444444"} | settings)

    def frame(self, x: float, y: float, w: float, h: float) -> None:
        """A dashed frame around what belongs together."""
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), w, h, fc="none", ec="#999999", lw=0.8, ls="--"))

    def show(self, says: str) -> None:
        """Shows the diagram below the cell."""
        viz.plot(self.figure, says)


def face_features() -> None:
    """From a picture to intrinsic ID features and face structure features."""
    board = _Board(height=3.3)
    top, low, h = 30, 5, 9
    board.box(1, 18, 9, h, "picture", ("H x W",), GREY)
    board.box(15, 18, 11, h, "aligned crop", ("224 x 224",), GREY)
    board.arrow((10, 22.5), (15, 22.5))
    board.note(12.5, 28.5, "detect,\nalign")
    stages = [("16 x 56 x 56", "(64)"), ("32 x 28 x 28", "(128)"), ("64 x 14 x 14", "(256)"), ("128 x 7 x 7", "(512)")]
    for k, shapes in enumerate(stages):
        x = 29 + 14 * k
        board.box(x, top, 11.5, h, f"stage {k + 1}", shapes)
        if k:
            board.arrow((x - 2.5, top + h / 2), (x, top + h / 2))
    board.arrow((20.5, 27), (20.5, top + h / 2), (29, top + h / 2))
    board.note(23.5, top + h / 2 + 2, "112 px")
    board.box(86, top, 13, h, "head", ("vector 128", "(512)"), GREY)
    board.arrow((82.5, top + h / 2), (86, top + h / 2), color="#aaaaaa")
    board.box(66, 17, 21.5, h, "intrinsic ID features $F_r$", ("49 x 128", "(49 x 512)"), GREEN)
    board.arrow((76.75, top), (76.75, 17 + h))
    board.box(29, low, 11.5, h, "CLIP", ("256 x 96", "(256 x 1280)"))
    board.arrow((20.5, 18), (20.5, low + h / 2), (29, low + h / 2))
    board.note(24.5, low + h / 2 + 2, "224 px")
    board.box(
        62, low - 2, 25.5, h + 2, "face structure features $F_s$", ("256 x (112 + 96)", "(256 x (448 + 1280))"), GREEN
    )
    board.arrow((40.5, low + h / 2), (62, low + h / 2))
    board.note(51, low + h / 2 - 2, "second-to-last layer")
    for k in range(3):
        x = 34.75 + 14 * k
        board.axes.plot([x, x], [top, 15.5], color="#444444", lw=0.9)
    board.arrow((34.75, 15.5), (64.5, 15.5), (64.5, low + h))
    board.note(49.5, 13.8, "each resized to 16 x 16")
    board.note(50, top + h + 3, "face backbone (in brackets: the paper's sizes)")
    board.show(
        "Diagram: a crop goes through the face backbone and CLIP; stage 4 is F_r, stages 1 to 3 and CLIP are F_s"
    )


def id_embedding() -> None:
    """The Q-Former, from face features to ID tokens."""
    board = _Board(height=3.5)
    board.box(1, 32, 17, 8, "queries (learned)", ("16 x 128", "(16 x 768)"), ORANGE)
    board.box(1, 17, 17, 8, "$F_r$ through an MLP", ("49 x 128", "(49 x 768)"), GREEN)
    board.box(1, 3, 17, 8, "$F_s$ through an MLP", ("256 x 128", "(256 x 768)"), GREEN)
    board.frame(23.5, 1, 55, 45)
    board.note(50, 44, "one layer; here there are 3 (in the paper 6)")
    rail = 36
    board.arrow((18, rail), (80.5, rail))
    for x, name in ((30, "attention\nto $F_r$"), (47, "attention\nto $F_s$"), (65, "feed-\nforward")):
        board.box(x - 5, 20, 10, 9, name)
        board.arrow((x - 3.5, rail), (x - 3.5, 29))
        board.arrow((x + 3.5, 29), (x + 3.5, rail))
        board.note(x + 3.5, rail, "+", bbox={"boxstyle": "circle,pad=0.12", "fc": "white", "ec": "#444444"}, fontsize=8)
    red = {"boxstyle": "round,pad=0.25", "fc": "#f7d9d9", "ec": "#666666"}
    board.note(50.5, 32.5, "DropPath", bbox=red, fontsize=6.5)
    board.note(56, 32.5, r"$\times\,\beta$", fontsize=8)
    board.arrow((18, 21), (21, 21), (21, 16.5), (30, 16.5), (30, 20))
    board.arrow((18, 7), (47, 7), (47, 20))
    board.note(47, 12.5, "DropToken", bbox=red, fontsize=6.5)
    board.note(62, 8, "red: in training only", fontsize=6.5)
    board.box(80.5, 32, 7, 8, "linear,\nnorm")
    board.box(90, 32, 9.5, 8, "ID tokens", ("16 x 128", "(16 x 768)"), ORANGE)
    board.arrow((87.5, rail), (90, rail))
    board.show(
        "Diagram: 16 queries read F_r, then F_s, then a feed-forward part, each added; layer by layer, to 16 ID tokens"
    )


def decoupled_attention() -> None:
    """How ID tokens enter a cross-attention layer."""
    board = _Board(height=2.5)
    board.box(1, 24, 15, 9, "prompt", ("48 x 128", "(77 x 768)"), GREY)
    board.box(1, 12.5, 15, 9, "positions $Z$", ("256 x 64", "(4096 x 320)"), GREY)
    board.box(1, 1, 15, 9, "ID tokens", ("16 x 128", "(16 x 768)"), ORANGE)
    for y, name in ((28.5, "K, V of text"), (17, "Q"), (5.5, "K, V of ID")):
        board.arrow((16, y), (22, y))
        board.box(22, y - 3.5, 14, 7, name)
    for y, color in ((28.5, BLUE), (5.5, ORANGE)):
        board.arrow((36, y), (47, y))
        board.box(47, y - 4.5, 15, 9, "attention", color=color)
    board.arrow((36, 17), (42, 17), (42, 26), (47, 26))
    board.arrow((36, 17), (42, 17), (42, 8), (47, 8))
    board.arrow((62, 28.5), (73, 28.5), (73, 18.7))
    board.arrow((62, 5.5), (73, 5.5), (73, 15.3))
    board.note(68, 7.5, "times ID scale", fontsize=6.5)
    board.note(73, 17, "+", bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "#444444"}, fontsize=8)
    board.box(79, 12.5, 20, 9, "output of the layer", ("256 x 64", "(4096 x 320)"), GREY)
    board.arrow((74.5, 17), (79, 17))
    board.show(
        "Diagram: the positions' queries attend to the prompt, and apart from it to the ID tokens; the two are added"
    )


def id_routing() -> None:
    """How each location of a cross-attention layer chooses among several identities."""
    board = _Board(height=3.1)
    board.box(1, 28.5, 15, 9, "positions $Z$", ("384 x 64", "(4096 x 320)"), GREY)
    for k in (2, 1, 0):
        board.box(1 + 1.2 * k, 4 + 1.2 * k, 15, 9, "ID tokens, N times" if k == 0 else "", (), ORANGE)
        if k == 0:
            board.note(8.5, 5.8, "16 x 128  (16 x 768)", fontsize=6)
    board.arrow((16, 33), (24, 33))
    board.box(24, 29.5, 11, 7, r"$\theta$")
    board.arrow((18.4, 12), (21, 12), (21, 20.5), (24, 20.5))
    board.box(24, 17, 11, 7, r"$\phi(W_{aggr}\,F)$")
    board.box(41, 22.5, 13, 8.5, "logits", ("N x 384",), GREEN)
    board.arrow((35, 33), (47.5, 33), (47.5, 31))
    board.arrow((35, 20.5), (38, 20.5), (38, 26.7), (41, 26.7))
    board.arrow((54, 26.7), (63, 26.7))
    board.note(57.2, 28.2, "arg max", fontsize=6)
    board.note(57.2, 25.2, "over N", fontsize=6)
    board.box(63, 22.5, 14, 8.5, r"routing map $\psi$", ("N x 384",), GREEN)
    board.box(63, 4, 14, 9, "N attentions", ("N x 384 x 64",), ORANGE)
    board.arrow((18.4, 7), (63, 7))
    board.note(43, 8.6, "K, V of each identity", fontsize=6.5)
    board.arrow((16, 36), (19, 36), (19, 39.2), (60.7, 39.2), (60.7, 11), (63, 11))
    board.note(43, 40.8, "Q, the text branch's own", fontsize=6.5)
    board.arrow((77, 26.7), (84, 26.7), (84, 18.8))
    board.arrow((77, 8.5), (84, 8.5), (84, 14.6))
    board.note(84, 16.7, r"$\odot$", fontsize=16)
    board.arrow((85.8, 16.7), (89, 16.7))
    board.note(94.7, 16.7, "sum over N,\ntimes ID scale,\nadded to\nthe text's", fontsize=6.5)
    board.show("Diagram: logits of positions and identities, their arg max, and with it the choice among N attentions")


def multi_id_stage() -> None:
    """What the multi-ID stage trains in a cross-attention layer, around what is frozen, and its two losses."""
    board = _Board(height=3.1)
    frozen, learns, loss = "#e4e7eb", ORANGE, "#f7d9d9"
    board.box(1, 31, 14, 8, "face features", ("N faces",), GREEN)
    board.box(19, 31, 14, 8, "ID embedding", color=frozen)
    board.box(37, 31, 14, 8, "ID tokens", ("N x 16 x 128",), GREEN)
    board.box(57, 31, 16, 8, "ID keys, values", color=frozen)
    board.box(37, 18, 14, 8, r"$W_{aggr}$, $\phi$", color=learns)
    board.box(1, 4, 14, 8, "positions $Z$", ("384 x 64",), GREEN)
    board.box(19, 4, 14, 8, r"$\theta$", color=learns)
    board.box(37, 4, 14, 8, "logits", ("N x 384",), GREEN)
    board.box(57, 18, 16, 8, r"Gumbel, $\psi$", ("one-hot over N",), GREEN)
    board.box(79, 31, 20, 8, "attention\nto one identity a place", color=frozen)
    board.box(79, 22.5, 20, 6, "second LoRA\non q, k, v and out", color=learns)
    board.box(79, 13.5, 20, 6.5, "diffusion loss", color=loss)
    board.box(57, 4, 16, 8, "softmax", ("boxes' masks $M$",), GREEN)
    board.box(79, 4.5, 20, 6.5, r"$\lambda \times$ routing loss", color=loss)
    board.arrow((15, 35), (19, 35))
    board.arrow((33, 35), (37, 35))
    board.arrow((51, 35), (57, 35))
    board.arrow((73, 35), (79, 35))
    board.arrow((44, 31), (44, 26))
    board.arrow((44, 18), (44, 12))
    board.arrow((15, 8), (19, 8))
    board.arrow((33, 8), (37, 8))
    board.arrow((51, 9.5), (54, 9.5), (54, 22), (57, 22))
    board.arrow((51, 7), (57, 7))
    board.arrow((73, 22), (76, 22), (76, 33), (79, 33))
    board.arrow((89, 31), (89, 28.5))
    board.arrow((89, 22.5), (89, 20))
    board.arrow((73, 8), (79, 8))
    for y, color, text in ((25, frozen, "frozen"), (20.5, learns, "learns"), (16, GREEN, "made anew in each step")):
        board.box(2, y, 3, 3, "", color=color)
        board.note(6, y + 1.5, text, ha="left")
    board.show(
        "Diagram: frozen are the ID embedding, ID keys and values and the U-Net; W_aggr, phi, theta and a second LoRA "
        "learn, from the diffusion loss through psi, and from the routing loss through the softmax of the logits"
    )


def single_id_training() -> None:
    """One step of the single-ID stage: what goes in, what is frozen, what learns."""
    board = _Board(height=3.4)
    board.box(1, 35, 13, 8, "portrait", ("128 x 128", "(512 x 512)"), GREY)
    board.box(1, 22, 13, 8, "caption", ("48 words", "(77)"), GREY)
    board.box(1, 5, 13, 8, "a face crop", ("224 x 224",), GREY)
    board.note(9, 2.7, "of it, or of another photo", fontsize=6.5)
    board.box(19, 35, 11, 8, "VAE")
    board.box(19, 22, 11, 8, "text encoder")
    board.box(18.5, 5, 12, 8, "face backbone,\nCLIP")
    for x, y in ((19, 39), (19, 26), (18.5, 9)):
        board.arrow((14, y), (x, y))
    board.box(36, 35, 12, 8, "latents $x_0$", ("8 x 16 x 16", "(4 x 64 x 64)"), GREEN)
    board.arrow((30, 39), (36, 39))
    board.arrow((48, 39), (58, 39))
    board.note(53, 41, "noise, $t$")
    board.box(58, 35, 9, 8, "noisy $x_t$", color=GREEN)
    board.box(36, 5, 9, 8, "$F_r$, $F_s$", color=GREEN)
    board.arrow((30.5, 9), (36, 9))
    board.box(50, 5, 12, 8, "ID embedding", color=TRAINED)
    board.arrow((45, 9), (50, 9))
    board.note(47.5, 14.5, "DropToken,\nDropPath", fontsize=6.5)
    board.box(67, 5, 11, 8, "ID tokens", ("16 x 128", "(16 x 768)"), ORANGE)
    board.arrow((62, 9), (67, 9))
    board.box(58, 17.5, 20, 13, "")
    board.note(68, 27, "U-Net", fontsize=8, color="black")
    board.box(60, 18.5, 7.5, 4, "LoRA", color=TRAINED)
    board.box(68.5, 18.5, 8.5, 4, "ID K, V", color=TRAINED)
    board.arrow((30, 26), (58, 26))
    board.arrow((62.5, 35), (62.5, 30.5))
    board.arrow((72.75, 13), (72.75, 18.5))
    board.box(84, 20, 15, 8, "prediction", ("8 x 16 x 16",), GREEN)
    board.arrow((78, 24), (84, 24))
    board.box(84, 35, 15, 8, "loss", ("face counts more",), GREY)
    board.arrow((91.5, 28), (91.5, 35))
    board.arrow((67, 39), (84, 39))
    board.note(75.5, 41, "target $v$ (paper: noise)", fontsize=6.5)
    board.note(89.5, 9, "blue: frozen\nred: trained\n(in brackets:\nthe paper's sizes)", fontsize=6.5)
    board.show(
        "Diagram: a noisy portrait, its caption and the ID tokens of its face go through the U-Net; the ID embedding, "
        "the ID keys and values and the LoRA are trained, all else is frozen"
    )


def composition() -> None:
    """Where each tool takes hold of the U-Net."""
    board = _Board(height=3.5)
    board.frame(41, 13, 22, 33)
    board.note(52, 44, "U-Net, frozen", fontsize=8)
    for y, name in ((33, "cross-attention"), (24, "self-attention"), (15, "way up")):
        board.box(43, y, 18, 7, name)
    left = [
        (41, 37, "prompt", "48 x 128", GREY),
        (31.5, 36.5, "ID tokens", "16 x 128", ORANGE),
        (22, 36, "image prompt", "4 x 128", GREEN),
    ]
    for y, at, name, shape, color in left:
        board.box(2, y, 16, 7, name, (shape,), color)
        board.arrow((18, y + 3.5), (30, at), (43, at), color="#444444")
    board.box(2, 12.5, 16, 7, "style picture", ("its latents",), GREEN)
    board.arrow((18, 16), (30, 27.5), (43, 27.5))
    board.note(36, 29.3, "keys, values")
    board.box(2, 2, 16, 8, "condition image", ("3 x 128 x 128",), GREEN)
    board.box(22.5, 2, 18, 8, "ControlNet", ("copy of the way down",), GREEN)
    board.arrow((18, 6), (22.5, 6))
    board.arrow((40.5, 6), (52, 6), (52, 15))
    board.note(46, 8, "added")
    board.box(70, 24, 12, 7, "scheduler")
    board.arrow((63, 27.5), (70, 27.5))
    board.box(70, 37, 28, 8, "inpainting", ("outside: the picture, noised",), GREEN)
    board.arrow((76, 31), (76, 37))
    board.box(88, 24, 10, 7, "latents", ("8 x 16 x 16",), GREY)
    board.arrow((93, 37), (93, 31))
    board.arrow((93, 24), (93, 19.5), (63, 19.5))
    board.note(79, 17.7, "next step")
    board.box(70, 2, 28, 8, "style LoRA", ("added to the weights themselves",), GREEN)
    board.arrow((84, 10), (84, 13.5), (63, 13.5))
    board.show(
        "Diagram: prompt, ID tokens and image prompt enter the U-Net's cross-attention; a style picture its "
        "self-attention; a ControlNet adds to its way up; a style LoRA changes weights; inpainting works between steps"
    )


def control_net() -> None:
    """A ControlNet beside the U-Net that it is a copy of."""
    board = _Board(height=2.9)
    for y, name, color in ((27, "U-Net, frozen", BLUE), (8, "ControlNet", GREEN)):
        for k, (title, shape) in enumerate(
            (("in", "64 x 16 x 16"), ("down 1", "64 x 8 x 8"), ("down 2", "128 x 4 x 4"), ("down 3", "192 x 4 x 4"))
        ):
            board.box(17 + 13.5 * k, y, 11.5, 7, title, (shape,), color)
            board.arrow((15 + 13.5 * k, y + 3.5), (17 + 13.5 * k, y + 3.5))
        board.box(71, y, 11.5, 7, "middle", ("192 x 4 x 4",), color)
        board.arrow((69, y + 3.5), (71, y + 3.5))
        board.note(82.5, y + 8.7 if color == BLUE else y - 1.8, name, ha="right", fontsize=7.5)
    board.box(1, 27, 13.5, 7, "noisy latents", ("8 x 16 x 16",), GREY)
    board.box(1, 8, 13.5, 7, "condition image", ("3 x 128 x 128",), GREY)
    board.arrow((7.5, 27), (7.5, 21), (20, 21), (20, 15))
    board.box(88, 27, 11, 7, "way up", (), BLUE)
    board.arrow((82.5, 30.5), (88, 30.5))
    for x in (22.75, 36.25, 49.75, 63.25, 76.75):
        board.arrow((x + 3, 15), (x + 3, 19.2), (93.5, 19.2), (93.5, 27), color="#b35c1e")
        board.note(x + 3, 17, "0", bbox={"boxstyle": "round,pad=0.2", "fc": ORANGE, "ec": "#666666"}, fontsize=6.5)
    board.note(52, 22.5, "0: a 1 x 1 convolution that begins at zero; what comes out is added to what the way up reads")
    board.note(1, 3.5, "on its way in: eight convolutions,\nthe last of them zero, too", ha="left")
    board.show(
        "Diagram: a ControlNet, a copy of the U-Net's way down, reads the condition; its maps go through convolutions "
        "that begin at zero and are added to what the U-Net's way up reads"
    )
