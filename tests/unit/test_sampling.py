"""generate(), guidance, grids and the codec: what stands between a denoiser and an image."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.codecs import Pixels
from diffusion.denoiser import Denoiser, Estimate
from diffusion.generate import Asked, Recipe, described, generate, trajectories, warn_of_no_numbers
from diffusion.grids import Leading, Linspace, Trailing
from diffusion.guidance import ClassifierFree, Clip
from diffusion.noise import SeededNoise
from diffusion.parameterization import X0, Epsilon, Score, V, Velocity
from diffusion.samplers import DDIM, DDPM, Euler, EulerAncestral, last
from diffusion.schedules import VE, Cosine, Flow, Linear

F64 = {"dtype": torch.float64}
SHAPE = (4, 5, 3)


class Network(nn.Module):
    """Deterministic, conditional on integer labels (-1 is null) or embeddings, and it remembers its calls."""

    def __init__(self, learned: bool = False):
        super().__init__()
        self.weight, self.learned, self.calls = nn.Parameter(torch.tensor(0.9)), learned, []

    def forward(self, x_t, label, cond):
        self.calls.append((x_t.shape, label, cond))
        shift = torch.zeros(len(x_t), 1) if cond is None else cond.float().reshape(len(x_t), -1).sum(1, keepdim=True)
        channel = torch.arange(1, x_t.shape[1] + 1)
        offset = (0.05 * shift * channel)[:, :, None, None]
        out = (self.weight * x_t + offset + label[:, None, None, None] / 4000).sin()
        return torch.cat([out, (3 * x_t + offset).cos()], 1) if self.learned else out


def denoiser(learned: bool = False, read=None, schedule=None) -> Denoiser:
    return Denoiser(Network(learned), schedule or Cosine(), read or V(), learned)


SAMPLERS = [DDPM("auto"), DDPM("fixed_large"), DDIM(), DDIM(0.5), Euler(), EulerAncestral()]


# ---- generate


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("conditional", [False, True])
def test_an_image_is_its_seed_s_whatever_the_batch_or_the_order(sampler, conditional):
    """Traps 33, 34."""
    seeds, model = [7, 3, 11, 0, 2**32 - 1], denoiser()
    cond = torch.tensor([0, 4, 2, 9, 1]) if conditional else None

    def make(order, batch):
        chosen = None if cond is None else cond[list(order)]
        return generate(model, sampler, Trailing(5), SHAPE, [seeds[i] for i in order], chosen, batch_size=batch)

    reference = make(range(5), 64)
    assert reference.shape == (5, 5, 3, 4) and reference.dtype == torch.uint8 and reference.device.type == "cpu"
    for batch in (1, 2, 3):
        assert torch.equal(make(range(5), batch), reference)
    order = [4, 1, 3, 0, 2]
    assert torch.equal(make(order, 2), reference[order])
    assert len({image.numpy().tobytes() for image in reference}) == 5


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_torch_s_own_randomness_is_left_alone(sampler):
    before = torch.get_rng_state()
    first = generate(denoiser(), sampler, Trailing(4), SHAPE, [1, 2])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(generate(denoiser(), sampler, Trailing(4), SHAPE, [1, 2]), first)


def test_no_two_of_a_thousand_are_alike():
    images = generate(denoiser(), DDIM(), Trailing(2), (1, 4, 4), range(1000), batch_size=256)
    assert len({image.numpy().tobytes() for image in images}) == 1000


def test_the_first_state_is_the_schedule_s_noise():
    """x_1 = sigma_1 z: not N(0, I) for VE, nor where a leading grid starts (MATHS 6)."""
    for schedule, grid in ((VE(), Trailing(3)), (Cosine(), Leading(10)), (Flow(), Trailing(3))):
        seen = []

        def denoise(x, t, cond=None, seen=seen):
            seen.append(x)
            return Estimate(torch.zeros_like(x), x)

        denoise.schedule = schedule
        last(trajectories(denoise, DDIM(), grid, (1, 64, 64), [5]))
        z = torch.empty(1, 64, 64).normal_(generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(seen[0][0], schedule(grid(schedule)[0])[1].float() * z)


def test_row_i_of_the_noise_is_seed_i_s():
    noise, alone = SeededNoise([3, 8], "cpu"), SeededNoise([8], "cpu")
    for _ in range(3):
        assert torch.equal(noise(torch.empty(2, 3, 4))[1], alone(torch.empty(1, 3, 4))[0])
    channels_last = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(SeededNoise([3, 8], "cpu")(channels_last), SeededNoise([3, 8], "cpu")(torch.empty(2, 3, 4, 5)))


def test_no_seeds_no_images():
    """A rank's share may be empty."""
    images = generate(denoiser(), DDIM(), Trailing(2), SHAPE, [])
    assert images.shape == (0, 5, 3, 4) and images.dtype == torch.uint8


