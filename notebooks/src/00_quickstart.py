# %% [markdown]
# # Quickstart: faces in, portraits out
#
# Two minutes on two CPU cores, under 2 GB of memory, no GPU and no network.
#
# **You will** give the model one picture of a face it was never trained on, and get portraits of that person: smiling,
# in a hat, as a comic. Then you will turn every knob once, walk from one person to another, put two and three people
# into one picture, and play.
#
# **You need** this project's environment (`make lab` opens this page in it) and a little Python.
#
# The method is UniPortrait ([He, Geng and Bo 2024](https://arxiv.org/abs/2408.05939)). Its world here is a drawn one,
# of 128 x 128 pixels, in which everything is small enough for a laptop, and every network was trained by this project.

# %%
import ipywidgets as widgets
import numpy as np
import torch

import uniportrait_lite as upl
from uniportrait_lite.evaluation import face_similarity
from uniportrait_lite.learn import viz
from uniportrait_lite.pictures import tinted
from uniportrait_lite.toyworld import Person, group

up = upl.load(PROFILE)
print(type(up.pipe).__name__, "with a", type(up.unet).__name__)

# %% [markdown]
# `up.pipe` is an ordinary pipeline of the diffusers library. `up` teaches it to know people.
#
# ## Faces in
#
# Four people. None of the networks has ever seen them. Each has a second picture, for later.

# %%
folder = upl.profiles.data_folder("tiny").parent / "faces"
pictures = {name: folder / f"{name}.png" for name in ("ann", "bob", "cleo", "dan")}
second = {name: folder / f"{name}_2.png" for name in pictures}

viz.show(list(pictures.values()), list(pictures))

# %% [markdown]
# ## Find the face
#
# insightface, with a detector trained on drawn faces, finds the box and five landmarks: eyes, nose, corners of the
# mouth. The **crop** is turned and scaled so
# that the landmarks lie where face networks expect them. What lies outside of it plays no part from here on.

# %%
faces = upl.faces.detect(pictures["ann"])
viz.show([viz.marked(pictures["ann"], faces), faces[0].crop], ["found", "the crop"])
print(len(faces), "face, a crop of", faces[0].crop.size)

# %% [markdown]
# A picture with several faces is a question, and the error asks it. `face=` answers.

# %%
friends = group([Person.random(2_000_001), Person.random(2_000_002)], seed=1, style="photo", hat="none").image
try:
    up.identity(friends)
except upl.SeveralFacesError as question:
    print(question)
crops = [up.identity(friends, face=number).crops[0] for number in (0, 1)]
viz.show([friends, *crops], ["two friends", "face=0", "face=1"])

# %% [markdown]
# ## From a face to 16 tokens
#
# `up.identity` turns a crop into an **identity**. All the diffusion model will ever know of Ann are 16 vectors, the
# **ID tokens**. They are as wide as the tokens of a prompt, as the model reads both with cross-attention.

# %%
people = {name: up.identity(picture) for name, picture in pictures.items()}
ann = people["ann"]
print("ID tokens:", tuple(up.tokens(ann).shape))

# %% [markdown]
# ## Portraits out
#
# The prompt says what the picture shows, the identity says who. Another seed, another picture.

# %%
prompt = "a portrait of a person, smiling, at the beach"
portraits = up(prompt, ann, seed=0, num_images=4).images
viz.show(portraits, [f"seed {seed}" for seed in range(4)])

# %% [markdown]
# The same prompt and the same noise without an identity give people whom the model makes up:

# %%
strangers = up(prompt, seed=0, num_images=4).images
viz.show(strangers, [f"seed {seed}" for seed in range(4)])

# %% [markdown]
# ## Is it Ann?
#
# Our eyes are kind. So another face recogniser, the **judge**, measures: it was trained on other people, and no network
# that makes pictures ever used it. 1 means the same picture. What to compare with: two real pictures of Ann (the
# ceiling), and pictures of other real people (the floor).


# %%
def alike(image, name):
    """How alike the judge finds a picture and a person's reference; 0, as strangers are in the mean, for no face."""
    try:
        return face_similarity(image, pictures[name])
    except upl.NoFaceError:
        return 0.0


portrait = np.mean([alike(image, "ann") for image in portraits])
stranger = np.mean([alike(image, "ann") for image in strangers])
ceiling = alike(second["ann"], "ann")
floor = np.mean([alike(pictures[name], "ann") for name in ("bob", "cleo", "dan")])
print(
    f"to Ann: another picture of her {ceiling:z.1f}, the portraits {portrait:z.1f}, the made-up people {stranger:z.1f},"
)
print(f"other real people {floor:z.1f} (of three; over many it is 0)")
print("portraits are more like Ann than made-up people are:", portrait > stranger)

# %% [markdown]
# ## Say it, and Ann does it
#
# Same person, same seed, another prompt. This is what "tuning-free" buys: no training for Ann, a second for a picture.

# %%
wishes = ["photo style", "laughing", "wearing a red top hat", "comic style"]
edited = [up(f"a portrait of a person, {wish}", ann, seed=5).images[0] for wish in wishes]
viz.show(edited, wishes)

