"""What the help of each command says below its flags."""

PROGRAM = "python -m uniportrait_lite"

EPILOG = f"""\
examples:
  {PROGRAM} demo
      the people in data/faces, each in four portraits: outputs/portraits.png
  {PROGRAM} portrait --face data/faces/ann.png --prompt "a portrait of a woman in the snow" --out ann.png
      one portrait of your own wording
  {PROGRAM} compare data/faces/ann.png ann.png
      how alike the judge finds the two

`{PROGRAM} COMMAND --help` explains each command.
"""

PORTRAIT = f"""\
What happens: the face is found and aligned, an ID embedding is made of it, and the diffusion model listens to it beside
the prompt. The prompt says all that should differ from the reference: hat, glasses, clothes, expression, place, style.

examples:
  {PROGRAM} portrait --face ann.png --prompt "a smiling woman with a red beret" --out out.png
  {PROGRAM} portrait --face ann_1.png --face ann_2.png --prompt "a woman, comic style" --out out.png
      two references of the same person hold more of them than one
  {PROGRAM} portrait --face crowd.png --which largest --prompt "a man at the beach" --out out.png
      a picture with several faces: the largest one, or a number from left to right, from 0
  {PROGRAM} portrait --face ann.png --prompt "a woman" --num-images 4 --out out.png
      out_1.png to out_4.png, which differ in their noise
  {PROGRAM} portrait --face ann.png --and bob.png --prompt "two people in the park" --out both.png
      two people in one picture; --distinct draws again where someone is missing or there twice
"""

COMPARE = f"""\
The judge is a face recogniser that conditions nothing, and scores every portrait of the project: no network that draws
was trained with it. 1 is the same picture, 0 is as alike as strangers;
two pictures of the same person, and of two people, come out as data/README.md says.

example:
  {PROGRAM} compare data/faces/ann.png data/faces/ann_2.png
"""

DEMO = f"""\
The picture has a row for each person: the reference, then the portraits. The table says how alike each portrait is to
its reference and, for comparison, to the other people's.

examples:
  {PROGRAM} demo
  {PROGRAM} demo --faces my_faces --out outputs/mine.png --seed 3
"""

GALLERY = f"""\
Portraits, styles, pairs, triples, mixtures of two people, and the portraits that are least alike, with similarities.
Seeds are fixed: the same weights draw the same pictures.

example:
  {PROGRAM} gallery
"""

PRETRAIN = f"""\
Each recipe draws its own data (nothing is downloaded), trains, and writes into data/tiny with a record of settings,
steps, seconds, curve and metrics. Stopped at any moment, the same command goes on from its last checkpoint in runs/.
`all` runs them in the order in which they need each other. Any setting of a recipe is a flag (--settings lists them).

examples:
  {PROGRAM} pretrain vae --settings
  {PROGRAM} pretrain vae --hours 0.5
  {PROGRAM} pretrain unet --steps 200 --out runs/try --folder runs/try/sd
      a short try that leaves data/tiny as it is
  {PROGRAM} pretrain all
"""

WEIGHTS = f"""\
The recipes of `pretrain all`, then both stages of `train`, then the page about them. Stopped at any moment, or carried
to another machine with the folder runs/, the same command goes on. With --hours each part gets its share of them in
place of its number of steps; drawing pictures, measuring, and the distillation of words that the single-ID stage begins
with (nine minutes of a core) come on top. On a GPU batches fill it where profile.yaml sets none. The weights in the
profile's folder are replaced one by one: until the last part is done they do not belong together.

With --onward the base model, the decoder, both stages, ControlNets and IP-Adapter go on from the weights that are there
(the style LoRA, which is short, begins anew).

A profile of your own is a folder with two files, both optional:
  profile.yaml   settings by part, as `unet: {{steps: 4000, widths: [32, 64, 96]}}`; see `pretrain NAME --settings` and
                 `train STAGE --help` for their names
  world.py       drawings of your own: a function group(people, seed, **fixed), see uniportrait_lite/toyworld/worlds.py

examples:
  {PROGRAM} weights --hours 8
  {PROGRAM} weights --onward --hours 1
  {PROGRAM} weights --profile ./my_world
  {PROGRAM} evaluate identity --profile ./my_world
"""

TRAIN = f"""\
stages:
  single_id   the ID embedding, its attention layers and a LoRA learn to draw any one person
  multi_id    after it: routers and a second LoRA learn to draw several people, each in their own face

examples:
  {PROGRAM} train single_id --profile tiny
  {PROGRAM} train multi_id --profile tiny
  {PROGRAM} train single_id --help
      every setting of the stage; a YAML file of settings is --config FILE
"""

EVALUATE = f"""\
protocols:
  identity   people whom no network was trained on: how alike portraits are to their references, how well prompts are
             followed, beside the ceiling (real pictures), the floor (other people) and the ablations
  people     the same people in groups of two to five: who is there, who is missing, who is like whom, beside the ways
             without a router, and masks
  compose    the same people beside ControlNets, and in pictures that there are: what each tool costs identity, and
             identity the tool
  stack      the networks below: judge, detector, autoencoder and text to image, beside the project's goals
  schedulers identity and prompt following against steps, for the usual samplers
  speed      seconds to the first and to each further portrait, and memory, beside the project's goals
  operations what identities cost the U-Net of Stable Diffusion 1.5, counted: no weights are needed

examples:
  {PROGRAM} evaluate identity --profile tiny
  {PROGRAM} evaluate speed
  {PROGRAM} evaluate identity --help
"""

FETCH = f"""\
What is downloaded: Stable Diffusion 1.5 in half precision, the published UniPortrait, IP-Adapter with CLIP ViT-H, and
insightface's buffalo_l; 6.3 GB in all. Repositories of the Hugging Face Hub go into its cache (HF_HOME), where a
download that was broken off goes on, insightface's models into ~/.insightface. What is there already stays.

Licences: Stable Diffusion 1.5 CreativeML Open RAIL-M; UniPortrait and IP-Adapter Apache-2.0, CLIP ViT-H MIT;
insightface's models are for non-commercial research only.

examples:
  {PROGRAM} fetch sd15
  {PROGRAM} fetch sd15 --base SG161222/Realistic_Vision_V5.1_noVAE
      another base: any Stable Diffusion 1.5 checkpoint in diffusers' layout
"""

DOCTOR = f"""\
Says versions, the device, which files of the profiles tiny and sd15 are there and which are missing, and what will run.

examples:
  {PROGRAM} doctor
  {PROGRAM} doctor --base ./realistic.safetensors --weights ./models
"""

REHEARSE = f"""\
Writes all files of the profile in their published layouts, with random weights, then loads them as the published ones
are loaded and draws one, two and three people: whether this machine can do it, in which time and memory. The pictures
are noise. Nothing is downloaded. Of full size the files take 4.2 GB.

examples:
  {PROGRAM} rehearse sd15 --out outputs/rehearsal --small
      narrow networks, in seconds
  {PROGRAM} rehearse sd15 --out outputs/rehearsal
      as large as the published ones; a GPU is advised
"""