@pytest.mark.parametrize("seed", [2**32, -1])
def test_seeds_that_would_repeat_an_image_are_refused(seed):
    """The CPU's generator keeps 32 bits of its seed: 2^32 is 0 again."""
    assert torch.equal(*(torch.randn(4, generator=torch.Generator().manual_seed(s)) for s in (0, 2**32)))
    with pytest.raises(ValueError, match=r"outside 0 \.\. 4294967295"):
        generate(denoiser(), DDIM(), Trailing(2), SHAPE, [0, seed])


def test_images_of_no_numbers_are_said_once(caplog):
    """A picture of 8 bits would hide them."""
    warn_of_no_numbers.cache_clear()
    broken = denoiser()
    generate(broken, DDIM(), Trailing(3), SHAPE, range(2))
    assert not caplog.messages
    with torch.no_grad():
        broken.network.weight.fill_(torch.nan)
    for _ in range(2):
        assert generate(broken, DDIM(), Trailing(3), SHAPE, range(2)).dtype == torch.uint8
    assert [message.partition(":")[0] for message in caplog.messages] == ["Some images are of numbers that are none (NaN or infinity)"]


def test_sampling_records_no_gradient():
    states = trajectories(denoiser(), DDIM(), Trailing(2), SHAPE, [1])
    assert all(not state.x.requires_grad for state in states) and torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_interleaved_runs_are_separate_runs(sampler):
    """Trap 37: a sampler has no memory between calls."""

    def run(seeds):
        return trajectories(denoiser(), sampler, Trailing(6), SHAPE, seeds)

    alone = [last(run([1])).x, last(run([2])).x]
    for one, other in zip(run([1]), run([2]), strict=True):
        states = one, other
    assert torch.equal(states[0].x, alone[0]) and torch.equal(states[1].x, alone[1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_step_yields_the_time_it_reached(sampler):
    times = Trailing(6)(Cosine())
    states = list(trajectories(denoiser(), sampler, Trailing(6), SHAPE, [1]))
    assert [state.t.item() for state in states] == times[1:].tolist()
    assert torch.equal(states[-1].x, states[-1].x0)


@pytest.mark.parametrize("grid", [Trailing(1), Trailing(7), Leading(3), Linspace(25)], ids=repr)
@pytest.mark.parametrize("variance", ["learned", "auto", "fixed_small", "fixed_large"])
def test_a_learned_variance_works_with_any_sub_sequence(grid, variance):
    state = last(trajectories(denoiser(learned=True), DDPM(variance), grid, SHAPE, [1, 2]))
    assert state.x.isfinite().all() and state.x.shape == (2, *SHAPE)


def test_a_learned_variance_changes_the_sample():
    images = [generate(denoiser(True), DDPM(v), Trailing(5), SHAPE, [1]) for v in ("learned", "fixed_small", "fixed_large", "auto")]
    assert torch.equal(images[0], images[3]) and not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])


