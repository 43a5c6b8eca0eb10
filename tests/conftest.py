"""What every test may use: a checkpoint with random weights, and the bundle that the exporter makes of it.

The checkpoint has the shape of Stable Diffusion 1.x, small: CLIPTextModel, UNet2DConditionModel and an AutoencoderKL
of factor 4, so that nothing can rely on 8. There is one of the shape of Stable Diffusion XL too. All lie in pytest's
cache, since tracing takes its time: each is exported once for all tests, all workers and later runs. Builds are made
anew by each run of the tests, in a cache that its workers share; a test of the cache itself takes an empty one. What
tracing gives is known beforehand (see `traces`); a test of tracing itself takes an empty cache too.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import prepared
import pytest
import threads_that_sleep
import traces
from inpainting import save_inpainting_checkpoint

if TYPE_CHECKING:
    from tintype.engine import Target

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # a test's module may import onnxruntime before anything of ours
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a thousand processes would each compile all that they import
sys.dont_write_bytecode = False

CAPTIONS = (
    "a red sailboat on a calm sea at sunset",
    "a blue house in front of the mountains, clear sky, at noon",
    "a small yellow tent in the snow at night, on the left",
    "a windmill on green hills in the rain",
)


if "PYTEST_XDIST_WORKER" in os.environ:  # torch takes a thread a core, and the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    threads_that_sleep.make_threads_sleep()

gc.disable()  # until all is imported


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What draws with a checkpoint waits for its export and its builds."""
    for item in items:
        if "_tiny" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What test modules imported stays: the garbage collector need not look through a million objects of it."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])  # as in the command


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this run alone, that workers of pytest-xdist share; at first it has nothing but known structures."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    traces.unpack(folder / "tintype-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINTYPE_CACHE", str(folder / "tintype-cache"))
        patch.setenv("TINTYPE_MODELS", str(folder / "tintype-models"))  # an empty library
        patch.setenv("TINTYPE_CREDENTIALS", "none")  # whole files are compared, and no two signatures are the same
        yield


@pytest.fixture(scope="session", autouse=True)
def _prepared_children() -> Iterator[None]:
    """Child processes that make builds have imported already what they import; see `prepared`."""
    if sys.platform != "linux":
        yield
        return
    from tintype.engine.build import child

    begun, children = child.start, prepared.PreparedChildren()

    def start(module: str, environment: Mapping[str, str] | None) -> Any:
        return (children.start if module.startswith(prepared.PREFIX) else begun)(module, environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "start", start)
        yield
    children.close()


def _without_builds(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Set a cache without a build; how long kernels take is known there as far as other tests timed them."""
    times = Path(os.environ["TINTYPE_CACHE"]) / "costs"
    times.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    (folder / "costs").symlink_to(times, target_is_directory=True)
    patch.setenv("TINTYPE_CACHE", str(folder))
    return folder


@pytest.fixture
def no_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without a build, for one test."""
    return _without_builds(tmp_path / "no-builds", monkeypatch)


@pytest.fixture(scope="module")
def cache_to_harm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of one module's own: what the others share is never damaged under them."""
    with pytest.MonkeyPatch.context() as patch:
        yield _without_builds(tmp_path_factory.mktemp("harmed") / "cache", patch)


@pytest.fixture(scope="session")
def usable_target() -> Callable[[str], Target]:
    """A target by its name. A test of one that can't be used here is skipped; TINTYPE_REQUIRE_WEBGPU=1 fails it."""
    from tintype.engine.device.providers import TARGETS, unusable_reason

    def usable(name: str) -> Target:
        reason = unusable_reason(TARGETS[name])
        if reason is not None and os.environ.get(f"TINTYPE_REQUIRE_{name.upper()}", "0") == "1":
            pytest.fail(f"{name} has to work here, and does not: {reason}")
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        return TARGETS[name]

    return usable


@pytest.fixture(scope="session")
def tiny_checkpoint(_tiny: Path) -> Path:
    """A diffusers folder: StableDiffusionPipeline with random weights, about a million parameters, 64 px pictures.

    Read only: the next run of the tests uses it again.
    """
    return _tiny / "checkpoint"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, export_once: Callable[..., Path]) -> Path:
    """The fp32 bundle of `tiny_checkpoint`. Read only: copy it to change it."""
    return export_once("tiny", tiny_checkpoint, precision="fp32", prompts=CAPTIONS)


@pytest.fixture(scope="session")
def four_bit_bundle(tiny_checkpoint: Path, export_once: Callable[..., Path]) -> Path:
    """The int4 bundle of `tiny_checkpoint`, chosen on few calls. Read only: copy it to change it."""
    from tintype.export import Effort

    effort = Effort(steps=2, calibration_prompts=1, gate_prompts=1, gate_calls=2, latent_size=8, damage_seconds=1.0)
    return export_once("tiny-int4", tiny_checkpoint, precision="int4", prompts=CAPTIONS, effort=effort)