# %% [markdown]
# Not all of it was asked for. Where a prompt names no place, that of the reference may come along, as its corners are
# in the crop, and so may glasses; a hat may come unasked. [01_face_features](01_face_features.ipynb) measures what ID
# features hold.

# %% [markdown]
# ## Four people, one prompt
#
# Each portrait is compared with all four references; the number is the similarity to its own.

# %%
prompt = "a portrait of a person, wearing a green sweater, in the snow"
drawn = {name: up(prompt, identity, seed=1).images[0] for name, identity in people.items()}
table = np.array([[alike(image, name) for name in pictures] for image in drawn.values()])
own = [f"{name}: {value:.2f}" for name, value in zip(drawn, table.diagonal(), strict=True)]
viz.show(list(drawn.values()), own)
others = table[~np.eye(4, dtype=bool)]
print("closer to the own reference than to the others', on average:", np.mean(table.diagonal()) > np.mean(others))

# %% [markdown]
# ## The knobs
#
# | knob | what it does | low | high | here |
# | --- | --- | --- | --- | --- |
# | `id_scale` | weight of the ID tokens beside the prompt's | anybody | the person, prompts obeyed less | 1 |
# | `structure_scale` | weight of the reference's fine structure, pose and expression included | freer | closer | 1 |
# | `guidance` | how far to go from "nobody, no prompt" to this person and prompt | vague | strong, overdone | 3 |
# | `steps` | denoising steps | fast, a little rough | slow, no better | 8 |
#
# One function for all four: it turns one knob, and leaves the others at these defaults. (One picture each: differences
# of a tenth say nothing.)


# %%
def turn(knob, values, name="bob", prompt="a portrait of a person, looking surprised, in the park"):
    """Portraits with one knob at each of the values, and how alike they are to the reference."""
    images = [up(prompt, people[name], seed=2, **{knob: value}).images[0] for value in values]
    scores = [alike(image, name) for image in images]
    viz.show(images, [f"{knob} {value}: {score:.2f}" for value, score in zip(values, scores, strict=True)])
    return images, scores


images, scores = turn("id_scale", [0, 0.4, 0.7, 1.0])
print("more like Bob at 1 than at 0:", scores[-1] > scores[0])

# %% [markdown]
# At 0 the tokens are not read at all, and we get whoever the model likes.

# %%
images, scores = turn("structure_scale", [0, 0.3, 0.6, 1.0])
print("changed by structure:", not np.array_equal(images[0], images[-1]))

# %% [markdown]
# At 0 only the **intrinsic** features speak: what a face recogniser keeps of a face, free of pose and expression. The
# **structure** features add shallow, detailed ones. During training they are often dropped (DropToken and DropPath), so
# that the model does not lean on them and copy the reference. Here the knob changes little: drawings tempt less to copy
# than photographs do.

# %%
images, scores = turn("guidance", [1.0, 2.0, 3.0, 8.0])

# %%
images, scores = turn("steps", [2, 4, 8, 16])
print("more like Bob in 8 steps than in 2:", scores[2] > scores[0])

# %% [markdown]
# Each number of steps makes a picture of its own, as every step adds some new noise before it takes more away.

# %% [markdown]
# ## Two references of one person
#
# A list of pictures makes one identity. Their features simply stand one after another, and the ID embedding reads all.

# %%
both = up.identity([pictures["dan"], second["dan"]])
prompt = "a portrait of a person, wearing a blue suit, in the city"
one = up(prompt, people["dan"], seed=3, num_images=2).images
two = up(prompt, both, seed=3, num_images=2).images
viz.show([pictures["dan"], *one], ["the reference", *(f"one: {alike(image, 'dan'):.2f}" for image in one)])
viz.show([second["dan"], *two], ["the second", *(f"two: {alike(image, 'dan'):.2f}" for image in two)])
# Both are compared with the first picture, which is all that "one" has seen: 02_id_embedding takes a third for judge.
lengths = [identity.parts[0][1].intrinsic.shape[1] for identity in (people["dan"], both)]
print("intrinsic features of one reference and of two:", lengths)

# %% [markdown]
# ## From Ann to Bob
#
# `ann.mix(bob, t)` lies on the straight line between their ID tokens.

# %%
amounts = [0, 0.25, 0.5, 0.75, 1]
walk = [up("a photo of a person, smiling", ann.mix(people["bob"], t), seed=4).images[0] for t in amounts]
viz.show(walk, [f"{t:.0%} Bob" for t in amounts])
print("more like Bob at the end than at the start:", alike(walk[-1], "bob") > alike(walk[0], "bob"))
print("and less like Ann:", alike(walk[-1], "ann") < alike(walk[0], "ann"))

