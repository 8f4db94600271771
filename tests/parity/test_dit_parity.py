"""The DiT is diffusers' DiTTransformer2DModel, weight for weight, and has the parameters that its paper states."""

from copy import deepcopy

import pytest
import torch
from composing import composed

from diffusion.networks import DiT
from diffusion.networks.dit import positions
from diffusion.networks.embedding import sinusoidal
from diffusion.support.build import build

diffusers = pytest.importorskip("diffusers")
SMALL = dict(width=48, depth=3, heads=4, patch=2, image_size=8, in_channels=4, out_channels=8)


def reference():
    """At a small size; norm_eps as in the authors' code (diffusers' default differs in the second norm of a block)."""
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_eps=1e-6,
    )


def copy(target, *sources) -> None:
    """Copies weights and biases; several sources are stacked, as ours keeps query, key and value in one layer."""
    for name, parameter in target.named_parameters():
        parameter.data.copy_(torch.cat([source.get_parameter(name) for source in sources]))


def swapped(layer: torch.nn.Linear, chunks: int, *pairs: tuple[int, int]) -> torch.nn.Linear:
    """A linear layer with pairs of equal parts of its outputs swapped: diffusers has shifts before scales, ours scales before shifts."""
    for parameter in layer.parameters():
        parts = list(parameter.data.chunk(chunks))
        for i, j in pairs:
            parts[i], parts[j] = parts[j], parts[i]
        parameter.data = torch.cat(parts)
    return layer


def copy_all(net: DiT, source) -> None:
    embedding = source.transformer_blocks[0].norm1.emb  # diffusers keeps one in each block
    for block in source.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(embedding.state_dict())
    time = embedding.timestep_embedder
    copy(net.time.hidden, time.linear_1)
    net.time.hidden.weight.data = net.time.hidden.weight.data.roll(128, dims=1)  # cosines stand first there
    copy(net.time.out, time.linear_2)
    copy(net.classes, embedding.class_embedder.embedding_table)
    copy(net.stem, source.pos_embed.proj)
    for ours, theirs in zip(net.blocks, source.transformer_blocks, strict=True):
        copy(ours.modulate, theirs.norm1.linear)
        swapped(ours.modulate, 6, (0, 1), (3, 4))
        copy(ours.qkv, theirs.attn1.to_q, theirs.attn1.to_k, theirs.attn1.to_v)
        copy(ours.project, theirs.attn1.to_out[0])
        copy(ours.mlp[0], theirs.ff.net[0].proj)
        copy(ours.mlp[2], theirs.ff.net[2])
    copy(net.modulate, source.proj_out_1)
    swapped(net.modulate, 2, (0, 1))
    copy(net.out, source.proj_out_2)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    source, net = reference().eval(), DiT(**SMALL, num_classes=10).eval()
    for parameter in source.parameters():  # larger than a fresh network's, so that the position and the condition matter
        torch.nn.init.normal_(parameter, std=0.15)
    copy_all(net, source)
    return net, source


@torch.no_grad()
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_the_dit_gives_what_diffusers_gives(pair, dtype, atol):
    """diffusers' sinusoids and positions are float32 always, so it is given ours here: all that comes after them is compared."""
    net, source = (deepcopy(module).to(dtype) for module in pair)
    for block in source.transformer_blocks:
        block.norm1.emb.time_proj.register_forward_hook(lambda module, args, out: sinusoidal(args[0], 256).roll(128, dims=1))
    source.pos_embed.pos_embed = net.position[None]
    x, label, classes = torch.randn(3, 4, 8, 8, dtype=dtype), torch.tensor([0.0, 417.0, 999.0], dtype=dtype), torch.tensor([3, 9, 10])
    expected = source(x, label, class_labels=classes).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x, label, torch.tensor([3, 9, -1])), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("side, width", [(4, 48), (16, 1152)])
def test_the_positions_are_diffusers(side, width):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    expected = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
    torch.testing.assert_close(positions(side, side, width), expected.float(), rtol=0, atol=2e-6)


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name, millions", [("dit_s", 33), ("dit_b", 130), ("dit_l", 458), ("dit_xl", 675)])
def test_parameter_counts_of_the_paper(name, millions):
    """Table 1 and 4 of the paper: 32 x 32 x 4 latents, patches of 2, 1,000 classes, a learned variance."""
    told = {"in_channels": 4, "out_channels": 8, "image_size": 32, "num_classes": 1000}
    with torch.device("meta"):
        net = build(composed(f"network={name}")["network"], "network", told)
    assert round(count(net) / 1e6) == millions


def test_xl_has_as_many_parameters_as_the_published_one():
    """675,129,632 is the authors' DiT-XL/2, which counts the fixed position of 256 patches as a parameter."""
    with torch.device("meta"):
        net = DiT(width=1152, depth=28, heads=16, out_channels=8, num_classes=1000)
    assert count(net) + 256 * 1152 == 675_129_632
