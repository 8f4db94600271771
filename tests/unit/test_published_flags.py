"""Flags that contradict a file of published weights, and files that are damaged or of another kind: one sentence each."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from published_dit import PublishedDiT
from published_edm import EDMNet
from published_openai import OpenAI, numbers

from diffusion.foreign.published import converted
from diffusion.support.errors import UserError

OPENAI = OpenAI(32, (1, 2), 1, (2,), num_classes=3)
EDM = EDMNet(16, 32, (1, 2), 1, (8,), label_dim=3)
DIT = PublishedDiT(8, 2, 3, 48, 2, 4, 5)
OPENAI_FLAGS = {"image_size": "32", "channel_mult": "1,2"}


def weights_for(reference) -> dict[str, torch.Tensor]:
    found = numbers(reference.shapes())
    found |= {name: reference.taps for name in found if name.endswith("resample_filter")}
    return found | ({"pos_embed": reference.positions(torch.float32)} if "pos_embed" in found else {})


def written(place: Path, weights: object) -> Path:
    torch.save(weights, place / "theirs.pt")
    return place / "theirs.pt"


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"num_channels": "64"}, "--num_channels 64 contradicts the tensors, which say 32"),
        ({"num_res_blocks": "2"}, "--num_res_blocks 2 contradicts the tensors, which say 1"),
        ({"channel_mult": "1,2,2"}, "--channel_mult 1,2,2 contradicts the tensors, which say 1,2"),
        ({"attention_resolutions": "32,16"}, "--attention_resolutions 32,16 contradicts the tensors, which say 16"),
        ({"learn_sigma": "False"}, "--learn_sigma False contradicts the tensors, which say True"),
        ({"class_cond": "no"}, "--class_cond no contradicts the tensors, which say True"),
        ({"use_scale_shift_norm": "0"}, "--use_scale_shift_norm 0 contradicts the tensors, which say True"),
        ({"resblock_updown": "True"}, "--resblock_updown True contradicts the tensors, which say False"),
        ({"image_size": "64", "channel_mult": ""}, "--image_size 64 goes with other widths than the tensors have, 1,2: say the size, or"),
        ({"num_heads": "5"}, "--num_heads 5 does not divide the 64 channels of an attention"),
        ({"num_head_channels": "48"}, "--num_head_channels 48 does not divide the 64 channels"),
        ({"num_heads_upsample": "2"}, "--num_heads_upsample other than --num_heads is not read"),
        ({"diffusion_steps": "4000"}, "say --rescale_timesteps True, improved-diffusion's usual value, or False, guided-diffusion's"),
        ({"diffusion_steps": "0"}, "--image_size 32 and --diffusion_steps 0 should be at least 1 and 2"),
        ({"noise_schedule": "sqrt"}, "--noise_schedule sqrt is not one of linear, cosine"),
        ({"timestep_respacing": "ddim30"}, "--timestep_respacing ddim30 should be a number of steps such as 250"),
        ({"num_channel": "32"}, "--num_channel is none of the flags .* did you mean --num_channels"),
        ({"lr": "1e-4"}, "--lr is none of the flags by which improved- or guided-diffusion describes a network"),
        ({"num_res_blocks": "one"}, "--num_res_blocks one should be a whole number"),
        ({"learn_sigma": "perhaps"}, "--learn_sigma perhaps should be True or False"),
        ({"dropout": "some"}, "--dropout some should be a number"),
        ({"channel_mult": "1;2"}, "--channel_mult 1;2 should be numbers with commas between them"),
    ],
    ids=str,
)
def test_openai_s_flags(flags, sentence, tmp_path):
    """Each of them alone is wrong: without it the file is read."""
    file = written(tmp_path, weights_for(OPENAI))
    assert converted(file, OPENAI_FLAGS).model().denoiser.learned_variance
    with pytest.raises(UserError, match=sentence):
        converted(file, OPENAI_FLAGS | flags)


def test_the_size_of_pictures_has_to_be_said(tmp_path):
    with pytest.raises(UserError, match="The tensors do not say --image_size"):
        converted(written(tmp_path, weights_for(OPENAI)), {})


def test_what_was_taken_as_usual_is_said(tmp_path):
    """And what was said is not."""
    file = written(tmp_path, weights_for(OPENAI))
    assert [note.split(" ")[0] for note in converted(file, OPENAI_FLAGS).origin["notes"]] == [
        "--diffusion_steps",
        "--noise_schedule",
        "--num_heads",
        "--use_new_attention_order",
    ]
    said = {"diffusion_steps": "1000", "noise-schedule": "cosine", "num_head_channels": "16", "--use_new_attention_order": "False"}
    assert converted(file, OPENAI_FLAGS | said).origin["notes"] == []


def test_flags_say_how_the_authors_sample_and_train(tmp_path):
    """Respacing by a stride is the leading grid, by a number the even one; --use_kl is the bound; x_0 may be what is predicted."""
    file = written(tmp_path, weights_for(OPENAI))
    usual = converted(file, OPENAI_FLAGS).config
    assert usual["sampler"] == {"_target_": "diffusion.samplers.DDPM", "variance": "learned"} and usual["grid"]["steps"] == 1000
    assert usual["objective"]["_target_"] == "diffusion.objectives.Hybrid" and list(usual["guidance"]) == ["cfg", "clip"]
    said = {"timestep_respacing": "ddim25", "use_ddim": "True", "use_kl": "True", "predict_xstart": "True", "clip_denoised": "False"}
    config = converted(file, OPENAI_FLAGS | said).config
    assert config["grid"] == {"_target_": "diffusion.grids.Leading", "steps": 25} and config["sampler"]["_target_"].endswith("DDIM")
    assert config["objective"] == {"_target_": "diffusion.objectives.VLB", "variance": "learned"}
    assert config["parameterization"] == {"_target_": "diffusion.parameterization.X0"} and list(config["guidance"]) == ["cfg"]
    assert converted(file, OPENAI_FLAGS | {"timestep_respacing": "250"}).config["grid"]["_target_"] == "diffusion.grids.Linspace"


@pytest.mark.parametrize("learn", [True, False])
def test_the_variance_that_is_not_learned_is_the_larger(learn, tmp_path):
    """Their code's, unless --sigma_small says otherwise."""
    file = written(tmp_path, weights_for(OpenAI(32, (1, 2), 1, (2,), out_channels=6 if learn else 3)))
    found = [converted(file, OPENAI_FLAGS | {"sigma_small": word}).config["sampler"]["variance"] for word in ("False", "True")]
    assert found == (["learned", "learned"] if learn else ["fixed_large", "fixed_small"])