@pytest.fixture(scope="session")
def distilled_bundle(
    tiny_checkpoint: Path, export_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The fp32 bundle of `tiny_checkpoint` as if it was distilled to 4 steps: its UNet predicts half. Read only."""
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("distilled") / "distilled"))
    (file,) = (folder / "unet").glob("*.safetensors")
    weights = load_file(file)
    save_file({**weights, "conv_out.weight": weights["conv_out.weight"] * 0.5}, file)
    return export_once("tiny-distilled", folder, precision="fp32", prompts=CAPTIONS, few_steps=4)


@pytest.fixture(scope="session")
def fast_bundle(tiny_bundle: Path, distilled_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bundle` with the denoiser of `distilled_bundle` as its fast one. Read only: copy it to change it."""
    from tintype.export import add_fast

    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("fast") / "tiny"))
    add_fast(folder, distilled_bundle)
    return folder


@pytest.fixture(scope="session")
def xl_checkpoint(_tiny: Path) -> Path:
    """A diffusers folder: StableDiffusionXLPipeline with random weights, 64 px pictures. Read only."""
    return _tiny / "xl-checkpoint"


@pytest.fixture(scope="session")
def xl_bundle(xl_checkpoint: Path, export_once: Callable[..., Path]) -> Path:
    """The fp32 bundle of `xl_checkpoint`. Read only: copy it to change it."""
    return export_once("tiny-xl", xl_checkpoint, precision="fp32", prompts=CAPTIONS)


@pytest.fixture(scope="session", params=["sd", "xl"])
def inpainting_checkpoint(request: pytest.FixtureRequest, _tiny: Path) -> Path:
    """Diffusers folders: StableDiffusionInpaintPipeline and its XL sibling with random weights. Read only."""
    return _tiny / {"sd": "inpainting-checkpoint", "xl": "xl-inpainting-checkpoint"}[request.param]


@pytest.fixture(scope="session")
def inpainting_bundle(inpainting_checkpoint: Path, export_once: Callable[..., Path]) -> Path:
    """The fp32 bundle of `inpainting_checkpoint`. Read only: copy it to change it."""
    name = inpainting_checkpoint.name.replace("checkpoint", "tiny")
    return export_once(name, inpainting_checkpoint, precision="fp32", prompts=CAPTIONS)