READS = [Epsilon(), X0(), V(), Score(), Velocity()]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("schedule", [Cosine(40), Linear(40), VE(40), Flow(), Linear(40, zero_terminal_snr=True)], ids=repr)
@pytest.mark.parametrize("guidance", [1.0, 0.0, 3.0])
def test_everything_runs_with_everything(sampler, schedule, guidance):
    for read in READS:
        if not (read.needs_signal and schedule.reaches_noise):
            guided = Clip(ClassifierFree(denoiser(True, read, schedule), guidance))
            state = last(trajectories(guided, sampler, Trailing(3), SHAPE, [1, 2], torch.tensor([0, 1])))
            assert state.x.isfinite().all() and state.x.shape == (2, *SHAPE) and state.x.abs().max() <= 1


def test_nfe_is_counted_and_described():
    recipe = Recipe(ClassifierFree(denoiser(), 2.0), DDIM(0.5), Trailing(7), SHAPE)
    made = recipe([4], torch.tensor([2]))
    assert torch.equal(made.images, generate(recipe.denoiser, DDIM(0.5), Trailing(7), SHAPE, [4], torch.tensor([2])))
    assert made.nfe == 7
    assert recipe([], None).nfe == 0
    assert Recipe(denoiser(), DDIM(), Trailing(5), SHAPE, batch_size=2)([1, 2, 3, 4, 5]).nfe == 5  # each image's, not all batches' together
    way = recipe.describe()
    assert way["sampler"] == {"name": "DDIM", "eta": 0.5, "grid": {"name": "Trailing", "steps": 7}}
    assert way["guidance"] == {"name": "ClassifierFree", "denoiser": "Denoiser", "scale": 2.0, "negative": None}
    assert described(Clip(ClassifierFree(denoiser(), 2.0)))["denoiser"]["scale"] == 2.0
    counted = Asked(denoiser(), None)
    last(DDIM()(counted, torch.zeros(1, *SHAPE), Trailing(7)(Cosine())))
    assert counted.nfe == 7


def test_a_grid_that_does_not_fit_is_refused_before_it_is_used():
    with pytest.raises(ValueError, match="steps=1001"):
        Recipe(denoiser(), DDIM(), Trailing(1001), SHAPE)


# ---- codec


def test_a_round_trip_moves_no_level():
    """Trap 20."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    assert torch.equal(Pixels().decode(Pixels().encode(levels)), levels)
    assert torch.equal(Pixels().decode(Pixels().encode(levels).double()), levels)
    x = Pixels().encode(levels)
    assert x.shape == (1, 1, 16, 16) and x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    truncated = ((x + 1) * 127.5).to(torch.uint8).flatten()  # what the trap is
    assert (truncated != levels.flatten()).sum() > 20


def test_decoding_rounds_to_the_nearest_level_and_does_not_wrap():
    x = torch.tensor([-5.0, -1.001, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.001, 5.0]).reshape(1, 1, 1, 7)
    assert Pixels().decode(x).flatten().tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_images_are_laid_out_for_each_side():
    images = torch.randint(0, 256, (2, 5, 3, 4), dtype=torch.uint8)
    x = Pixels().encode(images)
    assert x.shape == (2, 4, 5, 3) and x.is_contiguous()
    assert torch.equal(x[1, 2, 4, 0], images[1, 4, 0, 2].float() / 127.5 - 1)
    assert Pixels().decode(x).is_contiguous() and torch.equal(Pixels().decode(x), images)


# ---- guidance


def close(a: Estimate, b: Estimate) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "cond", [torch.tensor([3, 1, 2]), torch.tensor([[0.5, 1.0], [2.0, 1.0], [0.0, -1.0]])], ids=["labels", "embeddings"]
)
@pytest.mark.parametrize("t", [torch.tensor(0.4, **F64), torch.tensor([0.4, 0.1, 0.9], **F64)], ids=["one time", "each its own"])
def test_classifier_free_guidance(cond, t):
    """Traps 16, 17: scale is s, s = 1 the conditional model and 0 the unconditional; all channels; the variance is the conditional's."""
    x = torch.randn(3, *SHAPE)
    model = denoiser(learned=True)
    none = -torch.ones_like(cond) if cond.ndim == 1 else torch.zeros_like(cond)
    conditional, unconditional = model(x, t, cond), model(x, t, none)
    close(ClassifierFree(model, 1.0)(x, t, cond), conditional)
    close(ClassifierFree(model, 0.0)(x, t, cond)._replace(frac=None), unconditional._replace(frac=None))
    guided = ClassifierFree(model, 3.0)(x, t, cond)
    w = 2.0  # the papers' w: (1 + w) eps(c) - w eps
    close(guided._replace(frac=None), Estimate(*((1 + w) * c - w * u for c, u in zip(conditional[:2], unconditional[:2], strict=True))))
    torch.testing.assert_close(guided.frac, conditional.frac)
    assert ((guided.eps - conditional.eps).abs().amax((0, 2, 3)) > 1e-3).all()  # every channel is guided
    alpha, sigma = (v.to(x).reshape(-1, 1, 1, 1) for v in model.schedule(t))
    torch.testing.assert_close(alpha * guided.x0 + sigma * guided.eps, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 3), (0.0, 6), (2.5, 6)])