def test_a_class_model_of_theirs_knows_no_null_class(tmp_path):
    """Its row is zeros; guidance that asks for it is refused, and away from a class it is not."""
    model = converted(written(tmp_path, weights_for(OPENAI)), OPENAI_FLAGS).model()
    assert not model.denoiser.network.classes.weight[-1].any()
    cfg = {"cfg": {"_target_": "diffusion.guidance.ClassifierFree", "scale": 2.0}}
    with pytest.raises(UserError, match="has not learned to go without its class"):
        model.recipe(guidance=cfg)
    model.recipe(guidance={"cfg": cfg["cfg"] | {"negative": 1}})


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"cond": "0"}, "--cond 0 contradicts the tensors, which say True"),
        ({"cbase": "64"}, "--cbase 64 contradicts the tensors, which say 32"),
        ({"cres": "1,2,2"}, "--cres 1,2,2 contradicts the tensors, which say 1,2"),
        ({"arch": "ncsnpp"}, "--arch ncsnpp contradicts the tensors, which say ddpmpp"),
        ({"augment": "0.12"}, "--augment 0.12 contradicts the tensors, which say False"),
        ({"precond": "ve"}, "--precond ve is not read: what has a counterpart here is edm, vp, iddpm"),
        ({"precond": "iddpm"}, "takes 3 channels and makes 3, which --precond iddpm does not"),
        ({"precond": ""}, "say --precond edm, or --precond vp for one of EDM's baselines"),
    ],
    ids=str,
)
def test_edm_s_options(flags, sentence, tmp_path):
    file = written(tmp_path, weights_for(EDM))
    converted(file, {"precond": "edm"}).model()
    with pytest.raises(UserError, match=sentence):
        converted(file, {"precond": "edm"} | flags)


@pytest.mark.parametrize("change", ["filter", "residual with [1, 1]"])
def test_edm_s_other_networks_are_refused(change, tmp_path):
    weights = weights_for(EDM)
    if change == "filter":
        weights["enc.8x8_down.skip.resample_filter"] = torch.full((1, 1, 2, 2), 0.3)
    else:
        extra = {"weight": torch.zeros(32, 3, 3, 3), "bias": torch.zeros(32), "resample_filter": EDM.taps}
        weights |= {f"enc.8x8_aux_residual.{name}": value for name, value in extra.items()}
    with pytest.raises(
        UserError, match=r"is another filter than \[1.0, 1.0\]" if change == "filter" else r"with the filter \[1, 1\] is not"
    ):
        converted(written(tmp_path, weights), {"precond": "edm"})


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"num_heads": "5"}, "does not say|do not say how many heads a width of 48 has"),
        ({"num_heads": "0"}, "do not say how many heads a width of 48 has"),
        ({"num-classes": "1000"}, "--num_classes 1000 contradicts the tensors, whose table of classes has 6 rows"),
        ({"model": "DiT-XL/2"}, "--model DiT-XL/2 contradicts the tensors, which say none of theirs"),
        ({"image-size": "256"}, "--image_size 256 contradicts the tensors, which say 8"),
        ({"vae": "nowhere"}, "There is no .*nowhere/config.json"),
    ],
    ids=str,
)
def test_dit_s_flags(flags, sentence, tmp_path):
    file = written(tmp_path, weights_for(DIT))
    assert converted(file, {"num_heads": "4"}).model().conditions.null_class
    with pytest.raises(UserError, match=sentence):
        converted(file, {"num_heads": "4"} | flags)


