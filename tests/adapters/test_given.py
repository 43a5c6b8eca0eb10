"""A LoRA as it is said: on the command line, from Python and in a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from tintype import strict_json
from tintype.adapters.facts import Lora, LoraFacts
from tintype.adapters.few_steps import FewSteps, few_steps_of
from tintype.adapters.files import open_adapter
from tintype.adapters.given import open_loras, parse_lora, split_tags
from tintype.bounds import MAX_LORAS
from tintype.errors import LoraError

SAID = {
    "a.safetensors": Lora(file="a.safetensors"),
    "a.safetensors=0.8": Lora(file="a.safetensors", weight=0.8),
    "a=b.safetensors=-1.5": Lora(file="a=b.safetensors", weight=-1.5),
    "a@1.safetensors=.5@0.2-0.7": Lora(file="a@1.safetensors", weight=0.5, start=0.2, stop=0.7),
    "C:/x/a.safetensors=1,down=0.5,up.3=0,text=-1": Lora(
        file="C:/x/a.safetensors", parts={"down": 0.5, "up.3": 0.0, "text": -1.0}
    ),
    "a.safetensors=0@0-0.5,mid=2": Lora(file="a.safetensors", weight=0.0, stop=0.5, parts={"mid": 2.0}),
}


@pytest.fixture
def path(tmp_path):
    tensors = {"unet.x.lora_A.weight": np.ones((1, 2), np.float32), "unet.x.lora_B.weight": np.ones((2, 1), np.float32)}
    save_file(tensors, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


@pytest.mark.parametrize("text", SAID)
def test_what_is_typed(text):
    assert parse_lora(text) == SAID[text]


def test_from_python_a_file_may_have_a_weight_beside_it(path):
    assert parse_lora((path, 0.5)) == Lora(file=path, weight=0.5)
    assert parse_lora(path) == Lora(file=path)
    assert [lora.facts.weight for lora in open_loras([(path, np.float32(0.5)), str(path)])] == [0.5, 1.0]
    assert len(open_loras(path)) == 1


def test_a_file_that_is_called_so_is_that_file(path):
    odd = path.with_name("one=0.5")
    odd.write_bytes(path.read_bytes())
    assert parse_lora(str(odd)) == Lora(file=str(odd))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "is no LoRA"),
        ([("a", 1.0, 2)], "is no LoRA"),
        ([None], "is no LoRA"),
        ("PATH=101", "the weight"),
        ("PATH=1@0.7-0.2", "never counts"),
        ("PATH=1@0.5-1.5", "the stop"),
        ([("PATH", "strong")], "the weight"),
        ([("PATH", float("nan"))], "the weight"),
        ([("PATH", True)], "the weight"),
        ([Lora(file="PATH", parts={"left": 1.0})], "no part of a model"),
        ([Lora(file="PATH", parts={"mid": float("inf")})], "the factor of mid"),
        (["PATH"] * (MAX_LORAS + 1), f"{MAX_LORAS} are the most"),
        ("nowhere.safetensors=0.5", "cannot be read"),
        ("PATH=strong", "'strong' behind the LoRA PATH says no weight"),
        ("PATH=1e3", "'1e3' behind the LoRA PATH says no weight"),
        ("PATH=0.8,left=0.3", "'0.8,left=0.3' behind"),
    ],
)
def test_what_makes_no_sense_is_refused(path, given, words):
    def placed(each):
        if isinstance(each, Lora):
            return Lora(file=str(path), weight=each.weight, parts=each.parts)
        if isinstance(each, tuple):
            return (placed(each[0]), *each[1:])
        return each.replace("PATH", str(path)) if isinstance(each, str) else each

    wanted = [placed(each) for each in given] if isinstance(given, list) else placed(given)
    with pytest.raises(LoraError) as refusal:
        open_loras(wanted)
    assert words.replace("PATH", str(path)) in refusal.value.message


def test_facts_survive_a_record(path):
    (lora,) = open_loras(f"{path}=0.25@0.1-0.9,down=0.5,mid=0.000001,text=-3")
    assert lora.facts.parts == "down=0.5,mid=0.000001,text=-3"
    assert strict_json.read(LoraFacts, strict_json.parse(strict_json.dump(strict_json.plain(lora.facts)))) == lora.facts


def test_the_closest_part_counts():
    facts = LoraFacts(name="a", sha256="0" * 64, weight=1.0, parts="unet=0.1,down=0.2,down.1=0.3,mid=0.4,text=0.5")
    places = {
        "down_blocks.0.attentions.0.proj_in": 0.2,
        "down_blocks.1.resnets.0.conv1": 0.3,
        "down_blocks.11.resnets.0.conv1": 0.2,
        "mid_block.resnets.0.conv1": 0.4,
        "up_blocks.1.resnets.0.conv1": 0.1,
        "conv_in": 0.1,
    }
    assert {name: facts.factor("denoiser", name) for name in places} == places
    assert facts.factor("text_encoder", "encoder.layers.0.self_attn.q_proj") == 0.5


def test_a_prompt_names_loras_of_a_folder(path):
    folder = path.parent
    prompt, loras = split_tags("a house <lora:one:0.5>, red <lora:one>", folder)
    assert prompt == "a house , red"
    assert loras == [Lora(file=path, weight=0.5), Lora(file=path)]
    assert split_tags("a house", None) == ("a house", [])
    (folder / "below").mkdir()
    (folder / "below/one.safetensors").write_bytes(path.read_bytes())
    for text, where, words in (
        ("<lora:one:1>", None, "no folder is given"),
        ("<lora:two:1>", folder, "no LoRA 'two'"),
        ("<lora:../one:1>", folder, "no LoRA '../one'"),
        ("<lora:one:strong>", folder, "no number"),
        ("<lora:one:1>", folder, "2 LoRAs called 'one'"),
        ("<lora:one:1>", folder / "gone", "no folder"),
    ):
        with pytest.raises(LoraError, match=words.replace("(", r"\(")):
            split_tags(text, where)


NAMES = {
    "lcm-lora-sdv1-5": FewSteps("LCM", 4, "lcm", None),
    "sdxl_lightning_8step_lora": FewSteps("Lightning", 8, "euler", "trailing"),
    "Hyper-SDXL-1step-lora": FewSteps("Hyper-SD", 1, "tcd", None),
    "Hyper-SD15-4steps-lora": FewSteps("Hyper-SD", 4, "ddim", "trailing"),
    "Hyper-SDXL-8steps-CFG-lora": FewSteps("Hyper-SD", 8, "ddim", "trailing", 5.0),
    "TCD-SD15-LoRA": FewSteps("TCD", 4, "tcd", None),
    "add_detail": None,
    "footsteps": None,
    "calcmini": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_few_step_loras_are_known_by_their_names(path, name):
    named = path.with_name(f"{name}.safetensors")
    named.write_bytes(path.read_bytes())
    assert few_steps_of(open_adapter(named)) == NAMES[name]


def test_on_the_hub_the_folder_has_the_name(path):
    folder = path.with_name("lcm-lora-sdxl")
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(path.read_bytes())
    found = few_steps_of(open_adapter(folder / "pytorch_lora_weights.safetensors"))
    assert found == NAMES["lcm-lora-sdv1-5"]