def test_guidance_is_one_batched_call(scale, rows):
    model = denoiser()
    ClassifierFree(model, scale)(torch.randn(3, *SHAPE), torch.tensor(0.5, **F64), torch.tensor([3, 1, 2]))
    (call,) = model.network.calls
    assert call[0][0] == rows
    assert call[2].tolist() == ([3, 1, 2] if rows == 3 else [3, 1, 2, -1, -1, -1])


def test_guidance_of_nothing_is_refused():
    x, t = torch.randn(1, *SHAPE), torch.tensor(0.5, **F64)
    with pytest.raises(ValueError, match=r"guidance.scale=2.0 needs a conditional model"):
        ClassifierFree(denoiser(), 2.0)(x, t)
    ClassifierFree(denoiser(), 1.0)(x, t)


def test_clipping_derives_eps_again():
    """Trap 15."""
    x, t = 3 * torch.randn(3, *SHAPE, **F64), torch.tensor([0.3, 0.6, 0.9], **F64)
    model = denoiser(learned=True).double()
    free, clipped = model(x, t), Clip(model)(x, t)
    assert torch.equal(clipped.x0, free.x0.clamp(-1, 1)) and (free.x0.abs() > 1).any() and (free.x0.abs() < 1).any()
    alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in model.schedule(t))
    torch.testing.assert_close(alpha * clipped.x0 + sigma * clipped.eps, x, rtol=1e-12, atol=1e-12)
    assert torch.equal(clipped.frac, free.frac)
    inside = free.x0.abs() < 1
    torch.testing.assert_close(clipped.eps[inside], free.eps[inside], rtol=1e-9, atol=1e-9)
    assert Clip(model, low=-0.5, high=0.25)(x, t).x0.min() == -0.5 and Clip(model, low=-0.5, high=0.25)(x, t).x0.max() == 0.25


def test_guidance_nests():
    model, x, t, cond = denoiser(), torch.randn(2, *SHAPE), torch.tensor(0.8, **F64), torch.tensor([1, 2])
    nested = Clip(ClassifierFree(model, 4.0))
    assert nested.schedule is model.schedule and nested.device == model.device
    close(nested(x, t, cond)._replace(eps=x), Estimate(ClassifierFree(model, 4.0)(x, t, cond).x0.clamp(-1, 1), x))


# ---- grids


