"""python -m diffusion.pareto RUN [KEY=1,2 ...] — the front of cost and quality: which sampler is the best for how many calls?

Each combination of the values of KEY=1,2 is a way to sample the run; without any they are six samplers of 5 to 50 steps. All are measured
over the same seeds, by the metric that is named or the run's first, with more and more images up to --budget; one that is told to be
behind another of no more calls is measured no further. KEY=VALUE are words of diffusion.evaluate; other checkpoints may be named too.

  python -m diffusion.pareto runs/NAME
  python -m diffusion.pareto runs/NAME sampler=ddim,heun grid.steps=10,20 guidance.scale=1,2 averaged=true,false --budget 20000
"""

import argparse
import sys

from diffusion.compare import Contestant, contestants
from diffusion.composing import alternatives, composing
from diffusion.config import told
from diffusion.evaluate import asked_for, settings, where
from diffusion.shell import begin
from diffusion.support.commands import running
from diffusion.support.progress import doing

USUAL = ["sampler=ddim,ddpm,deis,dpmpp_2m,heun,unipc", "grid.steps=5,10,20,50"]


class Way(Contestant):
    """A contestant whose calls are counted."""

    def flops(self) -> float:
        """FLOPs of one call of the guided denoiser for one image, as torch counts them: two for each multiplication and addition of
        convolutions, matrix products and, on a GPU, attention."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from diffusion.evaluation.cells import WAY

        cfg, typed = self.composed()
        subject, way = asked_for(cfg, settings(cfg), typed)
        recipe = subject.model.recipe(*(way[key] for key in WAY), batch_size=1, precision=cfg.precision)
        counter = FlopCounterMode(display=False)
        x = torch.zeros(1, *recipe.shape, device=subject.device)
        with counter, torch.no_grad(), recipe.computing():
            cond = recipe.conditions.ask(torch.arange(1))
            recipe.denoiser(x, torch.full((1,), 0.5, device=x.device), None if cond is None else cond.to(x.device))
        return float(counter.get_total_flops())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.pareto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="RUN|KEY=1,2", help="a run or a checkpoint; or words of diffusion.evaluate")
    parser.add_argument("--budget", type=int, metavar="N", help="images to draw of each at most (8 times the metric's n)")
    given, command = parser.parse_intermixed_args(), " ".join(sys.argv[1:])
    with composing():
        swept = any(len(words) > 1 for words in alternatives([word for word in given.words if "=" in word]))
        own = [] if any(word.startswith("name=") for word in given.words) else ["name=pareto"]
        ways = [Way(one.label, one.words) for one in contestants([*given.words, *own, *([] if swept else USUAL)])]
        configurations = [way.composed() for way in ways]
        places = [place for cfg, typed in configurations for place in told(cfg, typed)]
        with running("pareto", sys.argv[1:]), begin(trust=configurations[0][0].trust, places=places):
            with doing("loading torch and the run"):
                from diffusion.evaluation.front import Search

            search = Search(ways, given.budget, alpha=0.05)
            search.run()
            search.save(where(settings(configurations[0][0])), f"python -m diffusion.pareto {command}")


if __name__ == "__main__":
    main()
