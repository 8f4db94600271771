"""python -m diffusion.pareto RUN [KEY=1,2 ...] — the front of cost and quality: which sampler is the best for how many calls?

Each combination of the values of KEY=1,2 is a way to sample the run; without any they are six samplers of 5 to 50 steps. All are measured
over the same seeds, by the metric that is named or the run's first, with more and more images up to --budget; one that is told to be
behind another of no more cost is measured no further. KEY=VALUE are words of diffusion.evaluate; other checkpoints may be named too.

  python -m diffusion.pareto runs/NAME
  python -m diffusion.pareto runs/NAME sampler=ddim,heun grid.steps=10,20 guidance.scale=1,2 averaged=true,false --budget 20000
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from diffusion.compare import Contestant, contestants, require_apart
from diffusion.composing import alternatives, composing
from diffusion.config import told
from diffusion.evaluate import asked_for, settings, where
from diffusion.shell import begin
from diffusion.support.commands import running
from diffusion.support.errors import UserError
from diffusion.support.progress import loading

if TYPE_CHECKING:
    from diffusion.evaluation.front import Cost

USUAL = ["sampler=ddim,ddpm,deis,dpmpp_2m,heun,unipc", "grid.steps=5,10,20,50"]


class Way(Contestant):
    """A contestant whose cost is known."""

    def cost(self, images: int) -> "Cost":
        """Of one image, from noise to the end: the calls of all networks, and FLOPs as torch counts them, of convolutions, matrix products
        and, on a GPU, attention. Milliseconds are those of at most so many images, and no more than a batch, without the metric."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from diffusion.evaluation.cells import WAY
        from diffusion.evaluation.front import Cost
        from diffusion.generate import modules

        cfg, typed = self.composed()
        config = settings(cfg)
        subject, way = asked_for(cfg, config, typed)
        recipe = subject.model.recipe(*(way[key] for key in WAY), batch_size=config["sample_batch_size"], precision=config["precision"])
        calls: list[int] = []
        hooks = [one.register_forward_pre_hook(lambda _, given: calls.append(len(given[0]))) for one in modules(recipe.denoiser)]
        try:
            with FlopCounterMode(display=False) as counter:
                made = recipe([config["seed"]], recipe.conditions.ask(torch.arange(1)))
        finally:
            for hook in hooks:
                hook.remove()
        n, start = min(images, recipe.batch_size), time.perf_counter()
        recipe(range(config["seed"], config["seed"] + n), recipe.conditions.ask(torch.arange(n))).images.cpu()
        return Cost(sum(calls) or made.nfe, counter.get_total_flops() / 1e9, 1e3 * (time.perf_counter() - start) / n)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.pareto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="RUN|KEY=1,2", help="a run or a checkpoint; or words of diffusion.evaluate")
    parser.add_argument("--budget", type=int, metavar="N", help="images to draw of each at most (8 times the metric's n)")
    parser.add_argument("--cost", choices=("calls", "gflop", "ms"), default="calls", help="what the front is drawn against (calls)")
    given, command = parser.parse_intermixed_args(), " ".join(sys.argv[1:])
    with composing():
        typed = [word for word in given.words if "=" in word]
        swept = any(len(words) > 1 for words in alternatives(typed))
        usual = [word for word in USUAL if word.partition("=")[0] not in {one.partition("=")[0] for one in typed}]
        if any(word.startswith("seed=") and "," in word for word in given.words):
            raise UserError("All ways are measured over the same seeds: say one seed=N.")
        ways = [Way(one.label, one.words) for one in contestants([*given.words, *([] if swept else usual)], "pareto")]
        configurations = [way.composed() for way in ways]
        places = [place for cfg, typed in configurations for place in told(cfg, typed)]
        with running("pareto", sys.argv[1:]), begin(trust=configurations[0][0].trust, places=places):
            with loading("torch and the run"):
                from diffusion.evaluation.front import Search

            require_apart(ways)
            search, file = Search(ways, given.budget, 0.05, given.cost), where(settings(configurations[0][0]))
            try:
                search.run()
            finally:  # what was found before a mistake, or Ctrl-C, is as true
                search.save(file, f"python -m diffusion.pareto {command}")


if __name__ == "__main__":
    main()