def index(grid, schedule) -> list[float]:
    """The steps 0..T-1 that a grid visits, checked to end in t = 0."""
    times = grid(schedule)
    assert times.dtype == torch.float64 and times.device.type == "cpu" and len(times) == grid.steps + 1
    assert times[-1] == 0 and (times.diff() < 0).all() and times[0] <= 1
    return (times[:-1] * schedule.num_timesteps - 1).tolist()


@pytest.mark.parametrize("steps", range(1, 31))
def test_any_number_of_steps(steps):
    """Trap 12: T = 30, every number from 1 to T, whether it divides T or not; against integer arithmetic."""
    T, schedule = 30, Cosine(30)
    assert index(Leading(steps), schedule) == pytest.approx([(steps - 1 - k) * (T // steps) for k in range(steps)], abs=1e-9)
    assert index(Trailing(steps), schedule) == pytest.approx([round(T - k * T / steps) - 1 for k in range(steps)], abs=1e-9)
    even = [T - 1 - k * (T - 1) / max(1, steps - 1) for k in range(steps)]
    assert index(Linspace(steps, rounded=False), schedule) == pytest.approx(even, abs=1e-9)
    whole = np.linspace(0, T - 1, steps).round()[::-1] if steps > 1 else [T - 1]  # one step starts at noise; numpy's one is 0
    assert index(Linspace(steps), schedule) == pytest.approx(list(whole), abs=1e-9)


@pytest.mark.parametrize("kind", [Leading, Trailing, Linspace])
def test_too_many_or_too_few_steps_are_refused(kind):
    for steps in (0, -3):
        with pytest.raises(ValueError, match=rf"steps={steps} of {kind.__name__} must be between 1 and"):
            kind(steps)
    with pytest.raises(ValueError, match=r"grid.steps=31 is more than the schedule's 30 time steps"):
        kind(31)(Cosine(30))
    with pytest.raises(ValueError, match="more than the schedule's 1000"):
        kind(1001)(Flow())
    assert len(kind(1000)(Flow())) == 1001


def test_leading_has_an_offset():
    assert index(Leading(10, offset=1), Linear()) == pytest.approx([901 - 100 * k for k in range(10)], abs=1e-9)
    with pytest.raises(ValueError, match=r"grid.offset=100 moves some of 10 steps outside the schedule's 1000"):
        Leading(10, offset=100)(Linear())
    with pytest.raises(ValueError, match=r"offset=-1 of Leading must be"):  # t = 0, where there is nothing to remove, before the end
        Leading(10, offset=-1)


def test_leading_starts_far_from_noise_and_the_others_do_not():
    """Trap 11: cosine with 10 steps begins at sqrt(abar) = 0.154."""
    schedule = Cosine()
    assert schedule(Leading(10)(schedule)[0])[0].item() == pytest.approx(0.154, abs=5e-4)
    for kind in (Trailing, Linspace):
        assert kind(10)(schedule)[0] == 1 and schedule(kind(10)(schedule)[0])[0] < 1e-4
    assert Trailing(10)(Flow())[0] == 1


def test_the_network_hears_the_original_labels():
    """Trap 13: labels of the whole schedule, never of the compressed one; and the next time is the next entry of the grid (trap 11)."""
    model = denoiser()
    generate(model, DDPM(), Leading(7), SHAPE, [1])
    assert [label.item() for _, label, _ in model.network.calls] == [852, 710, 568, 426, 284, 142, 0]


@pytest.mark.parametrize("word", ["highest", "high"])
def test_float32_is_multiplied_as_the_recipe_says_and_afterwards_as_before(word):
    """In convolutions too, which torch's own word leaves in TF32."""
    seen = []

    class Looks(Network):
        def forward(self, x_t, label, cond):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().forward(x_t, label, cond)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    Recipe(Denoiser(Looks(), Cosine(), V()), DDIM(), Trailing(1), (3, 4, 5), matmul_precision=word)(range(1))
    assert set(seen) == {(word, word != "highest")}
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
