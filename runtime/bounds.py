"""How much of what strangers made is read: every bound of a door in one place. SECURITY.md tells what each one guards.

Each is far above what real models and pictures have, and low enough that what is just within is refused or read within
a second and 500 MiB.
"""

from __future__ import annotations

# A bundle.
MAX_FILES = 10_000
MAX_DIMENSION_CHARS = 1000  # of the name of a dimension, which may be a sum: height/2
MAX_GRAPHS = 64  # of all roles and variants
MAX_ORIGIN_TEXTS = 32  # that say where a bundle's weights come from, and as many that say what was assumed of them
MAX_ORIGIN_CHARS = 2000  # of each

MAX_SKEWS = 64  # prompts of which it states what their pictures showed
MAX_SKEW_LABELS = 1000  # of each

# JSON of any kind.
MAX_JSON_DEPTH = 64  # objects and lists within one another
MAX_JSON_VALUES = 2**20

# Files, in bytes.
MAX_FILE_BYTES = 2**40  # any file of a bundle
MAX_MANIFEST_BYTES = 4 * 2**20  # tintype.json
MAX_SCHEDULER_BYTES = 4 * 2**20  # scheduler_config.json, with a beta a training timestep
MAX_TOKENIZER_BYTES = 8 * 2**20  # tokenizer.json; CLIP's has 4 MiB where it is indented
MAX_CONFIG_BYTES = 8 * 2**20  # any other JSON or text of a checkpoint
MAX_GRAPH_BYTES = 2**31  # an .onnx file, as protobuf bounds it; large weights lie beside it
MAX_GRAPH_FIELDS = 400_000  # of protobuf; the UNet of Stable Diffusion 1.5 has 56,000, one of 10 GB some 200,000
MAX_PICTURE_BYTES = 2**29  # as many pixels as are read, in the widest samples
MAX_HEADER_READS = 10_000  # of a picture's file before its size is known; a photograph takes some hundred
MAX_PICTURE_READS = 2**20  # and after it
MAX_LISTED_PARTS = 100_000  # of a picture's file, among which its content credentials are looked for
MAX_SIGNED_PARTS = 8192  # where they are checked: c2pa takes 0.1 ms for each; a photograph has some hundred
MAX_SIGNED_BYTES = 2**28  # of its file, which is hashed
MAX_CREDENTIALS_BYTES = 4 * 2**20  # of the credentials; those of a picture have some 4 KB, thumbnails 200 KB each
MAX_LATENTS_BYTES = 2**31
MAX_LATENTS_HEADER_BYTES = 50_000_000  # of safetensors, which reads twice as much; a record a picture stands there
MAX_NOISE_HEADER_BYTES = 512  # of a .npy, which numpy pads to 128; a stray quote costs it the cube of them
MAX_WEIGHTS_HEADER_BYTES = 16 * 2**20  # of a checkpoint's .safetensors; XL's has 350 KB, and trainers add to it
MAX_ADAPTER_BYTES = 2**31  # of a LoRA; XL's largest have 1.7 GB. It is read through once, a tensor at a time
MAX_CACHE_BYTES = 16 * 2**20  # a JSON file of the cache, which is the user's own
MAX_BUILD_FACTS_BYTES = 4 * 2**20  # what a build says of itself; XL's UNet, of a thousand layers, has some 700 KB
MAX_EXIF_BYTES = 4 * 2**20  # of a picture's comments; in a JPEG it can't have more than 64 KiB
MAX_PARAMETERS_CHARS = 2**18  # of A1111's text under a picture; both prompts at their bounds have half of that
MAX_GRAPH_NODES = 2000  # of ComfyUI's graph of a picture; large ones have some hundred
MAX_POLICY_BYTES = 2**20  # an operator's words
MAX_DECK_BYTES = 2**20  # an operator's deck
MAX_PROMPTS_BYTES = 2**22  # of a file of ordinary prompts
MAX_RECORD_BYTES = 2 * 2**20  # of JSON; both prompts, and the first as it was typed, have 1.2 MB at their bounds

# What is shown of a text, in characters.
MAX_MESSAGE_CHARS = 2000  # an error's message, and its fix
MAX_LINE_CHARS = 8000  # a line of the command; two paths of the greatest length fit

# LoRAs.
MAX_LORAS = 64  # of a request
MAX_ADAPTER_TENSOR_BYTES = 2**28  # the widest layer of XL, changed whole, has 52 MB in float32
MAX_LORA_RANK = 1024  # of all that change a layer together, while they are inputs of a graph
MAX_LORA_FOLDER = 100_000  # entries of the folder that names in a prompt are looked up in

# Image prompts.
MAX_IMAGE_PROMPTS = 16  # of one request, each of which is looked at
MAX_IMAGE_TOKENS = 1024  # of one picture, by an adapter or its image encoder; ViT-L at 336 pixels has 577
MAX_PROJECTION_WIDTH = 4096  # numbers of a token within Plus's projection, and of its queries; it has 1,280
MAX_PROJECTION_DEPTH = 16  # layers of it, which has 4
MAX_CROSS_ATTENTIONS = 512  # that an adapter is for; XL has 70
MAX_ENCODED_SIDE = 1024  # pixels of the square that an image encoder looks at; CLIP's have 224 to 336

# Words.
MAX_PROMPT_BYTES = 2**16  # of UTF-8, each of the two prompts; 32 chunks of ordinary words have 15,000
MAX_CONTROLS = 8  # ControlNets and T2I-Adapters of one request
MAX_EMBEDDINGS = 64  # files of textual inversion that a request brings
MAX_EMBEDDING_BYTES = 2**20 * 8  # of one; 75 vectors of XL have 600 KB
MAX_EMBEDDING_VECTORS = 1024  # of one word; a chunk of a prompt holds 75
MAX_EMBEDDING_WIDTH = 2**14
MAX_EMBEDDING_WORD_CHARS = 100
MAX_CALIBRATION_PROMPTS = 10_000  # that scores are held against; each is drawn
MAX_POLICY_LINES = 20_000
MAX_POLICY_LINE_CHARS = 1000  # a phrase has some ten words
MAX_DECK_GROUPS = 32  # of an operator's deck
MAX_DECK_WORDS = 10_000  # of all its groups: nouns, cards, and words that leave a prompt alone
MAX_POLICY_PATTERNS = 50  # each reads a prompt by itself, twice where it has letters that look like Latin ones

# tokenizer.json.
MAX_TOKENS = 2**19  # of a vocabulary, and ids; CLIP has 49,408 and T5 32,128
MAX_TOKENIZER_STEPS = 16  # of each kind, however they are nested
MAX_TOKENIZER_TEXT_CHARS = 256  # of a word, a pattern or a replacement
MAX_TOKENIZER_GROWTH = 4  # times, by replacements