@pytest.fixture(scope="session")
def export_once(_tiny: Path) -> Callable[..., Path]:
    """Export a checkpoint, by what the bundle is to be called and `export_bundle`'s options, where no test did before.

    Whoever comes later, in another worker or another run, gets the same folder. Read only.
    """

    def exported(name: str, checkpoint: Path, **options: Any) -> Path:
        from tintype.export import export_bundle
        from tintype.export.checkpoint import open_checkpoint

        opened = open_checkpoint(checkpoint, options.get("options"))
        facts = json.dumps([opened.sha256(), options], sort_keys=True, default=repr)
        folder = _tiny / hashlib.sha256(facts.encode()).hexdigest()[:16] / name
        folder.parent.mkdir(exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                gc.freeze()  # an export collects garbage after each graph, and torch alone is a million objects
                export_bundle(checkpoint, folder, **options)
        return folder

    return exported


@pytest.fixture(scope="session")
def _tiny(pytestconfig: pytest.Config) -> Path:
    """A folder in pytest's cache, of this exporter, this checkpoint and these versions; two runs may share it."""
    assert pytestconfig.cache is not None
    digest = hashlib.sha256("\n".join(map(inspect.getsource, _SAVERS)).encode())
    sources = Path(__file__).parents[1]
    exporters = [*(sources / "export").rglob("*.py"), *(sources / "kernels").glob("*.py")]
    beside = ("controlnet", "t2i_adapter", "one_graph", "image_encoder")
    exporters += [sources / f"runtime/bundle/{name}.py" for name in ("manifest", "bundle", *beside)]
    for source in sorted(exporters):
        digest.update(source.read_bytes())
    for distribution in ("torch", "diffusers", "transformers", "tokenizers", "onnx", "onnxscript"):
        digest.update(metadata.version(distribution).encode())
    folder = pytestconfig.cache.mkdir("tiny") / digest.hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(folder / "checkpoint.lock"):
        for name, save in (
            ("checkpoint", _save_checkpoint),
            ("xl-checkpoint", _save_xl_checkpoint),
            ("inpainting-checkpoint", _save_inpainting("checkpoint", folder)),
            ("xl-inpainting-checkpoint", _save_inpainting("xl-checkpoint", folder)),
        ):
            if not (folder / name).is_dir():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    save(Path(scratch) / name)
                    (Path(scratch) / name).rename(folder / name)
    return folder


def _save_inpainting(plain: str, folder: Path) -> Callable[[Path], None]:
    return lambda made: save_inpainting_checkpoint(folder / plain, made, _make_words_matter)


def _save_checkpoint(folder: Path) -> None:
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _clip_tokenizer(folder)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    _make_words_matter(unet)
    vae = _small_vae()
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _save_xl_checkpoint(folder: Path) -> None:
    """What XL has and 1.x hasn't: two text encoders, linear projections, several layers a block, sizes as inputs."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer(folder)
    tokenizer_2 = _clip_tokenizer(folder / "2", pad_token="!")
    torch.manual_seed(1)
    usual = {"vocab_size": len(tokenizer), "num_hidden_layers": 3, "num_attention_heads": 4}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            **usual,
            hidden_size=32,
            intermediate_size=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # The marks are as wrong as in the published config: the end of a text is then its highest id.
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text_encoder_2 = CLIPTextModelWithProjection(
        CLIPTextConfig(**usual, **marks, hidden_size=48, intermediate_size=96, hidden_act="gelu", projection_dim=40)
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=80,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 6 * 8,
        norm_num_groups=8,
    )
    _make_words_matter(unet)
    vae = _small_vae(scaling_factor=0.13025, force_upcast=True)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)


def _small_vae(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        **options,
    )


def _make_words_matter(unet: Any) -> None:
    """As in a trained model: its noise has a spread of 1, and the words make a difference."""
    import torch

    with torch.no_grad():
        unet.conv_out.weight *= 2.5
        for name, weight in unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                weight *= 2.0


def _clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer with merges from the captions; every byte is in its vocabulary, so any script can be said."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=400, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([caption.replace(",", " ,") for caption in CAPTIONS], trainer)
    pairs = json.loads(trained.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    source = folder.with_name("tokenizer-source")
    source.mkdir(parents=True)
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    (source / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (source / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad_token})
    )
    return CLIPTokenizer.from_pretrained(source, local_files_only=True)


_SAVERS = (
    _save_checkpoint,
    _save_xl_checkpoint,
    _small_vae,
    _make_words_matter,
    _clip_tokenizer,
    save_inpainting_checkpoint,
)


@pytest.fixture(scope="session")
def whole_and_in_parts() -> Callable[[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    """What one of postcard's graphs gives on a target, whole and in parts, for the same noise.

    Every node of every part has to be the target's own where it is heavy.
    """
    from tintype.bundle import open_bundle
    from tintype.engine import BuildOptions, open_role
    from tintype.engine.build.probe import random_inputs
    from tintype.engine.device.providers import TARGETS

    dims = {
        "text_encoder": {"batch": 1},
        "denoiser": {"batch": 2, "height": 8, "width": 8, "sequence": 77},
        "vae_decoder": {"batch": 1, "height": 16, "width": 16},
        "vae_encoder": {"batch": 1, "height": 64, "width": 64},
    }

    def run(name: str, role: str) -> tuple[dict[str, Any], dict[str, Any]]:
        target, bundle = TARGETS[name], open_bundle("postcard")
        cut = {"strip_bytes": 2**18} if role.startswith("vae") else {"segment_bytes": 2**20}
        whole, parts = (BuildOptions.for_shape(dims[role], exactness="exact", **way) for way in ({}, cut))
        with open_role(bundle, role, target, options=whole) as session:
            assert not session.is_in_parts
            inputs = random_inputs(session)
            expected = session.run(inputs)
        with open_role(bundle, role, target, options=parts) as session:
            assert session.is_in_parts
            found = session.run(inputs)
            assert session.placement.heavy_off(target.provider) == {}
            assert session.placement.nodes[target.provider]
        return expected, found

    return run


@dataclass(frozen=True)
class Kept:
    """What one process promised and took within a budget, in bytes; None was no budget."""

    budget: int | None
    plan: dict[str, Any]
    peak: int
    record: dict[str, Any]
    picture: Path


@pytest.fixture(scope="session")
def kept_budgets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Sequence[str]], list[Kept]]:
    """Pictures of postcard on a target, by its name, each in a process of its own, as only so a peak is one picture's.

    The first is without a budget, then come the smallest that is feasible and one that is large enough for everything.
    """
    folder = tmp_path_factory.mktemp("budgets")

    def tintype(*words: str, code: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tintype", *words, "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def made(name: str, asked: Sequence[str]) -> list[Kept]:
        common = ["--provider", name, *asked]
        whole = tintype("plan", "postcard", *common)
        least = tintype("plan", "postcard", *common, "--memory", "1MiB", code=1)["error"]["least_bytes"]
        budgets = (None, least, int(whole["plan"]["warm_bytes"] * 1.1))
        found = []
        for number, budget in enumerate(budgets):
            within = [] if budget is None else ["--memory", str(budget)]
            plan = tintype("plan", "postcard", *common, *within)
            path = folder / f"{name}-{number}.png"
            answer = tintype("generate", CAPTIONS[0], "--seed", "7", "-o", str(path), *common, *within)
            timings = answer["timings"]
            peak = timings["peak_rss_bytes"] + timings["device_bytes"]
            found.append(Kept(budget, plan["plan"], peak, answer["pictures"][0]["record"], path))
        return found

    return made