# %% [markdown]
# ## Two and three together
#
# Several identities in one picture: each should get a face of their own, though the prompt does not say where. In every
# cross-attention layer a small **router** decides, for each place of the picture, whose ID tokens it listens to. Noise
# alone does not say who is where, so at first, for 0.8 of the denoising by default (`columns`), everyone keeps to a
# column of the picture, the first person to the left; then the routers decide. The tinted copies show what they
# decided, in the mean of the layers of the U-Net's way up: red listens to the first person, blue to the second, green
# to the third.

# %%
for prompt, names in (
    ("two people at the beach, all smiling", ["ann", "bob"]),
    ("three friends in the park", ["bob", "cleo", "dan"]),
):
    group_picture = up(prompt, [people[name] for name in names], seed=2, routing=True)
    image, routing = group_picture.images[0], group_picture.routing
    maps = routing.mean("up_blocks", routing.routed)[0]
    viz.show([image, tinted(image, maps)], [" and ".join(names), "who listens where"])
    print("the shares of a place add up to 1:", bool(torch.allclose(maps.sum(0), torch.ones(maps.shape[1:]))))

# %% [markdown]
# So drawn, all but one of 210 pictures of pairs and all of 80 of triples had everyone once (the README has the table).
# Without the columns (`columns=0`, the paper's way) somebody is there twice, or not at all, in a sixth of the pairs and
# in more than half of the triples. `distinct=True` finds the faces, matches them with the people, and draws again where
# that happened, everyone kept to a region of their own.

# %%
trio = [people[name] for name in names]
alone = up(prompt, trio, seed=2, columns=0).images[0]
checked = up(prompt, trio, seed=2, columns=0, distinct=True)
viz.show([alone, checked.images[0]], ["without columns", f"distinct, drawn again: {checked.tries[0]}"])
print("everyone there once, at first and now:", up.assignment(alone, trio).distinct, checked.assignment[0].distinct)

# %% [markdown]
# `masks=` says who is where, in the routers' place: boxes in pixels (left, top, right, bottom), or arrays of the
# picture's shape, one for each person. Then there is nothing to choose, and the routing is the masks.

# %%
pair = [people["ann"], people["dan"]]
left, right = (0, 0, 96, 128), (96, 0, 192, 128)
told = [up("two people in the city", pair, seed=3, masks=x, routing=True) for x in ([left, right], [right, left])]
viz.show([drawing.images[0] for drawing in told], ["ann left, dan right", "dan left, ann right"])
halves = [drawing.routing.mean()[0, 0].chunk(2, dim=1) for drawing in told]  # of ann: her map's left and right
print("ann has the left half, then the right:", [[float(half.mean().round()) for half in both] for both in halves])
try:
    up("two people in the city", pair, masks=[left])
except upl.ConfigError as error:
    print(error)

# %% [markdown]
# ## Play
#
# Move the controls (a second for a picture). On a page where nothing runs, you see the picture of their first values.


# %%
def play(name, wish, id_scale, seed):
    """One portrait by the values of the controls."""
    return up(f"a portrait of a person, {wish}", people[name], id_scale=id_scale, seed=seed).images[0]


viz.live(
    play,
    name=widgets.Dropdown(options=list(people), description="person"),
    wish=widgets.Dropdown(options=[*wishes, "watercolour style", "looking sad, noir style"], description="prompt"),
    id_scale=widgets.FloatSlider(1.0, min=0, max=1.5, step=0.1, description="ID scale", continuous_update=False),
    seed=widgets.IntSlider(7, min=0, max=99, description="seed", continuous_update=False),
)

# %% [markdown]
# ## It is all diffusers
#
# `up(...)` is short for a call of the pipeline `using` an identity. Any pipeline with the same U-Net, image to image or
# inpainting, can be called so. Outside of it the pipeline is what it always was, and after `up.detach()` nothing of
# ours is left in it.

# %%
prompt = "a portrait of a person, in the mountains"
settings = up.config.defaults
with up.using(ann):
    by_hand = up.pipe(
        prompt,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=torch.Generator("cpu").manual_seed(6),
    ).images[0]
by_up = up(prompt, ann, seed=6).images[0]
viz.show([by_hand, by_up], ["by hand", "by up(...)"])
print("largest difference of a pixel:", np.abs(np.asarray(by_hand, int) - np.asarray(by_up, int)).max())

# %% [markdown]
# ## What this scale cannot show
#
# * Drawn faces differ in dozens of ways, real ones in thousands. The method is the same; the numbers are not.
# * The model knows the words of its world, about 320 (`uniportrait_lite/toyworld/wording.py`), and no others.
#
# ## In six lines
#
# 1. A face is found, aligned, and turned into 16 ID tokens.
# 2. The frozen diffusion model reads them beside the prompt, through cross-attention of their own.
# 3. The prompt decides the rest: expression, hat, place, style.
# 4. `id_scale` trades likeness against freedom, `structure_scale` details against the reference's pose and expression.
# 5. Routers give each place of the picture to one of several people.
# 6. A judge who took no part in the making says how alike a portrait is.
#
# **Next:** [01_face_features](01_face_features.ipynb), what identity is made of, and then piece by piece the rest of
# the method. Or your own pictures of drawn people: `uniportrait_lite.toyworld.portrait` draws them.