def test_a_table_without_a_null_class_gets_one_that_is_not_learned(tmp_path):
    """--num-classes of as many rows says that they trained without dropping classes."""
    model = converted(written(tmp_path, weights_for(DIT)), {"num_heads": "4", "num-classes": "6"}).model()
    assert model.denoiser.network.classes.weight.shape[0] == 7 and not model.conditions.null_class


def test_positions_that_were_trained_are_refused(tmp_path):
    weights = weights_for(DIT)
    weights["pos_embed"] = weights["pos_embed"] + 0.01
    with pytest.raises(UserError, match="pos_embed is not the table of sines and cosines"):
        converted(written(tmp_path, weights), {"num_heads": "4"})


def test_latents_need_their_autoencoder(tmp_path):
    file = written(tmp_path, weights_for(PublishedDiT(8, 2, 4, 48, 1, 4, 5)))
    with pytest.raises(UserError, match="works in latents of 4 channels: say --vae FOLDER"):
        converted(file, {"num_heads": "4"})
    (tmp_path / "config.json").write_text('{"block_out_channels": [8, 8], "latent_channels": 16}')
    with pytest.raises(UserError, match="makes latents of 16 channels, and this network takes 4"):
        converted(file, {"num_heads": "4", "vae": str(tmp_path)})


def test_an_upsampler_is_refused(tmp_path):
    weights = weights_for(OPENAI)
    weights["input_blocks.0.0.weight"] = torch.zeros(32, 5, 3, 3)
    with pytest.raises(UserError, match="takes 5 channels and makes 6: an upsampler"):
        converted(written(tmp_path, weights), OPENAI_FLAGS)


@pytest.mark.parametrize("reference", [OPENAI, EDM, DIT], ids=["openai", "edm", "dit"])
def test_a_file_that_lacks_a_tensor_or_has_another_shape_is_a_sentence(reference, tmp_path):
    """Whichever kind of tensor it is: of those whose names differ in numbers alone, the last."""
    flags = {OPENAI: OPENAI_FLAGS, EDM: {"precond": "edm", "cond": "1"}, DIT: {"num_heads": "4"}}[reference]
    whole = weights_for(reference)
    kinds = {re.sub(r"\d+", "", name): name for name in whole if not name.endswith(("_filter", "label_emb.weight"))}
    for name in kinds.values():
        for broken in ({key: value for key, value in whole.items() if key != name}, whole | {name: torch.zeros(2)}):
            with pytest.raises((UserError, ValueError)) as told:
                converted(written(tmp_path, broken), flags).model()
            assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_an_unknown_layout_names_the_nearest(tmp_path):
    """A classifier of guided-diffusion has no way up, and another end."""
    weights = {name: value for name, value in weights_for(OPENAI).items() if not name.startswith("output_blocks")}
    weights |= {"out.2.positional_embedding": torch.zeros(2), "out.2.c_proj.weight": torch.zeros(2)}
    with pytest.raises(
        UserError, match=r"unknown layout.*UNetModel, which has output_blocks\.0\.0\.in_layers\.0\.weight and has no place for out\.2\.c_p"
    ):
        converted(written(tmp_path, weights), OPENAI_FLAGS)


class Program:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_pickle_of_edm_s_is_not_run(tmp_path, monkeypatch):
    """The sentence says how its tensors are taken out; and the command in it does so, of a network that one trusts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edm.pkl").write_bytes(pickle.dumps({"ema": Program()}, protocol=2))
    with pytest.raises(UserError, match="is a pickle, which runs as a program when it is read") as told:
        converted(tmp_path / "edm.pkl", {})
    assert not Path("ran").exists()
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "edm.pkl").read_bytes())
    with pytest.raises(UserError, match="would run as a program when it is read"):
        converted(tmp_path / "renamed.pt", {})
    assert not Path("ran").exists()
    command = re.search(r'python -c "(.*)" in its folder', str(told.value))
    (tmp_path / "FILE.pkl").write_bytes(pickle.dumps({"ema": torch.nn.Linear(2, 3)}))
    exec(command[1])
    assert {name: tuple(value.shape) for name, value in torch.load("FILE.pt").items()} == {"weight": (3, 2), "bias": (3,)}
